"""Semi-supervised fine-tuning, by the protocol of SwAV (eval_semisup): the whole network learns from few labels.

A linear classifier on the backbone, both trained by SGD with momentum and without weight decay, each with a learning
rate of its own that falls to a fifth after epochs 12 and 16 of 20; BatchNorm in training mode; random crops and flips.
The published rates are 0.02 and 5 (backbone, classifier) with 1 % of the labels, 0.01 and 0.2 with 10 %.

The accuracy is that after the last epoch. (SwAV's script reports the best of all epochs on the test pictures.)
"""

import copy
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mira.data import PictureSource, PictureSubset, eval_loader
from mira.evaluation.augmented import RandomCrops, epoch_order
from mira.evaluation.digest import list_digest
from mira.evaluation.features import every, extract_features
from mira.evaluation.labelled import check_labels, check_room
from mira.evaluation.metrics import top_k_accuracy
from mira.evaluation.saved_state import SavedState
from mira.evaluation.splits import labels_of, listed_subset, num_classes
from mira.evaluation.subject import Compute, Score, Subject, Value
from mira.evaluation.subsets import labelled_subset
from mira.model.preprocessing import Preprocessing, normalise
from mira.settings import Settings

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


_PUBLISHED = {0.01: (0.02, 5.0), 0.1: (0.01, 0.2)}
"""SwAV's learning rates of backbone and classifier, by the share of the labels."""
_PUBLISHED_IN_WORDS = "published: 0.02 and head 5 for 1 %, 0.01 and head 0.2 for 10 %"


