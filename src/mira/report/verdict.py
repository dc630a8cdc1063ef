"""Did it work? Judged from the run's own numbers and from its floors."""

import math
from collections.abc import Sequence

from mira.evaluation.results import FLOORS, LEARNED, Result
from mira.evaluation.table import Row, tabulate
from mira.report.contents import Verdict
from mira.report.curves import Metrics, latest
from mira.training.collapse import MIN_INFORMATION, MIN_RANK


def judge(
    metrics: Metrics,
    results: Sequence[Result],
    *,
    in_use: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> Verdict:
    """One sentence on whether the run learned something.

    It is good when k-NN on the learned features is ahead of every floor in some setting and behind in none,
    each by more than one standard error of the accuracy.

    Args:
        in_use: prototypes that some picture belongs to, and prototypes in all.
        batch_size: a batch of N pictures cannot carry more than log N nats.
    """
    information, ceiling = latest(metrics, "label_mi"), latest(metrics, "label_mi_max")
    if information is None or not ceiling:
        return Verdict("unclear", "Too early to say: the run has not logged its labels yet.")
    reachable = min(ceiling, math.log(batch_size)) if batch_size and batch_size > 1 else ceiling
    carried = f"the pseudo-labels carry {information:.2f} of {reachable:.2f} nats"
    if information < MIN_INFORMATION * reachable:
        return Verdict("bad", f"No, the labels have collapsed: {carried}, so they say nothing about the pictures.")
    rank = latest(metrics, "feature_rank")
    if rank is not None and rank < MIN_RANK:
        return Verdict("bad", f"No, the features have collapsed: their effective rank is {rank:.1f}.")
    health = carried + (f" and {in_use[0]:,} of {in_use[1]:,} prototypes are in use" if in_use else "")
    compared = [row for row in tabulate(results) if _is_comparison(row)]
    if not compared:
        return Verdict(
            "unclear",
            f"Training is healthy: {health}. How good the features are is open: "
            "evaluate them beside their floors, and look at the neighbours below.",
        )
    ahead = [row for row in compared if _margin(row) > _standard_error(row)]
    behind = [row for row in compared if _margin(row) < -_standard_error(row)]
    if ahead and not behind:
        where = "in every k-NN setting" if len(ahead) == len(compared) else f"in {_of(ahead, compared)}"
        return Verdict("good", f"It worked: {health}, and the features beat their floors {where}: {_example(ahead)}.")
    if ahead:
        return Verdict(
            "unclear",
            f"Partly: {health}; the features beat their floors in {_of(ahead, compared)} ({_example(ahead)}) and "
            f"lose in {len(behind)} ({_example(behind)}).",
        )
    return Verdict(
        "bad",
        f"Not yet: {health}, but the features do not beat their floors in any k-NN setting: {_example(compared)}.",
    )


def _is_comparison(row: Row) -> bool:
    learned = row.cells.get(LEARNED)
    return learned is not None and bool(_floors(row)) and learned.newest.protocol == "knn"


def _floors(row: Row) -> dict[str, float]:
    return {name: cell.mean for name, cell in row.cells.items() if name in FLOORS}


def _margin(row: Row) -> float:
    """Points by which the learned features are ahead of the best floor."""
    return row.cells[LEARNED].mean - max(_floors(row).values())


def _standard_error(row: Row) -> float:
    """Of the accuracy, in points, as a share of the pictures that were classified."""
    share = row.cells[LEARNED].mean / 100
    return 100 * math.sqrt(share * (1 - share) / max(row.cells[LEARNED].newest.test_size, 1))


def _of(some: Sequence[Row], every: Sequence[Row]) -> str:
    return f"{len(some)} of {len(every)} k-NN settings"


def _example(rows: Sequence[Row]) -> str:
    """The setting of the widest margin, in words."""
    row = max(rows, key=lambda one: abs(_margin(one)))
    floors = " and ".join(
        f"{value:.1f} % from {name.replace('random', 'a random')}" for name, value in _floors(row).items()
    )
    learned = row.cells[LEARNED]
    settings = learned.newest.settings
    moved = f" on pictures moved by up to {row.shift} px" if row.shift else ""
    share = settings["fraction"]
    assert isinstance(share, int | float)
    labels = "all labels" if share == 1 else f"{100 * share:g} % of the labels"
    return f"{learned.mean:.1f} % with {labels}{moved} (k {settings['k']}), against {floors}"
