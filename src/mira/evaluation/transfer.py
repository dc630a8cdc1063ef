"""Linear transfer to the eleven data sets of Ericsson, Gouk and Hospedales (CVPR 2021, arXiv 2011.13377).

Logistic regression on frozen features of pictures without augmentation, the penalty chosen on validation pictures,
then fitted to training and validation pictures; each set with its own metric (section 4.1 of the paper).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from mira.evaluation.logistic import Examples, logistic_sweep, published_penalties
from mira.evaluation.metrics import mean_average_precision, mean_per_class_accuracy, top_k_accuracy
from mira.evaluation.results import Result
from mira.evaluation.subject import Compute, Score, Subject, Value
from mira.evaluation.transfer_pictures import Metric, SetPictures, TransferSet
from mira.evaluation.transfer_sets import NAMES, SetName, SetUnavailable, open_set, set_folder, set_metric, set_title
from mira.settings import Settings
from mira.wording import counted

_METRICS: dict[Metric, Callable[..., float]] = {
    "top-1": top_k_accuracy,
    "mean per class": mean_per_class_accuracy,
    "11-point mAP": mean_average_precision,
}


class TransferSettings(Settings):
    """The protocol of ssl-transfer."""

    sets: tuple[SetName, ...] = Field((), description="data sets to transfer to; all that are there by default")
    download: bool = Field(False, exclude=True, description="fetch data sets that are not there")
    skip_missing: bool = Field(False, exclude=True, description="leave out what is not there of the sets named")
    penalties: Annotated[int, Field(ge=1)] = Field(45, description="number of penalties to choose from")
    lowest: float = Field(-6, description="base-10 logarithm of the weakest penalty")
    highest: float = Field(5, description="base-10 logarithm of the strongest penalty")
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2,
        description="share of the training pictures that validate where a set has no validation pictures of its own",
    )
    tolerance: Annotated[float, Field(gt=0)] = Field(1e-4, description="relative gradient norm at which a fit ends")
    max_iterations: Annotated[int, Field(ge=1)] = Field(1000, description="of one fit")


def evaluate_transfer(
    subject: Subject, data_dir: Path, settings: TransferSettings, *, seed: int, compute: Compute
) -> list[Score]:
    """A score for each data set below torchvision's download root `data_dir`, and their mean.

    The short side of a picture is resized (bicubic) to the side of the backbone's input and the centre is cut, as
    published (both 224); what the subject resizes to otherwise does not matter here. Each picture goes through the
    backbone once: the sweep is on features.

    A set that is not there has no value and a note that says what to do; it is an error where `settings.sets` asks
    for it, unless `settings.skip_missing` says otherwise.

    Args:
        seed: draws validation pictures, and training pictures where a set has no division of its own.

    Raises:
        ValueError: a set that was asked for is not there, there is none at all, or features are not finite.
    """
    scores = [
        score
        for one in one_set_each(settings)
        for score in evaluate_set(subject, data_dir, one, seed=seed, compute=compute)
    ]
    return [*scores, mean_of_sets(scores)]


def one_set_each(settings: TransferSettings) -> list[TransferSettings]:
    """The same settings for each set by itself; sets that are not there may be left out where none was named."""
    skip = settings.skip_missing or not settings.sets
    return [settings.model_copy(update={"sets": (name,), "skip_missing": skip}) for name in settings.sets or NAMES]


def evaluate_set(
    subject: Subject, data_dir: Path, settings: TransferSettings, *, seed: int, compute: Compute
) -> list[Score]:
    """`evaluate_transfer` for the one set that the settings name, without a mean.

    Raises:
        SetUnavailable: the set is not there, and may not be left out.
    """
    (name,) = settings.sets
    resize = subject.preprocessing.size
    subject = replace(subject, preprocessing=replace(subject.preprocessing, resize=resize, interpolation="bicubic"))
    values = {"set": set_title(name), **settings.model_dump(mode="json", exclude={"sets"})}
    try:
        data = open_set(
            name,
            data_dir,
            channels=subject.preprocessing.channels,
            download=settings.download,
            validation_share=settings.validation,
            seed=seed,
        )
    except SetUnavailable as error:
        if not settings.skip_missing:
            raise
        metric = f"{set_title(name)}, {set_metric(name)}"
        return [Score(metric, None, values, train_size=0, test_size=0, note=str(error))]
    return [_transfer(subject, data, settings, values, compute)]


def mean_of_sets(scores: Sequence[Score | Result]) -> Score:
    """The mean over the sets that have a value; its note names those that have none.

    Raises:
        ValueError: none has.
    """
    found = [score for score in scores if score.value is not None]
    if not found:
        raise ValueError(
            f"none of the {counted(len(scores), 'data set')} is there; the first: {scores[0].note} Give the folder "
            "that torchvision keeps them in."
        )
    sets = [str(score.settings["set"]) for score in found]
    missing = [str(score.settings["set"]) for score in scores if score.value is None]
    return Score(
        metric="mean of the sets",
        value=fmean(score.value for score in found if score.value is not None),
        # By name: means over different sets are different measurements.
        settings={**found[0].settings, "set": "all" if len(found) == len(NAMES) else ", ".join(sorted(sets))},
        train_size=sum(score.train_size for score in found),
        test_size=sum(score.test_size for score in found),
        note=f"without {', '.join(missing)}" if missing else "",
    )


def set_files(settings: TransferSettings, data_dir: Path) -> list[str]:
    """The folders of the sets and how many files each holds: a set that was added or completed is another."""
    return sorted(
        f"{Path(folder).relative_to(data_dir)} {len(files)}"
        for name in settings.sets
        for folder, _, files in os.walk(set_folder(data_dir, name))
    )


def _transfer(
    subject: Subject, data: TransferSet, settings: TransferSettings, values: Mapping[str, Value], compute: Compute
) -> Score:
    """One set: two passes over pictures, one sweep."""
    learn, test = (_examples(subject, source, compute) for source in (data.learn, data.test))
    learned_from = len(learn.rows)
    validation = torch.from_numpy(data.validation)[learn.rows]
    parts = [
        Examples(features.to(compute.device), targets.to(compute.device))
        for features, targets in (
            (learn.features[~validation], learn.targets[~validation]),
            (learn.features[validation], learn.targets[validation]),
            (test.features, test.targets),
        )
    ]
    del learn  # as large as the two parts of it
    sweep = logistic_sweep(
        *parts,
        metric=_METRICS[data.metric],
        penalties=published_penalties(settings.penalties, settings.lowest, settings.highest),
        num_classes=len(data.learn.classes),
        tolerance=settings.tolerance,
        max_iterations=settings.max_iterations,
        progress=lambda done, total: compute.report(f"{subject.name}, {data.title}, sweep", done, total),
    )
    notes = [data.note] if data.note else []
    if sweep.unconverged:
        notes.append(
            f"{data.title}: stopped at {settings.max_iterations} iterations under {len(sweep.unconverged)} penalties."
        )
    return Score(
        metric=f"{data.title}, {data.metric}",
        value=sweep.value,
        settings=values,
        chosen={"l2": sweep.chosen, "validation_value": max(sweep.validation)},
        preprocessing=subject.preprocessing,
        train_size=learned_from,
        test_size=len(test.rows),
        note=" ".join(notes),
    )


class _Rows(NamedTuple):
    """Features of the readable pictures of a source, what they show, and which pictures they are."""

    features: Float[Tensor, "N D"]
    targets: Tensor
    rows: Int64[Tensor, " N"]


def _examples(subject: Subject, source: SetPictures, compute: Compute) -> _Rows:
    found = compute.features(subject, source, source.name)
    return _Rows(found.features, torch.from_numpy(source.targets)[found.indices], found.indices)
