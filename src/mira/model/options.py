"""Which further arguments of an architecture may be given: those that describe it, and no others.

Options come from recipes and from files of weights, which may be anybody's. `timm.create_model` takes more than the
architecture: words of its own load a file, fetch an address or run a pickle. None of them is a parameter of the
architecture's class, and only those are let through.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import mira._torchvision  # noqa: F401  (must come before timm)

import timm  # isort: skip

_DECIDED_ELSEWHERE = frozenset({"self", "args", "kwargs", "num_classes", "in_chans", "out_indices", "device", "dtype"})
_MOST = 65536  # of any number: a width, a side
_DEEPEST = 1000  # of a number of layers
_LONGEST = 100  # list
_COUNTS = ("layers", "depth", "block", "stages", "levels", "num_vit")
"""What the names of numbers of layers hold: each is built one by one."""


def refuse_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse what is no description of the architecture.

    Raises:
        ValueError: a word that the architecture's class does not have, or a value that is none of an architecture.
    """
    known = architecture_words(name) if options else frozenset()
    for word, value in options.items():
        if word not in known:
            raise ValueError(
                f"'{name}' has no model.backbone.options.{str(word)[:60]}: only what describes the architecture can be "
                f"given, which is {', '.join(sorted(known))}"
            )
        _refuse_value(word, value)


def architecture_words(name: str) -> frozenset[str]:
    """The parameters of an architecture's class and of the classes that it extends."""
    classes = [kind for kind in type(probe(name)).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]
    words = {word for kind in classes for word in inspect.signature(kind.__init__).parameters}
    return frozenset(words - _DECIDED_ELSEWHERE)


@functools.lru_cache(maxsize=16)
def probe(name: str) -> nn.Module:
    """An architecture of timm without weights in memory."""
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=0)
    return model


def _refuse_value(word: str, value: Any, depth: int = 0) -> None:
    if isinstance(value, list | tuple):
        if len(value) > _LONGEST or depth > 2:
            raise ValueError(f"option '{word}' is longer or deeper than any architecture's")
        for one in value:
            _refuse_value(word, one, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = _DEEPEST if any(part in word for part in _COUNTS) else _MOST
        if not abs(value) <= most:
            raise ValueError(f"option '{word}' may have numbers up to {most}, not {str(value)[:20]}")
    elif value is not None and not isinstance(value, bool | str):
        raise ValueError(f"option '{word}' must be a number, a word, true, false or a list, not {type(value).__name__}")
