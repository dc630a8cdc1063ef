"""Logistic regression on frozen features: the transfer protocol of Ericsson et al. (2021), ssl-transfer.

No augmentation; 45 penalties on logspace(-6, 5), one chosen on validation pictures; then a fit to training and
validation pictures together, measured on the test pictures. Of equally good penalties the smallest is taken, as
published. What `l2` means, and how a fit is found, stands in `logistic_solver`.

Every fit is converged. The published protocol gives scikit-learn 100 iterations from the previous fit, which under
weak penalties is far from the minimum; where such a penalty is the best one, numbers may differ for that reason.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from mira.data import PictureSource
from mira.evaluation.features import Features
from mira.evaluation.labelled import check_labels
from mira.evaluation.logistic_solver import LogisticFit, LogisticProblem, Targets, fit_logistic
from mira.evaluation.metrics import mean_per_class_accuracy, top_k_accuracy
from mira.evaluation.splits import hold_out, labels_of, num_classes
from mira.evaluation.subject import Compute, Score, Subject
from mira.settings import Settings
from mira.wording import counted

__all__ = ["Examples", "LogisticSettings", "LogisticSweep", "evaluate_logistic", "fit_logistic", "logistic_sweep"]

METRICS = {"top-1": top_k_accuracy, "mean per class": mean_per_class_accuracy}


class Examples(NamedTuple):
    """Features, and what they show: class numbers [N], or for every class whether it is there, bool [N, K]."""

    features: Float[Tensor, "N D"]
    targets: Targets


@dataclass(frozen=True)
class LogisticSweep:
    """What a sweep found.

    Attributes:
        penalties: in the order in which they were given.
        validation: the metric on the validation pictures under each.
        chosen: the best penalty; of equal ones the smallest.
        fit: the fit under it to training and validation pictures together.
        value: the metric on the test pictures.
        unconverged: penalties under which the solver stopped early; their values are what it had.
    """

    penalties: tuple[float, ...]
    validation: tuple[float, ...]
    chosen: float
    fit: LogisticFit
    value: float
    unconverged: tuple[float, ...]


def published_penalties(count: int = 45, lowest: float = -6, highest: float = 5) -> tuple[float, ...]:
    """`count` values from 10^lowest to 10^highest, evenly spaced in their logarithms."""
    return tuple(torch.logspace(lowest, highest, count, dtype=torch.float64).tolist())


def logistic_sweep(
    train: Examples,
    validation: Examples,
    test: Examples,
    *,
    metric: Callable[[Float[Tensor, "N K"], Targets], float] = top_k_accuracy,
    penalties: Sequence[float] | None = None,
    num_classes: int | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LogisticSweep:
    """Choose the penalty on `validation`, fit to `train` and `validation`, measure on `test`.

    The same function serves one label per picture (the softmax) and several (one logistic regression per class, as
    for VOC07 with `mean_average_precision` as the metric): the type of the targets decides. One penalty is chosen
    for all classes, as published.

    Args:
        train, validation, test: on one device, float32 or float64.
        metric: of scores [N, K] and targets; higher is better.
        penalties: `published_penalties()` unless given. Fits go from the strongest to the weakest, each from where
            those before it lead (`foreseen`).
        num_classes: K of one label per picture; by default the highest label anywhere and one.
        tolerance, max_iterations: see `LogisticProblem.fit`.
        progress: called with (fits done, fits in all).

    Raises:
        ValueError: no penalties, features of unequal width, no pictures in one of the three parts, and what
            `fit_logistic` and the metric raise.
    """
    penalties = published_penalties() if penalties is None else tuple(penalties)
    if not penalties:
        raise ValueError("penalties names no value: give at least one.")
    _check_parts(train, validation, test)
    if num_classes is None and train.targets.ndim == 1:
        num_classes = 1 + max(int(part.targets.max()) for part in (train, validation, test))
    if min(penalties) <= 0:
        raise ValueError(f"a penalty must be above 0, not {min(penalties)}.")
    problem = LogisticProblem(train.features, train.targets, num_classes=num_classes)
    fits: dict[float, LogisticFit] = {}
    values: dict[float, float] = {}
    for done, l2 in enumerate(sorted(set(penalties), reverse=True)):
        progress(done, len(penalties) + 1)
        start = foreseen(l2, fits)
        fits[l2] = problem.fit(l2, start=start, tolerance=tolerance, max_iterations=max_iterations)
        values[l2] = metric(fits[l2].logits(validation.features), validation.targets)
    chosen = max(sorted(values), key=values.__getitem__)
    progress(len(penalties), len(penalties) + 1)
    del problem  # its copy of the features
    both = Examples(*(torch.cat(pair) for pair in zip(train, validation, strict=True)))
    final = fit_logistic(
        both.features,
        both.targets,
        l2=chosen,
        num_classes=num_classes,
        start=fits[chosen],
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    progress(len(penalties) + 1, len(penalties) + 1)
    ends = [*fits.items(), (chosen, final)]
    return LogisticSweep(
        penalties=penalties,
        validation=tuple(values[l2] for l2 in penalties),
        chosen=chosen,
        fit=final,
        value=metric(final.logits(test.features), test.targets),
        unconverged=tuple(sorted({l2 for l2, fit in ends if not fit.converged})),
    )


def foreseen(l2: float, fits: Mapping[float, LogisticFit]) -> LogisticFit | None:
    """A start for a penalty: the parabola in log l2 through the last three of the fits, or the line through two.

    The solution is a smooth function of the penalty, so this is close, and closer than the last fit: the fewer
    iterations a sweep needs, by a quarter where fits are easy and to a quarter where classes are separable.
    """
    if not fits:
        return None
    known = list(fits)[-3:]
    # Lagrange's polynomial: of each fit the share that is one at its own penalty and zero at the others.
    shares = [
        math.prod(math.log(l2 / other) / math.log(own / other) for other in known if other != own) for own in known
    ]
    pairs = list(zip(shares, known, strict=True))
    weight = torch.stack([share * fits[own].weight for share, own in pairs]).sum(dim=0)
    bias = torch.stack([share * fits[own].bias for share, own in pairs]).sum(dim=0)
    return replace(fits[known[-1]], weight=weight, bias=bias)


class LogisticSettings(Settings):
    """Logistic regression with a sweep of the penalty; the defaults are those of ssl-transfer."""

    penalties: Annotated[int, Field(ge=1)] = Field(45, description="number of penalties to choose from")
    lowest: float = Field(-6, description="base-10 logarithm of the weakest penalty")
    highest: float = Field(5, description="base-10 logarithm of the strongest penalty")
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share of every class of the training pictures on which the penalty is chosen"
    )
    metric: Literal["top-1", "mean per class"] = Field("top-1", description="accuracy over pictures or over classes")
    tolerance: Annotated[float, Field(gt=0)] = Field(1e-4, description="relative gradient norm at which a fit ends")
    max_iterations: Annotated[int, Field(ge=1)] = Field(1000, description="of one fit")


def evaluate_logistic(
    subject: Subject,
    train: PictureSource,
    test: PictureSource,
    settings: LogisticSettings,
    *,
    seed: int,
    compute: Compute,
) -> list[Score]:
    """The protocol on the frozen features of two labelled sources; `seed` draws the validation pictures.

    Raises:
        ValueError: labels missing, only one class, too few pictures, or features that are not finite.
    """
    check_labels("logistic regression", train, test)
    bank = compute.features(subject, train, "training pictures")
    queries = compute.features(subject, test, "test pictures")
    kept, held = hold_out(labels_of(bank), settings.validation, seed=seed)
    parts = [_examples(part, compute.device) for part in (bank.rows(kept), bank.rows(held), queries)]
    learned_from = len(bank)
    del bank  # as large as the two parts of it
    sweep = logistic_sweep(
        *parts,
        metric=METRICS[settings.metric],
        penalties=published_penalties(settings.penalties, settings.lowest, settings.highest),
        num_classes=num_classes(train, test),
        tolerance=settings.tolerance,
        max_iterations=settings.max_iterations,
        progress=lambda done, total: compute.report(f"{subject.name}, logistic regression", done, total),
    )
    return [
        Score(
            metric=settings.metric,
            value=sweep.value,
            settings=settings.model_dump(mode="json"),
            chosen={"l2": sweep.chosen, "validation_value": max(sweep.validation)},
            train_size=learned_from,
            test_size=len(queries),
            note=_note(sweep, settings.max_iterations),
        )
    ]


def _note(sweep: LogisticSweep, max_iterations: int) -> str:
    """Which fits ended before their time, and whether the result is one of them."""
    if not sweep.unconverged:
        return ""
    under = counted(len(sweep.unconverged), "penalty", "penalties")
    which = "the chosen one among them" if sweep.chosen in sweep.unconverged else "not the chosen one"
    return f"stopped at {max_iterations} iterations under {under}, {which}"


def _examples(features: Features, device: torch.device) -> Examples:
    moved = features.to(device)
    return Examples(moved.features, labels_of(moved))


def _check_parts(train: Examples, validation: Examples, test: Examples) -> None:
    for name, part in (("validation", validation), ("test", test)):
        if len(part.features) == 0:
            raise ValueError(f"there are no {name} pictures: the sweep needs training, validation and test pictures.")
        if part.features.shape[1] != train.features.shape[1]:
            raise ValueError(
                f"training features are {train.features.shape[1]} wide and {name} features "
                f"{part.features.shape[1]}: all must come from the same backbone."
            )
