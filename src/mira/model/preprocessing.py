"""What a backbone expects of a picture."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

# The statistics of ImageNet's training pictures, the field's convention for colour photographs.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


Interpolation = Literal["bicubic", "bilinear"]
LARGEST_SIDE = 8192
"""Pixels: the largest input that can be asked for, beyond which a slip of the pen is likelier."""


@dataclass(frozen=True)
class Preprocessing:
    """How a decoded picture becomes a backbone's input.

    Attributes:
        size: side of the square input, in pixels.
        resize: length the short side is resized to before the centre crop of `size`, in pixels.
        channels: 1 (grey) or 3 (colour).
        mean: per channel, on the 0-1 scale.
        std: per channel, on the 0-1 scale.
        interpolation: of the resizing, antialiased as Pillow does it.
    """

    size: int
    resize: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bicubic"


def default_statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel where nothing is known of the pictures (0-1 scale)."""
    return (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.25,) * channels)


def normalise(
    pictures: UInt8[Tensor, "*batch C H W"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "*batch C H W"]:
    """Bring 8-bit pictures to zero mean and unit variance per channel, in float32 on their device."""
    shape = (-1, 1, 1)
    # x/255 is folded into the constants: one subtraction and one multiplication a pixel.
    offset = torch.tensor(mean, device=pictures.device).mul_(255.0).view(shape)
    scale = torch.tensor(std, device=pictures.device).mul_(255.0).reciprocal_().view(shape)
    return (pictures.float() - offset) * scale
