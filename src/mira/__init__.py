"""MIRA: unsupervised visual representation learning by mutual-information-regularised pseudo-labels.

Lee, Choi, Kim, Chung: "Unsupervised Visual Representation Learning via Mutual Information Regularized
Assignment", NeurIPS 2022, arXiv 2211.02284.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mira.apply import embed, evaluate, export, load_backbone
    from mira.assignment import Assignment, assign
    from mira.data import open_source
    from mira.report import write_report
    from mira.training import Recipe, load_recipe, load_run, pretrain, resume

__version__ = "0.1.0"

__all__ = [
    "Assignment",
    "Recipe",
    "assign",
    "embed",
    "evaluate",
    "export",
    "load_backbone",
    "load_recipe",
    "load_run",
    "open_source",
    "pretrain",
    "resume",
    "write_report",
]

_HOMES = {
    "mira.apply": ("embed", "evaluate", "export", "load_backbone"),
    "mira.assignment": ("Assignment", "assign"),
    "mira.data": ("open_source",),
    "mira.report": ("write_report",),
    "mira.training": ("Recipe", "load_recipe", "load_run", "pretrain", "resume"),
}


def __getattr__(name: str) -> Any:
    # Names are imported when they are first used (PEP 562): someone who wants only `assign` loads no image
    # library, and `mira --help` answers at once.
    for home, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(home), name)
    raise AttributeError(f"module 'mira' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
