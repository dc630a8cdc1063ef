"""What is evaluated, with what means, and what comes out: the three things that every protocol shares."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from mira.data import PictureSource, UnreadablePicture
from mira.evaluation.cache import FeatureCache, feature_key
from mira.evaluation.digest import source_digest, weights_digest
from mira.evaluation.features import Features, Precision, every, extract_features
from mira.evaluation.results import Value as Value
from mira.model.head import PrototypeLogits
from mira.model.preprocessing import Preprocessing

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how much of it is done, how much there is)."""


@dataclass(frozen=True)
class Subject:
    """A backbone under evaluation.

    Attributes:
        name: of its features in tables: "MIRA", "random backbone", "raw pixels", "dino_resnet50.pth".
        backbone: maps float [B, C, S, S] to [B, D]; protocols leave it as they found it, or work on a copy.
        preprocessing: the input it expects.
        checkpoint: where it came from, for the record.
        prototype_logits: [B, D] features to [B, K] logits over the teacher's temperature, where it has prototypes.
        untrained: builds a backbone of the same architecture with random weights, where that is known.
        pretraining: of a run, as `Result.pretraining`.
    """

    name: str
    backbone: nn.Module
    preprocessing: Preprocessing
    checkpoint: str = ""
    prototype_logits: PrototypeLogits | None = None
    untrained: Callable[[], nn.Module] | None = None
    pretraining: Mapping[str, Value] = field(default_factory=dict)

    @cached_property
    def weights(self) -> str:
        """The digest of the backbone's weights when first asked for: no protocol changes them."""
        return weights_digest(self.backbone)

    @cached_property
    def head(self) -> str:
        """The digest of what leads from features to prototypes; empty where there are none."""
        return "" if self.prototype_logits is None else weights_digest(self.prototype_logits)


@dataclass(frozen=True)
class Compute:
    """Where and how an evaluation runs; nothing of it is part of the protocol.

    Attributes:
        device: of the backbone and of the protocol's own arithmetic; "cuda" without a number is the first GPU, and all
            GPUs in passes over pictures.
        precision: of the backbone's forward passes.
        batch_size: pictures at a time in a pass that does not train.
        workers: processes that read pictures.
        progress: told how far things are.
        cache: where features are kept and looked for, if anywhere.
        unreadable: gathers (source, picture) of all that could not be read in `features`.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "float32"
    batch_size: int = 256
    workers: int = 0
    progress: Progress | None = None
    cache: FeatureCache | None = None
    unreadable: set[tuple[str, str]] = field(default_factory=set)

    def report(self, what: str, done: int, total: int) -> None:
        """Tell how far things are, where someone listens."""
        if self.progress is not None:
            self.progress(what, done, total)

    def features(self, subject: Subject, source: PictureSource, what: str) -> Features:
        """Features of all readable pictures of a source; `what` names them to whoever waits.

        With a cache, a pass over pictures that was made before for the same weights, in whatever command, is
        not made again, provided that the source has `identity()`: it gives the same bits.
        """
        key = self._key(subject, source)
        found = self.cache.read(key, source) if self.cache is not None and key is not None else None
        if found is not None and _readable_now(source, found):
            found = None  # a disk that failed for a moment must not be remembered for good
        if found is None:
            found = extract_features(
                subject.backbone,
                source,
                preprocessing=subject.preprocessing,
                device=every(self.device),
                batch_size=self.batch_size,
                workers=self.workers,
                precision=self.precision,
                progress=lambda done, total: self.report(f"{subject.name}, {what}", done, total),
            )
            if self.cache is not None and key is not None:
                self.cache.keep(key, found)
        self.unreadable.update((source.name, picture) for picture, _ in found.unreadable)
        return found

    def keep(self, subject: Subject, source: PictureSource, features: Features) -> None:
        """Have `features` give these instead of making a pass over the pictures, where there is a cache."""
        key = self._key(subject, source)
        if self.cache is not None and key is not None:
            self.cache.keep(key, features)

    def _key(self, subject: Subject, source: PictureSource) -> str | None:
        pictures = None if self.cache is None else source_digest(source)
        if pictures is None:
            return None
        # The text of a module has what its weights do not say, such as strides.
        architecture = repr(subject.backbone)
        return feature_key(
            architecture, subject.weights, pictures, subject.preprocessing, self.precision, self.device.type
        )


def _readable_now(source: PictureSource, found: Features) -> bool:
    """Whether a picture that could not be read when features were made can be read."""
    if not found.unreadable:
        return False
    for index in set(range(len(source))) - set(found.indices.tolist()):
        with suppress(UnreadablePicture):
            source.read(index)
            return True
    return False


@dataclass(frozen=True)
class Score:
    """One number of a protocol, before it is known what it is a number of.

    Attributes:
        metric: "top-1", "mean per class", "NMI", ...
        value: percent, or what the metric is in; None where there is none, and `note` says why.
        settings: every value of the protocol that the number depends on, its defaults included.
        chosen: what the protocol found by itself for these features: a penalty, a learning rate.
        train_size: labelled pictures that it learned from.
        test_size: pictures that it was measured on.
        note: why there is no value, or what a reader must know.
        preprocessing: of the pictures, where it is not the subject's.
    """

    metric: str
    value: float | None
    settings: Mapping[str, Value]
    train_size: int
    test_size: int
    note: str = ""
    chosen: Mapping[str, Value] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
