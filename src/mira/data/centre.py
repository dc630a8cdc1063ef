"""Pictures for evaluation: all of them once, in order, resized and cut at the centre."""

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mira.data.decoding import UnreadablePicture
from mira.data.sources import PictureSource
from mira.data.workers import BatchLoader


class EvalBatch(NamedTuple):
    """Pictures for evaluation: uint8 [B, C, S, S], their indices [B], and those left out, as in `Batch`."""

    pictures: Tensor
    indices: Tensor
    unreadable: tuple[tuple[int, str], ...]


def eval_loader(
    source: PictureSource,
    *,
    size: int,
    resize: int,
    interpolation: str = "bicubic",
    batch_size: int,
    workers: int = 0,
) -> Iterable[EvalBatch]:
    """All pictures in order, each resized and cut at the centre; those that cannot be read are left out and named.

    Args:
        source: the pictures.
        size: the side of the square that is cut from the centre.
        resize: what the short side becomes first; at least `size`.
        interpolation: "bicubic" or "bilinear", of the resizing, with antialiasing.
        batch_size: pictures to a batch; the last one, or one with unreadable pictures, has fewer.
        workers: processes beside this one.

    Raises:
        ValueError: `resize` is smaller than `size`, or a number is not positive.
    """
    if not 1 <= size <= resize:
        raise ValueError(f"a crop of {size} pixels cannot be cut from a short side of {resize}: 1 <= size <= resize")
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, not {value}")
    starts = range(0, len(source), batch_size)
    requests = [range(start, min(start + batch_size, len(source))) for start in starts]
    return BatchLoader(_CentreDataset(source, size, resize, interpolation), requests, workers=workers)


def centre_crop(
    picture: UInt8[np.ndarray, "H W C"], *, size: int, resize: int, interpolation: str = "bicubic"
) -> UInt8[np.ndarray, "S S C"]:
    """Resize the short side to `resize` (antialiased) and cut the central size x size, in one operation."""
    height, width, channels = picture.shape
    short = min(height, width)
    if short == resize == size == max(height, width):
        return picture
    new_height, new_width = resize * height // short, resize * width // short
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    # Only what is kept is computed: a very long picture costs no more than a square one.
    y, x = height / new_height, width / new_width
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
    resized = image.resize((size, size), Image.Resampling[interpolation.upper()], box=box)
    return np.asarray(resized).reshape(size, size, channels)


class _CentreDataset(Dataset[EvalBatch]):
    def __init__(self, source: PictureSource, size: int, resize: int, interpolation: str) -> None:
        self._source = source
        self._size = size
        self._resize = resize
        self._interpolation = interpolation
        self._channels = _channels(source)

    def __getitem__(self, indices: range) -> EvalBatch:
        rows: list[np.ndarray] = []
        kept: list[int] = []
        unreadable: list[tuple[int, str]] = []
        for index in indices:
            try:
                picture = self._source.read(index)
            except UnreadablePicture as error:
                unreadable.append((index, f"{error.key}\t{error.reason}"))
                continue
            rows.append(centre_crop(picture, size=self._size, resize=self._resize, interpolation=self._interpolation))
            kept.append(index)
        empty = np.empty((0, self._size, self._size, self._channels), np.uint8)
        pictures = np.stack(rows) if rows else empty
        tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        return EvalBatch(tensor, torch.tensor(kept, dtype=torch.int64), tuple(unreadable))


def _channels(source: PictureSource) -> int:
    """The channels of the first picture that can be read; 3 if none can."""
    for index in range(len(source)):
        with contextlib.suppress(UnreadablePicture):
            return int(source.read(index).shape[2])
    return 3
