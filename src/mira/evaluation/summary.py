"""Many results as one table: a row for each backbone, a column for each measurement."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mira.escaping import escaped
from mira.evaluation.naming import describe, distinguishing, pass_of, run_of, shift_of, shortest
from mira.evaluation.results import FLOORS, RANDOM, Result, Value, read_results
from mira.evaluation.table import Cell
from mira.wording import counted

RESULTS = "results.jsonl"
_NAME = 16  # characters of a line that a backbone's name is given in a terminal at least


@dataclass(frozen=True)
class Summary:
    """Results by backbone and measurement.

    Attributes:
        columns: what was measured, in words.
        parts: each column's words in two: what neighbours share ("k-NN, 10 % of labels (947)"), and the rest ("k 20").
        rows: (features, checkpoint) to cells by column.
    """

    columns: tuple[str, ...]
    parts: dict[str, tuple[str, str]]
    rows: dict[tuple[str, str], dict[str, Cell]]


def find_results(paths: Iterable[str | Path]) -> list[Result]:
    """The results in files, and in every `results.jsonl` below folders.

    Raises:
        ValueError: a path that does not exist, or nothing found.
    """
    files: list[Path] = []
    asked = [Path(path) for path in paths]
    for path in asked:
        if not path.exists():
            raise ValueError(f"there is no file or folder '{path}': name runs, folders of runs, or files of results.")
        files += sorted(path.rglob(RESULTS)) if path.is_dir() else [path]
    # The newest last, whatever file it is in: of the same measurement the last counts.
    found = sorted((one for file in dict.fromkeys(files) for one in read_results(file)), key=lambda one: one.time)
    if not found:
        places = ", ".join(map(str, asked))
        raise ValueError(f"there are no results in {places}: `mira evaluate knn RUN` makes some.")
    return found


def summarise(results: Sequence[Result]) -> Summary:
    """Put results into rows and columns; of the same setting and seed the last counts.

    Runs that differ in the seed of their pretraining alone share a row; so do random backbones that are the same.
    """
    # Of weights that were replaced under the same name, only the last ones: other weights are not another seed.
    weights = {(result.features, result.checkpoint): result.checkpoint_hash for result in results}
    results = [
        result
        for result in results
        if result.features in FLOORS or result.checkpoint_hash == weights[result.features, result.checkpoint]
    ]
    called = _one_name_each(results)
    passes: dict[tuple[str, str], set[str]] = {}
    for result in results:
        passes.setdefault((result.features, called[result.checkpoint]), set()).add(pass_of(result))
    data = shortest(result.data for result in results)
    tell_apart = distinguishing(results)
    parts: dict[str, tuple[str, str]] = {}
    seeds: dict[tuple[str, str], dict[str, dict[tuple[str, int], Result]]] = {}
    for result in results:
        if result.value is None:
            continue
        group, setting = describe(result, tell_apart[result.protocol])
        group += f", {data[result.data]}" if len(data) > 1 else ""
        group += f", moved by ≤ {shift_of(result)} px" if shift_of(result) else ""
        column = f"{group}, {setting}"
        parts[column] = group, setting
        name = called[result.checkpoint]
        several = len(passes[result.features, name]) > 1
        way = f", {pass_of(result)}" if several and pass_of(result) else ""
        row = seeds.setdefault((result.features, name + way), {})
        row.setdefault(column, {})[run_of(result), result.seed] = result
    # Floors first, as in the tables of single runs.
    order = sorted(seeds, key=lambda row: row[0] not in FLOORS)
    rows = {row: {name: Cell(_of_the_same_pictures(by)) for name, by in seeds[row].items()} for row in order}
    # Measurements of one group together, in the order in which the groups first appear.
    groups = list(dict.fromkeys(group for group, _ in parts.values()))
    columns = sorted(parts, key=lambda column: groups.index(parts[column][0]))
    return Summary(tuple(columns), parts, rows)


def _one_name_each(results: Sequence[Result]) -> dict[str, str]:
    """From checkpoints to the names of their rows: one for all runs of a recipe that have other seeds."""
    groups: dict[tuple[Value, ...], dict[str, Value]] = {}
    same: dict[tuple[int, str], str] = {}
    called: dict[str, str] = {}
    for result in results:
        name = called.setdefault(result.checkpoint, result.checkpoint)
        made = result.pretraining
        if made:
            group = groups.setdefault((result.features, made.get("recipe"), made.get("step")), {})
            group.setdefault(result.checkpoint, made.get("seed"))
        if result.features == RANDOM and result.checkpoint_hash:
            called[result.checkpoint] = same.setdefault((result.seed, result.checkpoint_hash), name)
    for group in groups.values():
        if len(group) > 1 and len(set(map(str, group.values()))) == len(group):  # a copy is no other seed
            first = f"{next(iter(group))} and {counted(len(group) - 1, 'other seed')}"
            called.update(dict.fromkeys(group, first))
    return called


def _of_the_same_pictures(by_seed: dict[tuple[str, int], Result]) -> tuple[Result, ...]:
    """One for each seed, without those that were measured when there were other pictures under the same name."""
    newest = max(by_seed.values(), key=lambda result: result.time)
    sizes = newest.train_size, newest.test_size
    return tuple(result for result in by_seed.values() if (result.train_size, result.test_size) == sizes)


LEGEND = (
    "Percent, but for health; mean ± standard deviation over as many evaluation seeds as stand in brackets, or over "
    "runs of one recipe with other pretraining seeds, each by its mean."
)


def as_markdown(summary: Summary) -> str:
    """A Markdown table: a row for each measurement, a column for each backbone, and what the numbers are."""
    checkpoints = shortest(checkpoint for _, checkpoint in summary.rows)
    lines = [["", *(f"{features} ({checkpoints[checkpoint]})" for features, checkpoint in summary.rows)]]
    lines.append(["---", *["---:"] * len(summary.rows)])
    lines += [[name, *(_text(cells.get(name)) for cells in summary.rows.values())] for name in summary.columns]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{table}\n\n{LEGEND}\n"


def as_csv(summary: Summary) -> str:
    """One line for each backbone and measurement, for programs: mean, standard deviation, numbers of seeds and runs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("features", "checkpoint", "hash", "protocol", "data", "measurement", "mean", "sd", "seeds", "runs")
    writer.writerow(head)
    for (features, checkpoint), cells in summary.rows.items():
        for column, cell in cells.items():
            one = cell.newest
            deviation = "" if cell.deviation is None else f"{cell.deviation:.6g}"
            measured = (f"{cell.mean:.6g}", deviation, len({one.seed for one in cell.results}), cell.runs)
            writer.writerow((features, checkpoint, one.checkpoint_hash, one.protocol, one.data, column, *measured))
    return text.getvalue()


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """For a terminal: a line for each measurement, a column for each backbone, as many side by side as fit."""
    console = console or Console()
    checkpoints = shortest(checkpoint for _, checkpoint in summary.rows)
    words = max((max(len(group), 2 + len(setting)) for group, setting in summary.parts.values()), default=0)
    values = max((len(_text(cell)) for cells in summary.rows.values() for cell in cells.values()), default=0)
    fit = max(1, (console.width - words) // (max(values, _NAME) + 2))
    everyone = list(summary.rows)
    for subjects in (everyone[start : start + fit] for start in range(0, len(everyone), fit)):
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("", no_wrap=True)
        for features, checkpoint in subjects:
            # As text: rich takes brackets in a name for markup.
            name = f"{escaped(features)}\n{escaped(checkpoints[checkpoint])}"
            table.add_column(Text(name), justify="right", overflow="fold")
        measured = [name for name in summary.columns if any(name in summary.rows[one] for one in subjects)]
        for group, names in groupby(measured, key=lambda name: summary.parts[name][0]):
            table.add_row(Text(escaped(group), style="cyan"))
            for name in names:
                table.add_row(
                    Text(escaped(f"  {summary.parts[name][1]}")),
                    *(_text(summary.rows[one].get(name)) for one in subjects),
                )
        console.print(table)
        console.print()
    console.print(Text(LEGEND, style="dim"))


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    if cell.runs > 1:
        return f"{cell} ({cell.runs} runs)"
    return f"{cell} ({len(cell.results)})" if len(cell.results) > 1 else str(cell)
