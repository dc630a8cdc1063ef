"""What a backbone expects of a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

# The statistics of ImageNet's training pictures, the field's convention for colour photographs.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


Interpolation = Literal["bicubic", "bilinear"]
LARGEST_SIDE = 8192
"""Pixels: the largest input that can be asked for, beyond which a slip of the pen is likelier."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a backbone's input; called with one, it does that.

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

    def __call__(self, image: Image.Image | np.ndarray | str | Path) -> Float[Tensor, "C S S"]:
        """The input of the backbone for one image, the same as in `mira.embed`.

        Args:
            image: of Pillow in any mode, uint8 [H, W, 3], [H, W, 1] or [H, W], or the path of a file.

        Returns:
            float32, normalized; `torch.stack` of several makes a batch.

        Raises:
            ValueError: an array of another type or shape.
            UnreadablePicture: the file is no image.
        """
        # Reading and resizing belong to the data, which know this module; here they are only put together.
        from mira.data.centre import centre_crop
        from mira.data.decoding import decode, read_file, to_array

        if isinstance(image, str | Path):
            pixels = decode(read_file(Path(image), key=str(image)), key=str(image), channels=self.channels)
        else:
            if isinstance(image, np.ndarray):
                image = _as_image(image)
            pixels = to_array(ImageOps.exif_transpose(image), channels=self.channels)
        cut = centre_crop(pixels, size=self.size, resize=self.resize, interpolation=self.interpolation)
        return normalise(torch.from_numpy(np.array(cut)).permute(2, 0, 1), self.mean, self.std)


def _as_image(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise ValueError(
            f"an image is uint8 [H, W, 3], [H, W, 1] or [H, W], not {pixels.dtype} {list(pixels.shape)}: several at "
            "once are prepared one by one"
        )
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


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
