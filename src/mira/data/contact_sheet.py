"""A picture of the crops as the network sees them, to find a wrong setting before it has cost a run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mira.files import atomic_path

_GAP = 4


def write_first_batch_png(
    path: Path,
    views: Sequence[Float[Tensor, "B C _ _"]],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    pictures: int = 8,
) -> None:
    """Write a PNG with one row for each of the first pictures of a batch and one column for each crop.

    Args:
        path: of the file; replaced in one piece.
        views: normalised, as `DeviceAugment` returns them.
        mean: that they were normalised with, per channel on the 0-1 scale.
        std: likewise.
        pictures: so many rows at most.
    """
    columns = [_column(view[:pictures], mean, std) for view in views]
    height = max(column.shape[0] for column in columns)
    width = sum(column.shape[1] + _GAP for column in columns) + _GAP
    rows = min(pictures, len(views[0]))
    sheet = np.full(((height // rows + _GAP) * rows + _GAP, width, 3), 255, np.uint8)
    left = _GAP
    for column in columns:
        side = column.shape[1]
        for row in range(rows):
            top = _GAP + row * (height // rows + _GAP)
            sheet[top : top + side, left : left + side] = column[row * side : (row + 1) * side]
        left += side + _GAP
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, "PNG")


def _column(view: Float[Tensor, "B C S S"], mean: Sequence[float], std: Sequence[float]) -> UInt8[np.ndarray, "H S 3"]:
    """The crops of one view below each other, on the 0-255 scale and in colour."""
    levels = view.detach().float().cpu() * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    levels = (levels * 255).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
    return levels.permute(0, 2, 3, 1).flatten(0, 1).contiguous().numpy()
