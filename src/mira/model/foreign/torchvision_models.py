"""Classification networks of torchvision, without their classifiers."""

from typing import Any

from torch import nn

import mira._torchvision  # noqa: F401  (must come before torchvision)

from torchvision import models  # isort: skip


def is_torchvision_model(name: str) -> bool:
    """Whether torchvision has a classification network of this name."""
    return name in models.list_models(module=models)


def find_weights(name: str, weights: str) -> Any:
    """One of the published weights of a network: an entry of torchvision's enumeration, with `.transforms()`.

    Args:
        name: of the network.
        weights: such as "IMAGENET1K_V2" or "DEFAULT".

    Raises:
        ValueError: torchvision has no such network or no such weights.
    """
    _check(name)
    known = models.get_model_weights(name)
    if weights not in known.__members__:
        raise ValueError(f"torchvision's '{name}' has no weights '{weights}', only {', '.join(known.__members__)}")
    return known[weights]


def create_torchvision_backbone(name: str, weights: Any = None) -> tuple[nn.Module, str]:
    """A network whose last linear layer, the classifier, is gone.

    Args:
        name: of the network.
        weights: from `find_weights`, downloaded where they are not in PyTorch's cache; None for random ones.

    Returns:
        A module from [B, 3, S, S] to [B, D], with `num_features` (D), and what the classifier was called.

    Raises:
        ValueError: torchvision has no such network, or it ends otherwise.
    """
    _check(name)
    model: nn.Module = models.get_model(name, weights=weights)
    linear = {inner: module for inner, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not linear:
        raise ValueError(f"torchvision's '{name}' does not end in a linear classifier: its features cannot be told")
    classifier, last = linear.popitem()
    model.set_submodule(classifier, nn.Identity())
    model.num_features = last.in_features  # type: ignore[assignment]  # as timm's networks have it
    return model, classifier


def _check(name: str) -> None:
    if not is_torchvision_model(name):
        near = [known for known in models.list_models(module=models) if known.startswith(name[:4])][:5]
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f"torchvision has no classification network '{name}'{hint}")
