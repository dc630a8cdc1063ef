"""Floors: what a protocol gives without any learning, to be printed beside what it gives with it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from mira.data import PictureSource
from mira.evaluation.features import Features, extract_features
from mira.model.preprocessing import Preprocessing

PIXELS_SIDE = 32
"""Raw pixels are compared at no more than this side: more would cost gigabytes and helps them little."""


def raw_pixels(
    train: PictureSource,
    *others: PictureSource,
    preprocessing: Preprocessing,
    batch_size: int = 256,
    workers: int = 0,
) -> list[Features]:
    """Pixels as features: the backbone's own crop at a side of at most 32 px, on the 0-1 scale, flattened.

    All are centred by the mean of `train` for each pixel and channel: without it all cosine similarities are
    near 1 and say little.

    Returns:
        Features of `train`, then of every other source.
    """
    side = min(preprocessing.size, PIXELS_SIDE)
    small = replace(
        preprocessing,
        size=side,
        resize=max(side, round(preprocessing.resize * side / preprocessing.size)),
        mean=(0.0,) * preprocessing.channels,
        std=(1.0,) * preprocessing.channels,
    )
    found = [
        extract_features(nn.Flatten(), source, preprocessing=small, batch_size=batch_size, workers=workers)
        for source in (train, *others)
    ]
    mean = found[0].features.mean(dim=0)
    return [replace(part, features=part.features - mean) for part in found]


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
