"""Did it work? Judged from the run's own numbers and from its baselines."""

import math
from collections.abc import Sequence

from mira.evaluation.results import FLOORS, LEARNED, Result
from mira.evaluation.table import Row, tabulate
from mira.report.contents import Verdict
from mira.report.curves import Metrics, latest, values_of
from mira.report.gallery import PrototypeUse
from mira.training.collapse import MIN_INFORMATION, MIN_RANK
from mira.wording import command, counted

LOW_INFORMATION = 0.15
"""Share of the reachable label information below which labels say little about images."""
FEW_USED = 1 / 3
"""Share of the prototypes (or of the images, if these are fewer) in use, at or below which most are idle."""
FEW_HOLD_HALF = 1 / 16
"""Share of the prototypes at or below which it is too few that hold half of the images."""
FALLING = 0.75
"""Label information at the end, as a share of that in the middle of the run, below which it falls."""
_LINES = 20  # fewer show no trend


def judge(
    metrics: Metrics,
    results: Sequence[Result],
    *,
    reachable: float,
    learned: str = LEARNED,
    use: PrototypeUse | None = None,
    run: object = "RUN",
    remedies: Sequence[str] = (),
) -> Verdict:
    """Whether the run learned something, and what to do next.

    It is good when k-NN on the learned features is ahead of every baseline in some setting and behind in none, each by
    more than one standard error of the accuracy, and the run's own numbers have no weak point.

    Args:
        reachable: the most that labels can say, in nats (`max_information` of prototypes and batch).
        learned: the run's features in `results`.
        use: how images spread over the prototypes.
        run: its folder, for commands.
        remedies: overrides that help against collapsed labels.
    """
    information = latest(metrics, "label_mi")
    if information is None or not math.isfinite(information):
        return Verdict("unclear", "Too early to say", "The run has not logged its labels yet.")
    carried = f"the pseudo-labels carry {information:.2f} of {reachable:.2f} nats"
    if information < MIN_INFORMATION * reachable:
        return Verdict(
            "bad",
            "Failed",
            f"The labels have collapsed: {carried}, so they say nothing about the images. Train again with "
            f"{' '.join(remedies) or 'a lower learning rate'}.",
        )
    rank = latest(metrics, "feature_rank")
    if rank is not None and rank < MIN_RANK:
        return Verdict(
            "bad",
            "Failed",
            f"The features have collapsed: their effective rank is {rank:.1f}, so all images look alike to the "
            "backbone. Train again with a lower learning rate.",
        )
    health = carried + (f" and {use.used:,} of {use.prototypes:,} prototypes are in use" if use else "")
    weak = _weak_points(metrics, information / reachable, use)
    but = f" But {'; '.join(weak)}." if weak else ""
    compared = [row for row in tabulate(results) if _is_comparison(row, learned)]
    if not compared:
        ask = f"Measure the features beside baselines on labelled images: {command('evaluate', 'knn', run, '--floors')}"
        if weak:
            return Verdict("unclear", "Unclear, with weak points", f"{_sentence(health)}{but} {ask}.")
        return Verdict(
            "unclear", "Unclear", f"Training looks healthy: {health}. How good the features are it cannot say. {ask}."
        )
    ahead = [row for row in compared if _margin(row, learned) > _standard_error(row, learned)]
    behind = [row for row in compared if _margin(row, learned) < -_standard_error(row, learned)]
    if ahead and not behind:
        where = (
            "in every k-NN setting" if len(ahead) == len(compared) else f"in {_of(ahead, compared)} and lose in none"
        )
        won = f"The features beat their baselines {where}: {_example(ahead, learned)}. {_sentence(health)}{but}"
        return Verdict("unclear", "Mixed result", won) if weak else Verdict("good", "It worked", won)
    if ahead:
        return Verdict(
            "unclear",
            "Mixed result",
            f"The features beat their baselines in {_of(ahead, compared)} ({_example(ahead, learned)}) and lose in "
            f"{len(behind)} ({_example(behind, learned)}). {_sentence(health)}{but}",
        )
    return Verdict(
        "bad",
        "Failed",
        "The features are not clearly ahead of their baselines (by more than one standard error) in any k-NN setting: "
        f"{_example(compared, learned)}. {_sentence(health)}{but} Train longer or on more images, or begin with "
        "pretrained weights (the recipe continue-from-timm).",
    )


def _weak_points(metrics: Metrics, share: float, use: PrototypeUse | None) -> list[str]:
    """What the run's own numbers speak against it with, though nothing has collapsed."""
    found = []
    if share < LOW_INFORMATION:
        found.append(f"that is {100 * share:.0f} % of the label information there can be, which is little")
    middle, end = _middle_and_end(values_of(metrics, "label_mi"))
    if end < FALLING * middle:
        found.append(
            f"the label information still falls: {middle:.2f} nats in the middle of the run, {end:.2f} at the end"
        )
    if use is not None:
        possible = min(use.prototypes, use.images)
        if use.used <= FEW_USED * possible or use.used < 2:
            found.append("most prototypes are idle")
        if use.half <= FEW_HOLD_HALF * possible:
            few = counted(use.half, "prototype holds" if use.half == 1 else "prototypes hold", "prototypes hold")
            found.append(f"{few} {100 * use.half_share:.0f} % of the images")
    return found


def _middle_and_end(values: Sequence[float]) -> tuple[float, float]:
    """Means over the middle fifth and over the last tenth; zeros where there are too few values for a trend."""
    count = len(values)
    if count < _LINES:
        return 0.0, 0.0
    middle, end = values[2 * count // 5 : 3 * count // 5], values[-(count // 10) :]
    return math.fsum(middle) / len(middle), math.fsum(end) / len(end)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _is_comparison(row: Row, learned: str) -> bool:
    cell = row.cells.get(learned)
    return cell is not None and bool(_baselines(row)) and cell.newest.protocol == "knn"


def _baselines(row: Row) -> dict[str, float]:
    return {name: cell.mean for name, cell in row.cells.items() if name in FLOORS}


def _margin(row: Row, learned: str) -> float:
    """Points by which the learned features are ahead of the best baseline."""
    return row.cells[learned].mean - max(_baselines(row).values())


def _standard_error(row: Row, learned: str) -> float:
    """Of the accuracy, in points, as a share of the images that were classified."""
    share = row.cells[learned].mean / 100
    return 100 * math.sqrt(share * (1 - share) / max(row.cells[learned].newest.test_size, 1))


def _of(some: Sequence[Row], every: Sequence[Row]) -> str:
    return f"{len(some)} of {len(every)} k-NN settings"


def _example(rows: Sequence[Row], learned: str) -> str:
    """The setting of the widest margin, in words."""
    row = max(rows, key=lambda one: abs(_margin(one, learned)))
    baselines = " and ".join(
        f"{value:.1f} % from {name.replace('random', 'a random')}" for name, value in _baselines(row).items()
    )
    cell = row.cells[learned]
    settings = cell.newest.settings
    moved = f" on images moved by up to {row.shift} px" if row.shift else ""
    share = settings["fraction"]
    assert isinstance(share, int | float)
    labels = "all labels" if share == 1 else f"{100 * share:g} % of the labels"
    return f"{cell.mean:.1f} % with {labels}{moved} (k {settings['k']}), against {baselines}"
