"""Make torchvision work beside a CPU build of PyTorch.

The torchvision wheels that `pip install torchvision` brings on Linux are compiled against PyTorch's CUDA
build. Beside a CPU build their operators cannot be loaded, and the import fails where torchvision describes
the shapes of operators that then do not exist. So they are declared here: import this module before timm or
torchvision. Only detection uses them; it calls `complete_operators`, which puts plain PyTorch in their place.
Where the compiled operators load, nothing here does anything.
"""

import functools
import importlib
import importlib.machinery
import importlib.util

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import grid_sample

_DECLARATIONS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)


@functools.cache
def complete_operators() -> None:
    """Let torchvision's detection models run where the compiled operators are missing; nothing where they load."""
    if _library is None:
        return
    _library.impl("nms", nms, "CPU")  # type: ignore[no-untyped-call]
    _library.impl("roi_align", roi_align, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    # torchvision asks these two names whether its operators are there.
    for module in ("torchvision.extension", "torchvision.ops.roi_align"):
        importlib.import_module(module)._has_ops = lambda: True  # type: ignore[attr-defined]


def nms(boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], iou_threshold: float) -> Int64[Tensor, " M"]:
    """Greedy non-maximum suppression: from the highest score down, a box stays unless one that stays overlaps it.

    What stays solves keep[i] = no j before i with keep[j] and IoU(j, i) > threshold. Iterating that from "all stay"
    settles the first m boxes in m rounds at most, and in practice everything in a few: a chain of boxes each of which
    suppresses the next is rarely long. Memory is N^2 numbers.

    Args:
        boxes: x1, y1, x2, y2.

    Returns:
        The boxes that stay, by falling score; equal scores in the order given.
    """
    order = scores.argsort(descending=True, stable=True)
    x1, y1, x2, y2 = boxes[order].unbind(1)
    areas = (x2 - x1) * (y2 - y1)
    width = (torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)).clamp_(min=0)
    height = (torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)).clamp_(min=0)
    shared = width * height
    overlaps = (shared > iou_threshold * (areas[:, None] + areas - shared)).triu_(diagonal=1).float()
    keep, before = torch.ones_like(areas, dtype=torch.float32), None
    while before is None or not torch.equal(keep, before):
        keep, before = (keep @ overlaps == 0).float(), keep
    return order[keep.bool()]


def roi_align(
    input: Float[Tensor, "B C H W"],
    rois: Float[Tensor, "N 5"],
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Tensor, "N C PH PW"]:
    """RoIAlign (He et al. 2017, section 3): the mean of bilinear samples in each cell of a grid over each box.

    Args:
        rois: number of the picture, x1, y1, x2, y2.
        spatial_scale: from the boxes' coordinates to those of the input.
        sampling_ratio: samples to a cell and side; below 1 as many as there are pixels, rounded up.
        aligned: whether pixel centres lie at half coordinates.
    """
    offset, least = (0.5, 0.0) if aligned else (0.0, 1.0)
    corners = rois[:, 1:] * spatial_scale - offset
    boxes = torch.cat([corners[:, :2], (corners[:, 2:] - corners[:, :2]).clamp(min=least)], dim=1)
    cells = boxes.new_tensor([pooled_width, pooled_height])
    ratios = (boxes[:, 2:] / cells).ceil().clamp(min=1)
    if sampling_ratio > 0:
        ratios = torch.full_like(ratios, sampling_ratio)
    pooled = input.new_zeros(len(rois), input.shape[1], pooled_height, pooled_width)
    # Boxes of one picture with as many samples a cell are sampled together.
    kinds = torch.cat([rois[:, :1], ratios], dim=1).long()
    groups, member = torch.unique(kinds, dim=0, return_inverse=True)
    for number, (picture, across, down) in enumerate(groups.tolist()):
        rows = (member == number).nonzero()[:, 0]
        found = _sample(input[picture], boxes[rows], pooled_height * down, pooled_width * across)
        found = found.view(*found.shape[:2], pooled_height, down, pooled_width, across).mean(dim=(3, 5))
        pooled = pooled.index_copy(0, rows, found.transpose(0, 1))
    return pooled


def _sample(
    plane: Float[Tensor, "C H W"], boxes: Float[Tensor, "N 4"], rows: int, columns: int
) -> Float[Tensor, "C N rows columns"]:
    """Bilinear samples at the centres of a grid over each box (x, y, width, height)."""
    height, width = plane.shape[1:]
    x = boxes[:, 0:1] + boxes[:, 2:3] * (torch.arange(columns, dtype=boxes.dtype, device=boxes.device) + 0.5) / columns
    y = boxes[:, 1:2] + boxes[:, 3:4] * (torch.arange(rows, dtype=boxes.dtype, device=boxes.device) + 0.5) / rows
    # Beyond one pixel outside there is nothing; up to there the border goes on.
    inside = ((y >= -1) & (y <= height))[:, :, None] & ((x >= -1) & (x <= width))[:, None, :]
    x, y = 2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1
    grid = torch.stack([x[:, None, :].expand_as(inside), y[:, :, None].expand_as(inside)], dim=3)
    # The boxes' grids below one another make one long grid over the picture.
    samples = grid_sample(plane[None], grid.flatten(0, 1)[None], padding_mode="border", align_corners=True)
    return samples.view(-1, *inside.shape) * inside


def _operators_load() -> bool:
    """Whether torchvision's compiled operators load in this process."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True  # torchvision is missing altogether: let its import say so
    finder = importlib.machinery.PathFinder.find_spec("_C", list(spec.submodule_search_locations))
    if finder is None or finder.origin is None:
        return False
    try:
        torch.ops.load_library(finder.origin)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


MENDED = False
"""Whether torchvision did not fit PyTorch here: then timm can be imported after this module alone."""
_library: torch.library.Library | None = None
if torch.version.cuda is None and not _operators_load():
    MENDED = True
    # The library object must live as long as the process: its declarations go when it does.
    _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for _declaration in _DECLARATIONS:
        if not hasattr(torch.ops.torchvision, _declaration.partition("(")[0]):
            _library.define(_declaration)  # type: ignore[no-untyped-call]
