"""Results side by side: one row for each setting, one column for each kind of features."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mira.evaluation.results import LEARNED, PIXELS, RANDOM, Result


@dataclass(frozen=True)
class Row:
    """One setting of one protocol.

    Attributes:
        group: what neighbouring rows share, such as "k-NN, 10 % of the labels".
        setting: what sets this row apart, such as "k 20".
        shift: by how many pixels the test pictures were moved at most.
        cells: the results by kind of features.
    """

    group: str
    setting: str
    shift: int
    cells: dict[str, Result]

    @property
    def title(self) -> str:
        """The group in full."""
        return self.group + (f", moved by ≤ {self.shift} px" if self.shift else "")

    @property
    def best(self) -> frozenset[str]:
        """The features with the row's highest value as printed: several if equal, none if alone."""
        values = {name: round(cell.value, 1) for name, cell in self.cells.items() if cell.value is not None}
        if len(values) < 2:
            return frozenset()
        return frozenset(name for name, value in values.items() if value == max(values.values()))


def tabulate(results: Sequence[Result]) -> list[Row]:
    """Sort results into rows: unmoved pictures first, otherwise in the order in which settings first appear.

    Of results of the same setting the last counts. Those of learned features from other checkpoints than the
    last one evaluated are left out, so that a row never mixes two states of a run. Settings without any value
    have no row (`notes` says why).
    """
    learned = [result.checkpoint for result in results if result.features == LEARNED]
    current = [result for result in results if result.features != LEARNED or result.checkpoint == learned[-1]]
    several_data = len({result.data for result in current}) > 1
    several_seeds = len({result.seed for result in current}) > 1
    groups: dict[tuple[int, str], dict[str, dict[str, Result]]] = {}
    for result in sorted(current, key=lambda result: result.shift):  # stable: only brings unmoved pictures first
        if result.value is None:
            continue
        group = _group(result)
        if several_data:
            group += f", {result.data}"
        if several_seeds:
            group += f", seed {result.seed}"
        setting = f"k {result.k}" if result.protocol == "k-NN" else result.metric
        groups.setdefault((result.shift, group), {}).setdefault(setting, {})[result.features] = result
    return [
        Row(group, setting, shift, cells) for (shift, group), rows in groups.items() for setting, cells in rows.items()
    ]


def kinds(rows: Sequence[Row]) -> list[str]:
    """The kinds of features in the rows: floors first, the learned ones last."""
    present = dict.fromkeys(name for row in rows for name in row.cells)
    known = [name for name in (PIXELS, RANDOM) if name in present]
    others = [name for name in present if name not in (PIXELS, RANDOM, LEARNED)]
    return known + others + ([LEARNED] if LEARNED in present else [])


def notes(results: Sequence[Result]) -> list[str]:
    """What a reader of the table must know besides, and why a value is missing."""
    cells = list(results)
    lines = []
    temperatures = sorted({cell.temperature for cell in cells if cell.temperature is not None})
    if temperatures:
        lines.append(
            "k-NN: top-1 accuracy of weighted votes, T " + ", ".join(f"{value:g}" for value in temperatures) + "."
        )
    if any(cell.protocol != "k-NN" for cell in cells):
        lines.append("Clusters: of the test pictures; the number of classes is given to k-means, no label is.")
    tested = ", ".join(
        f"{name}: {size:,} test pictures"
        for name, size in dict.fromkeys((cell.data, cell.query_size) for cell in cells)
    )
    lines.append(f"{tested}; seed " + ", ".join(str(seed) for seed in sorted({cell.seed for cell in cells})) + ".")
    unreadable = max(cell.unreadable for cell in cells)
    if unreadable:
        lines.append(f"{unreadable:,} pictures could not be read and were left out.")
    return lines + list(dict.fromkeys(cell.note for cell in cells if cell.note))


def cell_text(row: Row, kind: str) -> str:
    """A value as printed: percent with one decimal, a dash where there is none."""
    cell = row.cells.get(kind)
    return "–" if cell is None or cell.value is None else f"{cell.value:.1f}"


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """Print results as a table that fits 80 columns; the best of each row is bold."""
    console = console or Console()
    rows = tabulate(results)
    if not rows:
        console.print("There are no results to show.")
        return
    columns = kinds(rows)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("percent")
    for kind in columns:
        table.add_column(kind, justify="right", no_wrap=True)
    group = None
    for row in rows:
        if row.title != group:
            group = row.title
            table.add_row(Text(group, style="cyan"))
        table.add_row(
            f"  {row.setting}",
            *(Text(cell_text(row, kind), style="bold green" if kind in row.best else "") for kind in columns),
        )
    console.print(table)
    for line in notes(results):
        console.print(Text(line, style="dim"))


def _group(result: Result) -> str:
    if result.protocol == "k-NN":
        return f"k-NN, {100 * result.fraction:g} % of labels ({result.bank_size:,})"
    return f"{result.protocol}, {result.k:,} clusters"
