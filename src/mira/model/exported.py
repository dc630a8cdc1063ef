"""Backbones in files of their own: what is written beside the weights, and how they are built again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from mira.model.backbone import BackboneSettings, create_backbone, timm_arguments
from mira.model.preprocessing import LARGEST_SIDE, Interpolation, Preprocessing
from mira.model.weights import load_backbone_weights, read_weights
from mira.settings import Settings

_KEY = "mira.backbone"
_Pixels = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
_Side: TypeAdapter[int] = TypeAdapter(_Pixels)


class _Preprocessing(Settings):
    """`Preprocessing` as a file has it."""

    size: _Pixels
    resize: _Pixels
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    interpolation: Interpolation = "bicubic"


def backbone_metadata(
    settings: BackboneSettings, preprocessing: Preprocessing, *, crop_size: int, weights: Mapping[str, Tensor]
) -> dict[str, str]:
    """What a weights file must say so that `read_backbone` can build the backbone: safetensors metadata.

    One entry, in which everything has its place: the same weights give the same file. It holds a digest, because
    safetensors has none and takes changed bytes of a tensor as they are.
    """
    content = {
        "settings": settings.untrained().model_dump(mode="json"),
        "crop_size": crop_size,
        "preprocessing": vars(preprocessing),
    }
    return {_KEY: json.dumps(content | {"digest": _digest(content, weights)})}


def read_backbone(path: str | Path) -> tuple[nn.Module, Preprocessing]:
    """Build the backbone of an exported weights file, in evaluation mode, and say what it expects.

    Raises:
        ValueError: the file is missing or damaged, or was not written by `mira export`.
    """
    weights, metadata = read_weights(path)
    settings, crop_size, preprocessing = parse_metadata(metadata, path)
    content = json.loads(metadata[_KEY])
    digest = content.pop("digest", None)  # files of version 0.1.0 have none
    if digest is not None and digest != _digest(content, weights):
        raise ValueError(f"'{path}' has changed since it was written: export or copy it again")
    backbone = create_backbone(settings, crop_size=crop_size)
    load_backbone_weights(backbone, path, layout="plain")
    return backbone.eval().requires_grad_(False), preprocessing


def _digest(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    state = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(weights.items()):
        state.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


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
    try:
        content = json.loads(metadata[_KEY])
        preprocessing = _Preprocessing.model_validate(content["preprocessing"])
        settings = BackboneSettings.model_validate(content["settings"]).untrained()
        crop_size = _Side.validate_python(content["crop_size"])
        if not len(preprocessing.mean) == len(preprocessing.std) == preprocessing.channels == settings.channels:
            raise ValueError("channels, mean and std do not go together")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"what '{path}' says of its backbone is damaged or of another version of mira-ssl ({reason[:300]}): export "
            "it again"
        ) from error
    return settings, crop_size, Preprocessing(**preprocessing.model_dump())