class SemiSupervisedSettings(Settings):
    """Fine-tuning with few labels; the defaults are SwAV's. Each fraction has its own pair of learning rates."""

    fractions: Annotated[tuple[Share, ...], Field(min_length=1)] = Field(
        (0.01, 0.1), description="shares of the labels, of every class alike; one training for each"
    )
    lists: tuple[str, ...] = Field(
        (), description="text files that name the labelled pictures, one a line, instead of drawing the fractions"
    )
    learning_rates: tuple[Positive, ...] = Field((0.02, 0.01), description="of the backbone, for each fraction")
    head_learning_rates: tuple[Positive, ...] = Field((5.0, 0.2), description="of the classifier, for each fraction")
    epochs: Annotated[int, Field(ge=1)] = Field(20, description="passes over the labelled pictures")
    decay_epochs: tuple[Annotated[int, Field(ge=1)], ...] = Field((12, 16), description="after which the rates fall")
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="what the rates fall to, as a factor")
    batch_size: Annotated[int, Field(ge=2)] = Field(256, description="pictures to a step")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of SGD")
    smallest_crop: Share = Field(0.08, description="smallest share of a training picture that a random crop takes")
    flip: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="probability that a training picture is flipped")

    @model_validator(mode="before")
    @classmethod
    def _published_rates(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fractions that rates are published for, in any number and order, need none beside them; all others do."""
        try:
            asked = [float(share) for share in values.get("fractions", _PUBLISHED)]
        except (TypeError, ValueError):
            return values  # which is said of the field
        if values.get("lists") or any(share not in _PUBLISHED for share in asked):
            if not values.keys() >= {"learning_rates", "head_learning_rates"}:
                raise ValueError(
                    "learning_rates and head_learning_rates are needed, one of each for every list or fraction "
                    f"({_PUBLISHED_IN_WORDS}; for no other)"
                )
            return values
        pairs = [_PUBLISHED[share] for share in asked]
        rates = {"learning_rates": [pair[0] for pair in pairs], "head_learning_rates": [pair[1] for pair in pairs]}
        return rates | values

    @model_validator(mode="after")
    def _one_rate_each(self) -> "SemiSupervisedSettings":
        trainings = len(self.lists or self.fractions)
        for name, rates in (
            ("learning_rates", self.learning_rates),
            ("head_learning_rates", self.head_learning_rates),
        ):
            if len(rates) != trainings:
                raise ValueError(
                    f"{name} has {len(rates)} value(s) for {trainings} {'list' if self.lists else 'fraction'}(s): "
                    f"give one for each ({_PUBLISHED_IN_WORDS})"
                )
        return self


def list_contents(settings: SemiSupervisedSettings, *_: Any) -> list[str]:
    """Digests of the lists that are read: a list that has changed makes other results."""
    return [list_digest(path) for path in settings.lists]


def evaluate_semi_supervised(
    subject: Subject,
    train: PictureSource,
    test: PictureSource,
    settings: SemiSupervisedSettings,
    *,
    seed: int,
    compute: Compute,
    folder: Path | None = None,
) -> list[Score]:
    """Top-1 and top-5 accuracy of copies of the backbone that were fine-tuned; the given one is not touched.

    Args:
        seed: of the labelled subsets, the classifier's start, the order and the cuts.
        folder: keeps the state of a training after each epoch, so that a stopped evaluation goes on; the caller
            removes it when the scores are safe.

    Raises:
        ValueError: labels missing, only one class, a list that does not match, too few pictures, or a loss that is
            not finite.
    """
    check_labels("semi-supervised fine-tuning", train, test)
    check_room("semi-supervised fine-tuning", train)
    classes = num_classes(train, test)
    scores: list[Score] = []
    sources: tuple[str | float, ...] = settings.lists or settings.fractions
    for part, what in enumerate(sources):
        pictures = PictureSubset(train, _labelled(train, what, seed))
        check_labels("semi-supervised fine-tuning", pictures, test)
        rates = settings.learning_rates[part], settings.head_learning_rates[part]
        state = SavedState(folder, "semi-supervised", settings, subject, pictures, seed, part=str(part))
        model = fine_tune(subject, pictures, settings, rates, classes=classes, seed=seed, compute=compute, state=state)
        queries = extract_features(
            model,
            test,
            preprocessing=subject.preprocessing,
            device=every(compute.device),
            batch_size=compute.batch_size,
            workers=compute.workers,
            precision=compute.precision,
            progress=lambda done, total: compute.report(f"{subject.name}, fine-tuned, test pictures", done, total),
        )
        compute.unreadable.update((test.name, key) for key, _ in queries.unreadable)
        batch_size = min(settings.batch_size, len(pictures))
        # Those of this training alone, so that it is the same result with another training beside it or without.
        values: dict[str, Value] = {
            "fraction": what if isinstance(what, float) else len(pictures) / len(train),
            "list": f"{Path(what).name} ({list_digest(what)})" if isinstance(what, str) else None,
            "learning_rate": rates[0],
            "head_learning_rate": rates[1],
            **settings.model_dump(mode="json", exclude={"fractions", "lists", "learning_rates", "head_learning_rates"}),
            "batch_size": batch_size,
        }
        notes = []
        if batch_size < settings.batch_size:
            notes.append(f"batch {batch_size}: there are no more labelled pictures")
        if settings.decay < 1 and settings.epochs <= min(settings.decay_epochs, default=0):
            notes.append(f"the rates never fell: {settings.epochs} epochs end before the first of decay-epochs")
        for k in (1, 5):
            trivial = k >= classes
            scores.append(
                Score(
                    metric=f"top-{k}",
                    value=None if trivial else top_k_accuracy(queries.features, labels_of(queries), k=k),
                    settings=values,
                    train_size=len(pictures),
                    test_size=len(queries),
                    note=f"no top-{k}: there are only {classes} classes" if trivial else "; ".join(notes),
                )
            )
    return scores


def fine_tune(
    subject: Subject,
    pictures: PictureSource,
    settings: SemiSupervisedSettings,
    learning_rates: tuple[float, float],
    *,
    classes: int,
    seed: int,
    compute: Compute,
    state: SavedState,
) -> nn.Sequential:
    """A copy of the backbone with a linear classifier behind it, trained on labelled pictures; in evaluation mode.

    Args:
        learning_rates: of the backbone and of the classifier.
        state: read at the start, written after each epoch.
    """
    device = compute.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        backbone = copy.deepcopy(subject.backbone).to(device).requires_grad_(True)
        model = nn.Sequential(backbone, nn.Linear(_width(backbone, subject.preprocessing, device), classes).to(device))
        groups = [
            {"params": list(part.parameters()), "published": rate}
            for part, rate in zip(model, learning_rates, strict=True)
        ]
        # A floor such as raw pixels has nothing to train but the classifier.
        optimiser = torch.optim.SGD([group for group in groups if group["params"]], lr=0.0, momentum=settings.momentum)
        scaler = torch.amp.GradScaler(device.type, enabled=compute.precision == "float16")
        done = 0
        if (saved := state.read()) is not None:
            model.load_state_dict(saved["model"])
            optimiser.load_state_dict(saved["optimiser"])
            scaler.load_state_dict(saved["scaler"])
            done = saved["epochs"]
        for epoch in range(done, settings.epochs):
            compute.report(f"{subject.name}, fine-tuning, epochs", epoch, settings.epochs)
            fallen = settings.decay ** sum(epoch >= after for after in settings.decay_epochs)
            for group in optimiser.param_groups:
                group["lr"] = group["published"] * fallen
            # Dropout and its like depend on the epoch, not on how the training came there.
            torch.manual_seed(seed * 1_000_003 + epoch)
            _train_epoch(model, optimiser, scaler, subject.preprocessing, pictures, settings, seed, epoch, compute)
            state.write(
                {
                    "epochs": epoch + 1,
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "scaler": scaler.state_dict(),
                }
            )
    compute.report(f"{subject.name}, fine-tuning, epochs", settings.epochs, settings.epochs)
    return model.eval()


def _train_epoch(
    model: nn.Sequential,
    optimiser: torch.optim.SGD,
    scaler: torch.amp.GradScaler,
    preprocessing: Preprocessing,
    pictures: PictureSource,
    settings: SemiSupervisedSettings,
    seed: int,
    epoch: int,
    compute: Compute,
) -> None:
    batch_size, size = min(settings.batch_size, len(pictures)), preprocessing.size
    order = epoch_order(len(pictures), seed=seed, epoch=epoch)
    scale = (settings.smallest_crop, 1.0)
    crops = RandomCrops(
        pictures,
        order,
        size=size,
        scale=scale,
        flip=settings.flip,
        seed=seed,
        epoch=epoch,
        interpolation=preprocessing.interpolation,
    )
    labels = torch.as_tensor(crops.labels)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[compute.precision]
    total = torch.zeros((), device=compute.device)
    model.train()
    # The crops have the backbone's size already: nothing is left to resize.
    for batch in eval_loader(crops, size=size, resize=size, batch_size=batch_size, workers=compute.workers):
        compute.unreadable.update((pictures.name, crops.key(index)) for index, _ in batch.unreadable)
        if len(batch.indices) < 2:
            continue  # BatchNorm has no variance of one picture
        inputs = normalise(batch.pictures.to(compute.device), preprocessing.mean, preprocessing.std)
        with torch.autocast(compute.device.type, dtype=dtype, enabled=dtype is not torch.float32):
            logits = model(inputs)
        loss = cross_entropy(logits.float(), labels[batch.indices].to(compute.device))
        optimiser.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimiser)
        scaler.update()
        total += loss.detach()
    if not total.isfinite():
        raise ValueError(
            f"the loss is no longer finite in epoch {epoch + 1} of fine-tuning: choose lower learning rates "
            f"than {settings.learning_rates} and {settings.head_learning_rates}."
        )


def _labelled(train: PictureSource, what: float | str, seed: int) -> np.ndarray:
    """The pictures that keep their labels: a fraction of every class, or those of a list."""
    if isinstance(what, str):
        return listed_subset(train, Path(what))
    return labelled_subset(torch.as_tensor(train.labels), what, seed=seed).numpy()


@torch.no_grad()
def _width(backbone: nn.Module, preprocessing: Preprocessing, device: torch.device) -> int:
    """How many features the backbone gives."""
    blank = torch.zeros(1, preprocessing.channels, preprocessing.size, preprocessing.size, device=device)
    output = backbone.eval()(blank)
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ValueError("the backbone gives no pooled features [B, D]: create it with num_classes=0 and pooling.")
    return output.shape[1]
