"""Which curves of a run are shown, and how to read each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mira.assignment.information import max_information
from mira.report.charts import Series, line_chart, number
from mira.report.contents import Chart

Metrics = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Curve:
    key: str
    title: str
    unit: str
    reading: str
    bound: Literal["", "information", "evenness"] = ""  # what it cannot exceed
    zero: bool = False


_CURVES = (
    _Curve(
        "loss",
        "Loss",
        "nats",
        "Cross-entropy of the student's predictions with the pseudo-labels. It should fall quickly, then slowly, "
        "and need not come near 0: its floor is the labels' own entropy.",
    ),
    _Curve(
        "label_mi",
        "Label information",
        "nats",
        "Mutual information of pseudo-labels and pictures: how much a label says about its picture. The dashed line is "
        "the most there can be, the logarithm of the number of prototypes or of the batch, whichever is smaller: there "
        "every label is certain, and all are used alike. Near 0 the run has collapsed.",
        bound="information",
        zero=True,
    ),
    _Curve(
        "marginal_entropy",
        "Evenness of the prototypes",
        "nats",
        "Entropy of the label marginal. At the dashed line, log K, all prototypes are used alike; MIRA "
        "encourages that and does not force it. A falling curve means that prototypes die out.",
        bound="evenness",
        zero=True,
    ),
    _Curve(
        "feature_rank",
        "Feature rank",
        "directions",
        "Effective rank (RankMe) of a batch's features: how many directions they spread over. Near 1 all pictures "
        "look alike to the backbone. More is not always better, but a steep fall is a warning.",
        zero=True,
    ),
    _Curve(
        "knn",
        "k-NN while training",
        "% correct",
        "Share of held-out training pictures whose neighbours name the right class. Labels serve this curve "
        "alone. It follows the run and is no test accuracy: that is in the table of evaluations.",
    ),
    _Curve(
        "lr",
        "Learning rate",
        "",
        "Rises during warm-up, then follows a cosine to its end. A loss that jumps while this is high asks for a "
        "lower peak or a longer warm-up.",
        zero=True,
    ),
    _Curve(
        "beta",
        "Weight of the information, beta",
        "",
        "0 would leave the teacher's own predictions as labels; towards 1 labels become certain one by one and "
        "even over the batch.",
    ),
    _Curve(
        "pictures_per_second",
        "Speed",
        "pictures / s",
        "Dips are other work on the machine, evaluations and checkpoints.",
        zero=True,
    ),
)


def curves(metrics: Metrics, *, prototypes: int, batch_size: int) -> tuple[Chart, ...]:
    """Charts of every curve with at least one value, over epochs (over steps where lines give no epoch).

    Args:
        prototypes: K.
        batch_size: N; with K it bounds what labels can say.
    """
    bounds = {
        "information": ("most there can be", max_information(prototypes, batch_size)),
        "evenness": ("log K", math.log(prototypes)),
    }
    by_epoch = all("epoch" in line for line in metrics)
    xs = [float(line["epoch" if by_epoch else "step"]) for line in metrics]
    charts = []
    for curve in _CURVES:
        series = Series.of(curve.title, xs, [_value(line, curve.key) for line in metrics])
        if series.last is None:
            continue
        name, ceiling = bounds.get(curve.bound, ("", 0.0))
        svg = line_chart(
            [series],
            title=curve.title,
            x_label="epoch" if by_epoch else "step",
            y_label=curve.unit,
            ceiling=(f"{name}: {ceiling:.2f}", ceiling) if ceiling else None,
            zero=curve.zero,
        )
        last = f"{number(series.last)} {curve.unit}".strip()
        if ceiling:
            last += f", {100 * series.last / ceiling:.0f} % of {ceiling:.2f}"
        charts.append(Chart(curve.title, svg, last, curve.reading))
    return tuple(charts)


def latest(metrics: Metrics, key: str) -> float | None:
    """The newest value of a metric, or None where no line has it."""
    return next((value for line in reversed(metrics) if (value := _value(line, key)) is not None), None)


def values_of(metrics: Metrics, key: str) -> list[float]:
    """The finite values of a metric, in order."""
    return [value for line in metrics if (value := _value(line, key)) is not None and math.isfinite(value)]


def mean(metrics: Metrics, key: str) -> float | None:
    """Of a metric over its lines, or None where no line has it."""
    values = values_of(metrics, key)
    return math.fsum(values) / len(values) if values else None


def training_seconds(metrics: Metrics, batch_size: int) -> float | None:
    """Time spent on training steps, from the speed on each line, so that pauses between resumes do not count."""
    total, before = 0.0, 0
    for line in metrics:
        speed = _value(line, "pictures_per_second")
        if speed:
            total += (int(line["step"]) - before) * batch_size / speed
            before = int(line["step"])
    return total or None


def _value(line: Mapping[str, Any], key: str) -> float | None:
    value = line.get(key)
    return float(value) if isinstance(value, int | float) else None
