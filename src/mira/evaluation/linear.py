"""The linear probe, by the protocol of MIRA's authors (eval_linear): a linear classifier on a frozen backbone.

Training pictures are cut at random (RandomResizedCrop, flip) anew in every epoch and go through the backbone in
evaluation mode; the classifier learns by SGD with momentum, its learning rate a cosine that is set once an epoch.
Test pictures are resized and cut at the centre. `linear_fast` is the same without the random cuts, in one pass.

With several learning rates, classifiers learn side by side from the same features, and the one to report is chosen
on training pictures that none of them learns from; never on the test pictures.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from mira.data import PictureSource, PictureSubset
from mira.evaluation.augmented import RandomCrops, epoch_order
from mira.evaluation.features import every, extract_features
from mira.evaluation.heads import Heads, best, cosine
from mira.evaluation.labelled import check_labels, check_room
from mira.evaluation.saved_state import SavedState
from mira.evaluation.splits import hold_out, labels_of, num_classes
from mira.evaluation.subject import Compute, Score, Subject
from mira.settings import Settings

_AHEAD = 64  # batches whose features are in memory at a time: 0.5 GB at batch 1024 and width 2048


class LinearSettings(Settings):
    """The linear probe; the defaults are the authors' for ImageNet."""

    epochs: Annotated[int, Field(ge=1)] = Field(100, description="passes over the training pictures")
    batch_size: Annotated[int, Field(ge=1)] = Field(1024, description="pictures to a step")
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = Field(
        (0.075,), description="for 256 pictures to a step; of several, one is chosen on held-out training pictures"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of SGD")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="of SGD")
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = Field(
        0.08, description="smallest share of a training picture that a random crop takes"
    )
    flip: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="probability that a training picture is flipped")
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of the training pictures held out, where there are several learning rates"
    )


def evaluate_linear(
    subject: Subject,
    train: PictureSource,
    test: PictureSource,
    settings: LinearSettings,
    *,
    seed: int,
    compute: Compute,
    folder: Path | None = None,
) -> list[Score]:
    """The protocol on two labelled sources. The backbone stays as it is, bit for bit.

    Args:
        seed: of the classifier's start, the order of the pictures, their cuts, and the held-out part.
        folder: keeps the state of the training after each epoch, so that a stopped evaluation goes on; the caller
            removes it when the scores are safe.

    Returns:
        The accuracy of the chosen classifier, then, where there are several, that of each under its learning rate.

    Raises:
        ValueError: labels missing, only one class, too few pictures, none that can be read, or training diverged.
    """
    check_labels("the linear probe", train, test)
    check_room("the linear probe", train)
    assert train.labels is not None
    kept = torch.arange(len(train))
    held = kept[:0]
    if len(settings.learning_rates) > 1:
        kept, held = hold_out(torch.as_tensor(train.labels), settings.validation, seed=seed)
    pictures = PictureSubset(train, kept.numpy())
    state = SavedState(folder, "linear", settings, subject, pictures, seed)
    heads = train_heads(
        subject, pictures, settings, classes=num_classes(train, test), seed=seed, compute=compute, state=state
    )
    validation: list[float | None] = [None] * len(settings.learning_rates)
    if len(held):
        choosing = compute.features(subject, PictureSubset(train, held.numpy()), "held-out training pictures")
        validation = heads.accuracies(choosing.features, labels_of(choosing))
    queries = compute.features(subject, test, "test pictures")
    accuracies = heads.accuracies(queries.features, labels_of(queries))
    chosen = best(validation if len(held) else accuracies)

    batch_size = min(settings.batch_size, len(pictures))
    few = "" if batch_size == settings.batch_size else f"batch {batch_size}: there are no more training pictures"
    rates = settings.learning_rates
    reported = [("top-1", chosen)]
    if len(rates) > 1:
        # The chosen one too: over seeds, means of the others alone would be of the seeds where a rate was not the best.
        reported += [(f"top-1, learning rate {rate:g}", number) for number, rate in enumerate(rates)]
    return [
        Score(
            metric=metric,
            value=accuracies[number],
            settings=settings.model_dump(mode="json") | {"batch_size": batch_size},
            chosen={"learning_rate": rates[number], "validation_value": validation[number]},
            train_size=len(pictures),
            test_size=len(queries),
            note=few if accuracies[number] is not None else "diverged: its weights are not finite",
        )
        for metric, number in reported
    ]


def train_heads(
    subject: Subject,
    pictures: PictureSource,
    settings: LinearSettings,
    *,
    classes: int,
    seed: int,
    compute: Compute,
    state: SavedState,
) -> Heads:
    """Train one classifier for each learning rate; `state` is read at the start and written after each epoch."""
    device = compute.device
    batch_size = min(settings.batch_size, len(pictures))
    rates = torch.tensor(settings.learning_rates, device=device) * (batch_size / 256)
    decays = torch.full_like(rates, settings.weight_decay)
    heads: Heads | None = None
    done = 0
    if (saved := state.read()) is not None:
        heads, done = Heads(**{name: value.to(device) for name, value in saved["heads"].items()}), saved["epochs"]
    for epoch in range(done, settings.epochs):
        compute.report(f"{subject.name}, linear probe, epochs", epoch, settings.epochs)
        for features, labels in _epoch(subject, pictures, settings, batch_size, seed, epoch, compute):
            if heads is None:
                heads = Heads.start(len(rates), classes, features.shape[1], seed=seed, device=device)
            heads.step(
                features.to(device),
                labels.to(device),
                learning_rates=rates * cosine(epoch, settings.epochs),
                weight_decays=decays,
                momentum=settings.momentum,
            )
        if heads is not None:
            state.write({"epochs": epoch + 1, "heads": {name: value.cpu() for name, value in vars(heads).items()}})
    compute.report(f"{subject.name}, linear probe, epochs", settings.epochs, settings.epochs)
    assert heads is not None  # extract_features raises where no picture can be read
    return heads


def _epoch(
    subject: Subject,
    pictures: PictureSource,
    settings: LinearSettings,
    batch_size: int,
    seed: int,
    epoch: int,
    compute: Compute,
) -> Iterator[tuple[Float[Tensor, "B D"], Int64[Tensor, " B"]]]:
    """The features and labels of an epoch's batches, the last of which may be smaller.

    Pictures that cannot be read are left out and the following ones move up.
    """
    order = epoch_order(len(pictures), seed=seed, epoch=epoch)
    # The crops have the backbone's size already: nothing is left to resize.
    preprocessing = replace(subject.preprocessing, resize=subject.preprocessing.size)
    for start in range(0, len(order), _AHEAD * batch_size):
        chosen = order[start : start + _AHEAD * batch_size]
        crops = RandomCrops(
            pictures,
            chosen,
            size=preprocessing.size,
            scale=(settings.smallest_crop, 1.0),
            flip=settings.flip,
            seed=seed,
            epoch=epoch,
            interpolation=preprocessing.interpolation,
        )
        found = extract_features(
            subject.backbone,
            crops,
            preprocessing=preprocessing,
            device=every(compute.device),
            batch_size=compute.batch_size,
            workers=compute.workers,
            precision=compute.precision,
        )
        compute.unreadable.update((pictures.name, key) for key, _ in found.unreadable)
        yield from zip(torch.split(found.features, batch_size), torch.split(labels_of(found), batch_size), strict=True)
