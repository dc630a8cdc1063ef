"""Which network a file's tensors belong to: named by the caller, or told by their shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

import mira._torchvision  # noqa: F401  (must come before timm)
from mira.model.backbone import BackboneSettings, create_backbone
from mira.model.foreign.layouts import LAYOUTS
from mira.model.foreign.selection import Selection, beginnings
from mira.model.foreign.torchvision_models import (
    create_torchvision_backbone,
    find_weights,
    is_torchvision_model,
)
from mira.model.weights import enumerated, mismatches, without_classifier

import timm  # isort: skip
from timm.data.config import resolve_data_config  # isort: skip
from timm.layers.conv2d_same import Conv2dSame  # isort: skip
from timm.layers.pool2d_same import MaxPool2dSame  # isort: skip
from timm.models.resnet import ResNet  # isort: skip

# Published self-supervised weights are of these. No two have tensors of the same names and shapes.
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2")
VITS = (
    *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_small_patch8_224", "vit_base_patch16_224"),
    *("vit_base_patch8_224", "vit_large_patch16_224"),
)


@dataclass(frozen=True)
class Architecture:
    """A network to load weights into.

    Attributes:
        name: as in timm or torchvision.
        side: of the pictures it was made for, in pixels.
        classifier: what the names of its classifier begin with.
        build: makes it with random weights and without the classifier.
    """

    name: str
    side: int
    classifier: tuple[str, ...]
    build: Callable[[], nn.Module]


def find_architecture(selection: Selection, name: str | None, path: str | Path) -> Architecture:
    """The architecture of what was selected from a file.

    Args:
        selection: of the file's tensors.
        name: of timm or torchvision; "timm:" or "torchvision:" before it says which, timm comes first. None to tell it
            by names and shapes.
        path: for the error.

    Raises:
        ValueError: nobody has an architecture of that name, or names and shapes are not those of a known one.
    """
    if name is None:
        name = guess_architecture(selection, path)
    library, _, bare = name.rpartition(":")
    if library not in {"", "timm", "torchvision"}:
        raise ValueError(f"'{name}' is no architecture: write NAME, timm:NAME or torchvision:NAME")
    if library == "torchvision" or (not library and not timm.is_model(bare) and is_torchvision_model(bare)):
        side = find_weights(bare, "DEFAULT").transforms().crop_size[0]
        _, classifier = create_torchvision_backbone(bare)
        return Architecture(bare, side, (classifier,), lambda: create_torchvision_backbone(bare)[0])
    options: dict[str, Any] = {}
    if (heads := _heads(selection)) is not None:
        options["num_heads"] = heads
    return timm_architecture(
        bare, side=_vit_side(selection), options=options, same_padding=selection.layout.same_padding
    )


def guess_architecture(selection: Selection, path: str | Path) -> str:
    """The name, in timm, of the one known architecture that a file's names and shapes are of.

    Raises:
        ValueError: it is none of them, and what the nearest would need; or a ViT whose layout does not tell the number
            of attention heads. Shapes never do.
    """
    side = _vit_side(selection)
    options: dict[str, Any] = {} if side is None else {"img_size": side}
    problems: dict[str, list[str]] = {}
    for name in RESNETS if side is None else VITS:
        with torch.device("meta"):  # names and shapes, no memory
            own = timm.create_model(name, num_classes=0, **options).state_dict()
        problems[name] = mismatches(own, without_classifier(selection.tensors, own, _timm_classifier(name)))
        if not problems[name]:
            break
    nearest = min(problems, key=lambda name: len(problems[name]))
    if problems[nearest]:
        raise ValueError(
            f"'{path}' is of none of the known layouts and architectures; {beginnings(selection.tensors)}. Pass "
            f"architecture, a name of timm or torchvision (known by their shapes: {', '.join(problems)}), or layout if "
            f"another code wrote it ({', '.join(one.name for one in LAYOUTS)}). Of the nearest, {nearest}: "
            f"{enumerated(problems[nearest])}"
        )
    if side is not None and _heads(selection) is None:
        raise ValueError(
            f"'{path}' has the shapes of {nearest}, but shapes do not tell the number of attention heads. Pass "
            f"architecture='{nearest}' if it has as many as timm's network of that name, as DINO's published files do"
        )
    return nearest


def timm_architecture(
    name: str,
    *,
    side: int | None = None,
    options: dict[str, Any] | None = None,
    pretrained: bool = False,
    same_padding: bool = False,
) -> Architecture:
    """An architecture of timm; `pretrained` for one whose `build` fetches timm's weights.

    Raises:
        ValueError: timm has none of that name, or one that is no ResNet was asked for with TensorFlow's padding.
    """
    try:
        settings = BackboneSettings(name=name, stem="standard", pretrained=pretrained, options=options or {})
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    side = side or int(timm_data_config(name)["input_size"][1])

    def build() -> nn.Module:
        backbone = create_backbone(settings, crop_size=side)
        return _pad_as_tensorflow(backbone) if same_padding else backbone

    return Architecture(name, side, _timm_classifier(name), build)


def timm_data_config(name: str) -> dict[str, Any]:
    """What timm says of the pictures that its weights of this name expect."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    known = {} if config is None else config.to_dict()  # type: ignore[no-untyped-call]
    resolved: dict[str, Any] = resolve_data_config(pretrained_cfg=known)  # type: ignore[no-untyped-call]
    return resolved


def _timm_classifier(name: str) -> tuple[str, ...]:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    classifier = config.classifier if config else "fc"
    return (classifier,) if isinstance(classifier, str) else tuple(classifier or ())


def _vit_side(selection: Selection) -> int | None:
    """The side of the pictures that a ViT's position embeddings were learned on; None for other networks."""
    patches, positions = (selection.tensors.get(name) for name in ("patch_embed.proj.weight", "pos_embed"))
    if patches is None or positions is None or patches.ndim != 4 or positions.ndim != 3:
        return None
    # Class and register tokens are fewer than would make the grid one larger.
    return isqrt(positions.shape[1]) * int(patches.shape[-1])


def _heads(selection: Selection) -> int | None:
    tokens = selection.tensors.get("cls_token")
    return None if tokens is None else selection.layout.vit_heads.get(int(tokens.shape[-1]))


def _pad_as_tensorflow(backbone: nn.Module) -> nn.Module:
    """Let a ResNet's strided operations pad as TensorFlow's "SAME": an odd number goes to the right and below."""
    if not isinstance(backbone, ResNet):
        raise ValueError("the layout 'byol-jax' is of ResNets: name one as architecture, such as 'resnet50'")
    for name, module in list(backbone.named_modules()):
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and module.kernel_size != (1, 1):
            side = module.kernel_size[0]
            same = Conv2dSame(module.in_channels, module.out_channels, side, stride=2, bias=False)
            same.weight = module.weight
            backbone.set_submodule(name, same)
    backbone.set_submodule("maxpool", MaxPool2dSame(kernel_size=3, stride=2))
    return backbone
