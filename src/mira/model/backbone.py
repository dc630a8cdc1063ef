"""Backbones: any architecture of timm, without its classifier."""

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

import mira._torchvision  # noqa: F401  (must come before timm)
from mira.model.memory import refuse_beyond_memory
from mira.model.options import probe, refuse_options
from mira.model.weights import load_backbone_weights
from mira.offline import fetching
from mira.settings import Settings

import timm  # isort: skip
from timm.models.convnext import ConvNeXt  # isort: skip
from timm.models.resnet import ResNet  # isort: skip
from timm.models.vision_transformer import VisionTransformer  # isort: skip

SMALL_PICTURE = 64
"""Global crops below this side (pixels) get the small stem where `stem` is "auto"."""


class BackboneSettings(Settings):
    """Which backbone.

    Attributes:
        name: an architecture of timm, as `timm.list_models()` gives them.
        channels: 1 for grey input, 3 for colour.
        stem: "standard" is the architecture's own; "small" keeps the resolution of small pictures (ResNet: a
            3x3 convolution of stride 1 and no pooling, as in SimCLR's CIFAR experiments, arXiv 2002.05709
            appendix B.9; ViT: patches of 4; ConvNeXt: patches of 1); "auto" is "small" for global crops under
            64 pixels where the architecture has a small stem.
        pretrained: true for timm's published weights (from the hub), or the path of a weights file.
        options: parameters of the architecture's class in timm, such as `{drop_path_rate: 0.1}`. What timm takes
            besides (a file to load, an address) is refused.
    """

    name: str = "resnet50"
    channels: Literal[1, 3] = 3
    stem: Literal["auto", "standard", "small"] = "auto"
    pretrained: bool | str = False
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if not timm.is_model(name):
            near = timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")[:5]
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise ValueError(f"timm has no architecture '{name[:60]}'{hint}. `timm.list_models()` lists all")
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            raise ValueError(f"timm has no '{name[:60]}' ({error})") from None
        return name

    @field_validator("options")
    @classmethod
    def _of_the_architecture(cls, options: dict[str, Any], info: Any) -> dict[str, Any]:
        if "name" in info.data:
            refuse_options(info.data["name"], options)
        return options

    def untrained(self) -> "BackboneSettings":
        """The same architecture at random, for weights that are loaded next: nothing is fetched or read."""
        return self.model_copy(update={"pretrained": False})


def create_backbone(settings: BackboneSettings, *, crop_size: int, other_sizes: Iterable[int] = ()) -> nn.Module:
    """Build a backbone that maps pictures `[B, C, S, S]` to pooled features `[B, D]`; D is `.num_features`.

    Args:
        settings: the architecture and its start.
        crop_size: side of the global crops, in pixels; decides the stem where it is "auto" and a ViT's grid.
        other_sizes: further sides that it must take, in pixels.

    Raises:
        ValueError: an architecture that does not take pictures of these sizes, one without a small stem that was
            asked for one, an option that the architecture does not take, or weights that do not fit it.
    """
    options, shrink_stem = timm_arguments(settings, crop_size=crop_size)
    backbone = _build(settings, options)
    if shrink_stem:
        _shrink_resnet_stem(backbone, settings.channels)
        if settings.pretrained is True:
            warnings.warn("the small stem is new: it starts at random, the rest is pretrained", stacklevel=2)
    if isinstance(settings.pretrained, str):
        load_backbone_weights(backbone, settings.pretrained)
    # timm's num_features is not the width of the output for every architecture.
    widths = {_feature_width(backbone, settings, size) for size in (crop_size, *other_sizes)}
    backbone.num_features = widths.pop()  # type: ignore[assignment]
    return backbone


def _build(settings: BackboneSettings, options: dict[str, Any]) -> nn.Module:
    name = settings.name

    def build(device: str) -> nn.Module:
        try:
            with torch.device(device):
                model: nn.Module = timm.create_model(name, num_classes=0, **options)
        except Exception as error:  # architectures raise anything for options that they cannot be built with
            raise ValueError(
                f"model.backbone.options: '{name}' cannot be built with {options}: {_reason(error)}"
            ) from error
        return model

    refuse_beyond_memory(build("meta"), f"model.backbone: '{name}'")  # quick, and takes no memory itself
    if settings.pretrained is not True:
        return build("cpu")
    with fetching(f"the weights of 'timm:{name}'", "name a file of weights that you have in place of them"):
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0, **options)
    return model


def _reason(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def timm_arguments(settings: BackboneSettings, *, crop_size: int) -> tuple[dict[str, Any], bool]:
    """Keyword arguments of `timm.create_model`, and whether a ResNet's stem is replaced by the small one afterwards.

    Raises:
        ValueError: the architecture has no small stem and was asked for one.
    """
    options: dict[str, Any] = {"in_chans": settings.channels, **settings.options}
    small = settings.stem == "small" or (settings.stem == "auto" and crop_size < SMALL_PICTURE)
    family = _family(settings.name)
    if small and family is None:
        if settings.stem == "small":
            raise ValueError(
                f"model.backbone.stem: '{settings.name}' has no small stem; ResNets, ViTs and ConvNeXts "
                "have. Write 'standard', or choose one of those"
            )
        small = False
    if family is VisionTransformer:
        # Crops of several sizes go through one network: position embeddings are interpolated to each.
        options.setdefault("img_size", crop_size)
        options.setdefault("dynamic_img_size", True)
        options.setdefault("dynamic_img_pad", True)
        if small:
            options.setdefault("patch_size", 4)
    if family is ConvNeXt and small:
        options.setdefault("patch_size", 1)
    return options, family is ResNet and small


@torch.no_grad()
def _feature_width(backbone: nn.Module, settings: BackboneSettings, size: int) -> int:
    """Width of the features of one picture of this side; what fails here would fail in the first step."""
    training = backbone.training
    try:
        features = backbone.eval()(torch.zeros(1, settings.channels, size, size))
    except Exception as error:  # whatever an architecture raises for a size, or for options that do not go together
        raise ValueError(
            f"model.backbone.name: '{settings.name}' does not take pictures of {size} pixels ({_reason(error)}). "
            "Change crops.global_crops.size, crops.local_crops.size or evaluation.size, or give the architecture's own "
            "size in model.backbone.options"
        ) from None
    finally:
        backbone.train(training)
    if features.ndim != 2:
        raise ValueError(f"model.backbone.name: '{settings.name}' gives {list(features.shape)}, not pooled features")
    return int(features.shape[1])


def _family(name: str) -> type[nn.Module] | None:
    """The architecture family whose stem this module knows, judged on a model without weights in memory."""
    return next((family for family in (ResNet, VisionTransformer, ConvNeXt) if isinstance(probe(name), family)), None)


def _shrink_resnet_stem(backbone: nn.Module, channels: int) -> None:
    stem = backbone.conv1
    if isinstance(stem, nn.Sequential):  # the "deep" stem of ResNet-D is 3x3 already; only its stride goes
        first = stem[0]
        assert isinstance(first, nn.Conv2d)
        first.stride = (1, 1)
    else:
        assert isinstance(stem, nn.Conv2d)
        backbone.conv1 = nn.Conv2d(channels, stem.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    backbone.maxpool = nn.Identity()
