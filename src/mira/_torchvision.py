"""Make torchvision importable beside a CPU build of PyTorch.

The torchvision wheels that `pip install torchvision` brings on Linux are compiled against PyTorch's CUDA
build. Beside a CPU build their operators cannot be loaded, and the import fails where torchvision describes
the shapes of operators that then do not exist. Nothing here uses those operators (they belong to detection),
so it is enough to declare them. Import this module before timm or torchvision.
"""

import importlib.machinery
import importlib.util

import torch

_DECLARATIONS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


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


if torch.version.cuda is None and not _operators_load():
    # The library object must live as long as the process: its declarations go when it does.
    _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for _declaration in _DECLARATIONS:
        if not hasattr(torch.ops.torchvision, _declaration.partition("(")[0]):
            _library.define(_declaration)  # type: ignore[no-untyped-call]
