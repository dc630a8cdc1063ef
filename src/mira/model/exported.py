"""Backbones in files of their own: what is written beside the weights, and how they are built again."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from mira.model.backbone import BackboneSettings, create_backbone, timm_arguments
from mira.model.preprocessing import Preprocessing
from mira.model.weights import load_backbone_weights, read_weights

_KEY = "mira.backbone"


def backbone_metadata(settings: BackboneSettings, preprocessing: Preprocessing, *, crop_size: int) -> dict[str, str]:
    """What a weights file must say so that `read_backbone` can build the backbone: safetensors metadata."""
    content = {
        "settings": settings.model_dump(mode="json") | {"pretrained": False},
        "crop_size": crop_size,
        "preprocessing": vars(preprocessing),
    }
    return {_KEY: json.dumps(content), "architecture": settings.name}


def read_backbone(path: str | Path) -> tuple[nn.Module, Preprocessing]:
    """Build the backbone of an exported weights file, in evaluation mode, and say what it expects.

    Raises:
        ValueError: the file is missing or damaged, or was not written by `mira export`.
    """
    _, metadata = read_weights(path)
    settings, crop_size, preprocessing = parse_metadata(metadata, path)
    backbone = create_backbone(settings, crop_size=crop_size)
    load_backbone_weights(backbone, path, layout="plain")
    return backbone.eval().requires_grad_(False), preprocessing


def timm_call(path: str | Path) -> str | None:
    """The `timm.create_model` call that loads an exported file; None where its small stem is unknown to timm.

    Raises:
        ValueError: as `read_backbone`.
    """
    _, metadata = read_weights(path)
    settings, crop_size, _ = parse_metadata(metadata, path)
    options, small_stem = timm_arguments(settings, crop_size=crop_size)
    if small_stem:
        return None
    arguments = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"timm.create_model('{settings.name}', num_classes=0, checkpoint_path={str(path)!r}{arguments})"


def is_exported(metadata: Mapping[str, str]) -> bool:
    """Whether a file with this metadata was written by `mira export`."""
    return _KEY in metadata


def parse_metadata(metadata: Mapping[str, str], path: str | Path) -> tuple[BackboneSettings, int, Preprocessing]:
    """What `backbone_metadata` wrote: the architecture, the side of its crops, and the input that it expects.

    Raises:
        ValueError: the file was not written by `mira export`; `path` is for the sentence.
    """
    if not is_exported(metadata):
        raise ValueError(
            f"'{path}' does not say which backbone it holds: it was not written by `mira export`. "
            "Open it with mira.opening.open_subject, which knows other people's files"
        )
    content = json.loads(metadata[_KEY])
    values = content["preprocessing"]
    preprocessing = Preprocessing(
        size=values["size"],
        resize=values["resize"],
        channels=values["channels"],
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        interpolation=values.get("interpolation", "bicubic"),
    )
    return BackboneSettings.model_validate(content["settings"]), content["crop_size"], preprocessing
