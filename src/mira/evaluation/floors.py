"""Floors: what a protocol gives without any learning, to be printed beside what it gives with it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mira.data import Identified, PictureSource
from mira.evaluation.results import ARCHITECTURE_OF, PIXELS, RANDOM
from mira.evaluation.subject import Compute, Subject
from mira.model.preprocessing import Preprocessing

PIXELS_SIDE = 32
"""Raw pixels are compared at no more than this side: more would cost gigabytes and helps them little."""


class CentredPixels(nn.Module):
    """A backbone that learns nothing: pixels less their mean, flattened."""

    def __init__(self, mean: Float[Tensor, " D"]) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, pictures: Float[Tensor, "B C S S"]) -> Float[Tensor, "B D"]:
        """Centred pixels."""
        return pictures.flatten(1) - self.get_buffer("mean")


def raw_pixels(train: PictureSource | None, preprocessing: Preprocessing, compute: Compute) -> Subject:
    """Pixels as features: the backbone's own crop at a side of at most 32 px, on the 0-1 scale, flattened.

    All are centred by the mean of `train` for each pixel and channel: without it all cosine similarities are
    near 1 and say little. With None, for protocols with several training sets, they are centred by middle grey.
    """
    side = min(preprocessing.size, PIXELS_SIDE)
    channels = preprocessing.channels
    small = replace(
        preprocessing,
        size=side,
        resize=max(side, round(preprocessing.resize * side / preprocessing.size)),
        mean=(0.0 if train is not None else 0.5,) * channels,
        std=(1.0,) * channels,
    )
    origin = f"{side} x {side} x {channels} numbers"
    plain = Subject(PIXELS, nn.Flatten(), small, origin)
    if train is None:
        return plain
    flat = compute.features(plain, train, "training pictures")
    mean = flat.features.mean(dim=0)
    subject = Subject(PIXELS, CentredPixels(mean), small, f"{origin}, centred")
    flat.features.sub_(mean)  # in place: of ImageNet they are 16 GB
    # The pass over the pictures is made: its centred result need not be made again.
    compute.keep(subject, train, flat)
    return subject


def untrained(subject: Subject, *, seed: int) -> Subject | None:
    """The subject's architecture with random weights; None where nobody knows how to build it."""
    if subject.untrained is None:
        return None
    backbone = random_backbone(subject.untrained, seed=seed)
    trained = subject.checkpoint.partition(" at step ")[0]  # of which step does not matter
    return Subject(RANDOM, backbone, subject.preprocessing, f"{ARCHITECTURE_OF}{trained}")


def random_backbone(create: Callable[[], nn.Module], *, seed: int) -> nn.Module:
    """A backbone with random weights: `create()` under `seed`, in evaluation mode.

    Norms whose scale training would start at zero, which switches residual branches off, start at one: a floor
    should not be weak by construction. The random state of the process is left as it was.

    Args:
        create: builds a backbone with random weights, of the architecture to compare with.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = create().eval()
    for module in backbone.modules():
        scale = getattr(module, "weight", None)
        if isinstance(scale, nn.Parameter) and scale.ndim == 1 and not scale.any():
            nn.init.ones_(scale)
    return backbone


def moved(test: PictureSource, pixels: int, seed: int) -> list[tuple[int, PictureSource]]:
    """The test pictures as they are and, for pixels above 0, moved; each with by how far."""
    return [(0, test), *([(pixels, ShiftedSource(test, pixels, seed))] if pixels else [])]


class ShiftedSource:
    """A source whose pictures are moved: how much do features depend on where the object stands?

    Each picture is moved by whole pixels, down and right independently, drawn evenly from -pixels..pixels;
    a function of the seed and the picture's number alone. Pixels are the stored picture's, before any
    resizing. What comes into view repeats the nearest edge pixel.

    Raises:
        ValueError: pixels is negative.
    """

    def __init__(self, source: PictureSource, pixels: int, seed: int = 0):
        if pixels < 0:
            raise ValueError(f"pixels must be 0 or more, not {pixels}.")
        self.source = source
        self.pixels = pixels
        self.seed = seed
        self.name = source.name
        self.labels = source.labels
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        """The picture's name, that of the source."""
        return self.source.key(index)

    def identity(self) -> str | None:
        """The source's own and how it is moved; None where the source has none."""
        own = self.source.identity() if isinstance(self.source, Identified) else None
        return None if own is None else f"{own}\0moved {self.pixels} {self.seed}"

    def read(self, index: int) -> np.ndarray:
        """The moved picture, uint8 [H, W, C]."""
        picture = self.source.read(index)
        height, width = picture.shape[:2]
        down, right = np.random.default_rng([self.seed, index]).integers(
            -self.pixels, self.pixels, size=2, endpoint=True
        )
        rows = (np.arange(height) - down).clip(0, height - 1)
        columns = (np.arange(width) - right).clip(0, width - 1)
        return np.ascontiguousarray(picture[rows][:, columns])
