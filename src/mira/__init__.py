"""MIRA: unsupervised visual representation learning by mutual-information-regularised pseudo-labels.

Lee, Choi, Kim, Chung: "Unsupervised Visual Representation Learning via Mutual Information Regularized
Assignment", NeurIPS 2022, arXiv 2211.02284.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mira import assignment as assignment
    from mira import data as data
    from mira import errors as errors
    from mira import evaluation as evaluation
    from mira import model as model
    from mira import opening as opening
    from mira import report as report
    from mira import training as training
    from mira.apply import embed, evaluate, export, load_backbone
    from mira.assignment import (
        Assignment,
        assign,
        centre_and_sharpen,
        sinkhorn,
        softmax_labels,
        swapped_cross_entropy,
    )
    from mira.data import open_source
    from mira.report import write_report
    from mira.training import Recipe, load_recipe, load_run, pretrain, resume

__version__ = "0.1.0"

__all__ = [
    "Assignment",
    "Recipe",
    "assign",
    "centre_and_sharpen",
    "embed",
    "evaluate",
    "export",
    "load_backbone",
    "load_recipe",
    "load_run",
    "open_source",
    "pretrain",
    "resume",
    "sinkhorn",
    "softmax_labels",
    "swapped_cross_entropy",
    "write_report",
]

_HOMES = {
    "mira.apply": ("embed", "evaluate", "export", "load_backbone"),
    "mira.assignment": (
        "Assignment",
        "assign",
        "centre_and_sharpen",
        "sinkhorn",
        "softmax_labels",
        "swapped_cross_entropy",
    ),
    "mira.data": ("open_source",),
    "mira.report": ("write_report",),
    "mira.training": ("Recipe", "load_recipe", "load_run", "pretrain", "resume"),
}
_MODULES = ("assignment", "data", "errors", "evaluation", "model", "opening", "report", "training")


def __getattr__(name: str) -> Any:
    # Names are imported when they are first used (PEP 562): someone who wants only `assign` loads no image
    # library, and `mira --help` answers at once.
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"mira.{name}")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'mira' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, *_MODULES, "__version__"]
