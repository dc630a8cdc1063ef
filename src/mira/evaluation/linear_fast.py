"""The linear probe's fast mode: on features computed once, with a grid of learning rates and weight decays.

The training is that of `linear` (SGD with momentum, one cosine over the epochs, the same start), but every picture is
resized and cut at the centre as a test picture is, so the backbone sees it once, or twice with its mirror image. All
settings of the grid learn side by side; the best is chosen on held-out training pictures and then, unless told
otherwise, trained again on all of them. Its numbers are not those of the published protocol, and say so.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from mira.data import PictureSource
from mira.data.uniforms import uniforms
from mira.evaluation.augmented import Mirrored, epoch_order
from mira.evaluation.features import Features
from mira.evaluation.heads import Heads, best, cosine
from mira.evaluation.labelled import check_labels
from mira.evaluation.splits import hold_out, labels_of, num_classes
from mira.evaluation.subject import Compute, Score, Subject
from mira.settings import Settings

MODE = "linear, on cached features"

Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
Decays = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]


class LinearFastSettings(Settings):
    """The linear probe on cached features."""

    epochs: Annotated[int, Field(ge=1)] = Field(100, description="passes over the training features")
    batch_size: Annotated[int, Field(ge=1)] = Field(1024, description="pictures to a step")
    learning_rates: Rates = Field(
        (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0), description="for 256 pictures to a step"
    )
    weight_decays: Decays = Field((0.0,), description="each with every learning rate")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of SGD")
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of every class of the training pictures on which settings are chosen"
    )
    mirror: bool = Field(False, description="train on the features of each picture and of its mirror image")
    refit: bool = Field(True, description="train the chosen settings again on all training pictures")


def evaluate_linear_fast(
    subject: Subject,
    train: PictureSource,
    test: PictureSource,
    settings: LinearFastSettings,
    *,
    seed: int,
    compute: Compute,
) -> list[Score]:
    """The fast mode on two labelled sources; `seed` decides the start, the order and the held-out part.

    Raises:
        ValueError: labels missing, only one class, too few pictures, or every classifier diverged.
    """
    check_labels("the linear probe", train, test)
    classes = num_classes(train, test)
    banks = [compute.features(subject, train, "training pictures")]
    if settings.mirror:
        banks.append(compute.features(subject, Mirrored(train), "mirrored training pictures"))
    queries = compute.features(subject, test, "test pictures")
    kept, held = hold_out(labels_of(banks[0]), settings.validation, seed=seed)
    grid = list(itertools.product(settings.learning_rates, settings.weight_decays))

    def learn(rows: Sequence[Features], values: Sequence[tuple[float, float]]) -> Heads:
        return train_heads(
            [part.features.to(compute.device) for part in rows],
            labels_of(rows[0]).to(compute.device),
            values,
            classes=classes,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            momentum=settings.momentum,
            seed=seed,
        )

    compute.report(f"{subject.name}, linear probe on features", 0, 2)
    heads = learn([bank.rows(kept) for bank in banks], grid)
    choosing = banks[0].rows(held)
    validation = heads.accuracies(choosing.features, labels_of(choosing))
    chosen = best(validation)
    compute.report(f"{subject.name}, linear probe on features", 1, 2)
    if settings.refit:
        heads = learn(banks, grid[chosen : chosen + 1])
    accuracy = heads.accuracies(queries.features, labels_of(queries))[0 if settings.refit else chosen]
    compute.report(f"{subject.name}, linear probe on features", 2, 2)
    rate, decay = grid[chosen]
    learned_from = len(banks[0]) if settings.refit else len(kept)
    return [
        Score(
            metric="top-1",
            value=accuracy,
            settings=settings.model_dump(mode="json")
            | {"mode": MODE, "batch_size": min(settings.batch_size, learned_from)},
            chosen={"learning_rate": rate, "weight_decay": decay, "validation_value": validation[chosen]},
            train_size=learned_from,
            test_size=len(queries),
            note=MODE if accuracy is not None else "diverged when trained on all training pictures: lower the rates",
        )
    ]


def train_heads(
    versions: Sequence[Float[Tensor, "N D"]],
    labels: Int64[Tensor, " N"],
    grid: Sequence[tuple[float, float]],
    *,
    classes: int,
    epochs: int,
    batch_size: int,
    momentum: float,
    seed: int,
) -> Heads:
    """Train one linear classifier for each (learning rate, weight decay), all from one start and in one order.

    Args:
        versions: features of the pictures, one set or several (a picture and its mirror image): in every epoch
            each picture shows one of its versions, drawn from (seed, epoch, picture).
        labels: class numbers.
        grid: learning rates for 256 pictures to a step (scaled by the batch), and weight decays.
        batch_size: at most the number of pictures is used.
    """
    device = versions[0].device
    batch_size = min(batch_size, len(labels))
    rates, decays = torch.tensor(grid, device=device).T
    heads = Heads.start(len(grid), classes, versions[0].shape[1], seed=seed, device=device)
    shown = torch.stack(tuple(versions)) if len(versions) > 1 else versions[0][None]
    for epoch in range(epochs):
        order = epoch_order(len(labels), seed=seed, epoch=epoch)
        version = torch.from_numpy((uniforms(seed, epoch, order, draws=1)[:, 0] * len(versions)).astype("int64"))
        for rows, which in zip(
            *(torch.split(part, batch_size) for part in (torch.from_numpy(order), version)), strict=True
        ):
            heads.step(
                shown[which.to(device), rows.to(device)],
                labels[rows.to(device)],
                learning_rates=rates * (batch_size / 256 * cosine(epoch, epochs)),
                weight_decays=decays,
                momentum=momentum,
            )
    return heads
