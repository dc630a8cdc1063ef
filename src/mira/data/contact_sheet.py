"""A picture of the crops as the network sees them, to find a wrong setting before it has cost a run."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mira.files import atomic_path

_GAP = 4
_MARGIN = 20
"""Pixels left of the crops, for the numbers of the rows."""
_TITLE = 32
"""Pixels above the crops, for two lines of text."""
_NARROWEST = 48
"""Pixels that a title takes."""
_READABLE = 112
"""Pixels that the largest crops are enlarged to at least."""


def write_first_batch_png(
    path: Path,
    views: Sequence[Float[Tensor, "B C _ _"]],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    pictures: int = 8,
) -> None:
    """Write a PNG with one row for each of the first pictures of a batch and one column for each crop.

    Small crops are enlarged by a whole number of times, the same for all, so that each pixel is a square and sizes can
    be compared. Above each column stand its number and the side of its crops in pixels.

    Args:
        path: of the file; replaced in one piece.
        views: normalised, as `DeviceAugment` returns them.
        mean: that they were normalised with, per channel on the 0-1 scale.
        std: likewise.
        pictures: so many rows at most.
    """
    zoom = math.ceil(_READABLE / max(view.shape[-1] for view in views))
    columns = [_enlarged(_levels(view[:pictures], mean, std), zoom) for view in views]
    height = max(column.shape[1] for column in columns)
    widths = [max(column.shape[2], _NARROWEST) for column in columns]
    rows = len(columns[0])
    size = (_MARGIN + sum(width + _GAP for width in widths), _TITLE + rows * (height + _GAP))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row in range(rows):
        draw.text((_GAP, _TITLE + row * (height + _GAP)), f"{row + 1}", "black", font)
    left = _MARGIN
    for number, (view, column, width) in enumerate(zip(views, columns, widths, strict=True), start=1):
        draw.text((left, 2), f"view {number}\n{view.shape[-1]} px", "black", font)
        for row, crop in enumerate(column):
            sheet.paste(Image.fromarray(crop), (left, _TITLE + row * (height + _GAP)))
        left += width + _GAP
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def _levels(
    view: Float[Tensor, "B C S S"], mean: Sequence[float], std: Sequence[float]
) -> UInt8[np.ndarray, "B S S 3"]:
    """The crops of one view on the 0-255 scale and in colour."""
    levels = view.detach().float().cpu() * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    levels = (levels * 255).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


def _enlarged(crops: UInt8[np.ndarray, "B S S 3"], times: int) -> UInt8[np.ndarray, "B T T 3"]:
    return crops.repeat(times, axis=1).repeat(times, axis=2)
