"""Many results as one table: a row for each backbone, a column for each measurement."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mira.evaluation.results import FLOORS, Result, read_results
from mira.evaluation.table import Cell, describe, distinguishing, pass_of, shift_of

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Summary:
    """Results by backbone and measurement.

    Attributes:
        columns: what was measured, in words.
        rows: (features, checkpoint) to cells by column.
    """

    columns: tuple[str, ...]
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
    found = [result for file in dict.fromkeys(files) for result in read_results(file)]
    if not found:
        places = ", ".join(map(str, asked))
        raise ValueError(f"there are no results in {places}: `mira evaluate knn RUN` makes some.")
    return found


def summarise(results: Sequence[Result]) -> Summary:
    """Put results into rows and columns; of the same setting and seed the last counts."""
    # Of weights that were replaced under the same name, only the last ones: other weights are not another seed.
    weights = {(result.features, result.checkpoint): result.checkpoint_hash for result in results}
    results = [
        result
        for result in results
        if result.features in FLOORS or result.checkpoint_hash == weights[result.features, result.checkpoint]
    ]
    passes: dict[tuple[str, str], set[str]] = {}
    for result in results:
        passes.setdefault((result.features, result.checkpoint), set()).add(pass_of(result))
    several_data = len({result.data for result in results}) > 1
    tell_apart = distinguishing(results)
    columns: dict[str, None] = {}
    seeds: dict[tuple[str, str], dict[str, dict[int, Result]]] = {}
    for result in results:
        if result.value is None:
            continue
        group, setting = describe(result, tell_apart[result.protocol])
        shift = f", moved by ≤ {shift_of(result)} px" if shift_of(result) else ""
        column = f"{group}{shift}, {setting}" + (f", {result.data}" if several_data else "")
        columns.setdefault(column)
        several = len(passes[result.features, result.checkpoint]) > 1
        way = f", {pass_of(result)}" if several and pass_of(result) else ""
        row = seeds.setdefault((result.features, result.checkpoint + way), {})
        row.setdefault(column, {})[result.seed] = result
    # Floors first, as in the tables of single runs.
    order = sorted(seeds, key=lambda row: row[0] not in FLOORS)
    rows = {row: {name: Cell(tuple(by.values())) for name, by in seeds[row].items()} for row in order}
    return Summary(tuple(columns), rows)


def as_markdown(summary: Summary) -> str:
    """A Markdown table with one column for each measurement; "mean ± standard deviation (seeds)"."""
    head = ["features", "checkpoint", *summary.columns]
    lines = [head, ["---"] * 2 + ["---:"] * len(summary.columns)]
    for (features, checkpoint), cells in summary.rows.items():
        lines.append([features, checkpoint, *(_text(cells.get(name)) for name in summary.columns)])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def as_csv(summary: Summary) -> str:
    """One line for each backbone and measurement, for programs: mean, standard deviation, number of seeds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("features", "checkpoint", "hash", "protocol", "data", "measurement", "mean", "sd", "seeds")
    writer.writerow(head)
    for (features, checkpoint), cells in summary.rows.items():
        for column, cell in cells.items():
            one = cell.newest
            deviation = "" if cell.deviation is None else f"{cell.deviation:.6g}"
            measured = (f"{cell.mean:.6g}", deviation, len(cell.results))
            writer.writerow((features, checkpoint, one.checkpoint_hash, one.protocol, one.data, column, *measured))
    return text.getvalue()


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """For a terminal, which is higher than wide: a line for each measurement, a column for each backbone."""
    console = console or Console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for features, checkpoint in summary.rows:
        table.add_column(f"{features}\n{_short(checkpoint)}", justify="right", overflow="fold")
    for column in summary.columns:
        table.add_row(column, *(_text(cells.get(column)) for cells in summary.rows.values()))
    console.print(table)


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return f"{cell} ({len(cell.results)})" if len(cell.results) > 1 else str(cell)


def _short(checkpoint: str) -> str:
    """The end of a path says which run it is."""
    path, at, step = checkpoint.partition(" at step ")
    return Path(path).name + at + step
