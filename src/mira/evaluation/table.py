"""Results side by side: one row for each setting, one column for each kind of features."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mira.escaping import escaped
from mira.evaluation.naming import describe, distinguishing, pass_of, run_of, shift_of, shortest, title
from mira.evaluation.results import FLOORS, LEARNED, PIXELS, RANDOM, Result


@dataclass(frozen=True)
class Cell:
    """What one kind of features gives in one setting, over seeds.

    Attributes:
        results: the newest of each seed; all have a value. They may be of several runs that differ in the seed of
            their pretraining alone: then each run counts once, with its mean.
    """

    results: tuple[Result, ...]

    @property
    def newest(self) -> Result:
        """One of them, for what they have in common."""
        return self.results[-1]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self._values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (of the sample, n - 1); None for one seed."""
        return statistics.stdev(self._values) if len(self._values) > 1 else None

    @property
    def runs(self) -> int:
        """How many runs the results are of."""
        return len(set(map(run_of, self.results)))

    @property
    def _values(self) -> list[float]:
        by_run: dict[str, list[float]] = {}
        for result in self.results:
            if result.value is not None:
                by_run.setdefault(run_of(result), []).append(result.value)
        if len(by_run) > 1:
            return [statistics.fmean(values) for values in by_run.values()]
        return next(iter(by_run.values()), [])

    def __str__(self) -> str:
        """As printed: "71.3" or "71.3 ± 0.2"; measures that are no percentages with two decimals."""
        decimals = 2 if self.newest.protocol == "health" else 1
        spread = "" if self.deviation is None else f" ± {self.deviation:.{decimals}f}"
        # Adding 0 makes a negative zero, of an index below chance by a rounding error, an ordinary one.
        return f"{round(self.mean, decimals) + 0.0:.{decimals}f}{spread}"


@dataclass(frozen=True)
class Row:
    """One setting of one protocol.

    Attributes:
        group: what neighbouring rows share, such as "k-NN, 10 % of the labels".
        setting: what sets this row apart, such as "k 20".
        shift: by how many pixels the test pictures were moved at most.
        cells: by kind of features.
    """

    group: str
    setting: str
    shift: int
    cells: dict[str, Cell]

    @property
    def title(self) -> str:
        """The group in full."""
        return self.group + (f", moved by ≤ {self.shift} px" if self.shift else "")

    @property
    def best(self) -> frozenset[str]:
        """The features with the row's highest value as printed: several if equal, none if alone.

        None in a row of health either: there more is not better.
        """
        values = {name: round(cell.mean, 1) for name, cell in self.cells.items()}
        if len(values) < 2 or any(cell.newest.protocol == "health" for cell in self.cells.values()):
            return frozenset()
        return frozenset(name for name, value in values.items() if value == max(values.values()))


def tabulate(results: Sequence[Result]) -> list[Row]:
    """Sort results into rows: unmoved pictures first, otherwise in the order in which settings first appear.

    Of results of the same setting and seed the last counts. Those of learned features from another checkpoint, or
    with another input size or precision, than the last one evaluated are left out, so that a row never mixes two
    states of a run. Settings without any value have no row (`notes` says why).
    """
    current = newest(results)
    data = shortest(result.data for result in current)
    tell_apart = distinguishing(current)
    groups: dict[tuple[int, str], dict[str, dict[str, dict[int, Result]]]] = {}
    for result in sorted(current, key=shift_of):  # stable: only brings unmoved pictures first
        if result.value is None:
            continue
        group, setting = describe(result, tell_apart[result.protocol])
        if len(data) > 1:
            group += f", {data[result.data]}"
        cells = groups.setdefault((shift_of(result), group), {}).setdefault(setting, {})
        cells.setdefault(result.features, {})[result.seed] = result
    return [
        Row(group, setting, shift, {name: Cell(tuple(seeds.values())) for name, seeds in cells.items()})
        for (shift, group), rows in groups.items()
        for setting, cells in rows.items()
    ]


def newest(results: Sequence[Result]) -> list[Result]:
    """Of every kind of learned features only those from the checkpoint, weights and input that were evaluated last."""
    last = {result.features: (result.checkpoint, result.checkpoint_hash, pass_of(result)) for result in results}
    return [
        result
        for result in results
        if result.features in FLOORS
        or (result.checkpoint, result.checkpoint_hash, pass_of(result)) == last[result.features]
    ]


def kinds(rows: Sequence[Row]) -> list[str]:
    """The kinds of features in the rows: floors first, the learned ones last."""
    present = dict.fromkeys(name for row in rows for name in row.cells)
    known = [name for name in (PIXELS, RANDOM) if name in present]
    others = [name for name in present if name not in (PIXELS, RANDOM, LEARNED)]
    return known + others + ([LEARNED] if LEARNED in present else [])


def notes(results: Sequence[Result]) -> list[str]:
    """What a reader of the table must know besides, and why a value is missing."""
    lines = []
    temperatures = {one.settings.get("temperature") for one in results if one.protocol == "knn"}
    if temperatures:
        shown = ", ".join(sorted(f"{value:g}" for value in temperatures if isinstance(value, float | int)))
        lines.append(f"k-NN: top-1 accuracy of weighted votes, T {shown}.")
    if any(one.protocol == "clusters" for one in results):
        lines.append("Clusters: of the test pictures; the number of classes is given to k-means, no label is.")
    short = shortest(one.data for one in results)
    sizes = dict.fromkeys((short[one.data], one.test_size) for one in results)
    tested = ", ".join(f"{name}: {size:,} test pictures" for name, size in sizes)
    seeds = sorted({one.seed for one in results})
    spread = "; mean ± standard deviation over seeds" if len(seeds) > 1 else "; seed"
    lines.append(f"{tested}{spread} {', '.join(map(str, seeds))}.")
    unreadable = max(one.unreadable for one in results)
    if unreadable:
        lines.append(f"{unreadable:,} pictures could not be read and were left out.")
    return lines + list(dict.fromkeys(f"{title(one.protocol)}: {one.note}" for one in results if one.note))


def cell_text(row: Row, kind: str) -> str:
    """A value as printed, a dash where there is none."""
    return str(row.cells[kind]) if kind in row.cells else "–"


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """Print results as a table that fits 80 columns; the best of each row is bold."""
    console = console or Console()
    rows = tabulate(results)
    if not rows:
        console.print("There are no results to show.")
        for line in dict.fromkeys(result.note for result in results if result.note):
            console.print(Text(escaped(line), style="dim"))
        return
    columns = kinds(rows)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("percent" if all(result.protocol != "health" for result in results) else "")
    for kind in columns:
        table.add_column(Text(escaped(kind)), justify="right", overflow="fold")
    group = None
    for row in rows:
        if row.title != group:
            group = row.title
            table.add_row(Text(escaped(group), style="cyan"))
        table.add_row(
            Text(escaped(f"  {row.setting}")),
            *(Text(cell_text(row, kind), style="bold green" if kind in row.best else "") for kind in columns),
        )
    console.print(table)
    for line in notes(results):
        console.print(Text(escaped(line), style="dim"))
