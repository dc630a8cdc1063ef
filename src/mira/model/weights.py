"""Reading weights from files, without running code that may hide in them, and putting them into backbones."""

import argparse
import errno
import pathlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mira.model.foreign.selection import Selection, select

# What training scripts save beside tensors, and all of it that is let through: their arguments (DINO), the paths among
# them, and learning rates that came out of a NumPy schedule (SwAV, DINO). None of these can do more than hold a value.
_PLAIN_VALUES: list[Any] = [
    argparse.Namespace,
    (pathlib.PurePosixPath, "pathlib.PosixPath"),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)),
]

_WRAPPERS = ("state_dict", "model")


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every state dict of a `.safetensors` file or a PyTorch file.

    Names are as the file has them, without the "module." of DataParallel. An entry "state_dict" or "model" adds
    nothing to them, any other entry that is a state dict its name: DINO's
    `file["teacher"]["module.backbone.cls_token"]` is "teacher.backbone.cls_token". Optimiser, epoch
    and arguments are passed over.

    Returns:
        The tensors by name, and the file's metadata (empty for a PyTorch file).

    Raises:
        ValueError: the file is missing, damaged, holds no state dict or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no weights file '{path}'")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                return _unwrapped({name: file.get_tensor(name) for name in names}), dict(file.metadata() or {})
        except SafetensorError as error:
            raise ValueError(f"'{path}' is not a readable safetensors file: {error}") from error
    content = read_torch_file(path)
    entries = {"": content} if _is_state_dict(content) else content
    tensors: dict[str, Tensor] = {}
    for entry, value in entries.items():
        if not _is_state_dict(value):
            continue
        prefix = "" if entry in ("", *_WRAPPERS) else f"{str(entry).removesuffix('_state_dict')}."
        named = {f"{prefix}{name}": tensor for name, tensor in _unwrapped(value).items()}
        if named.keys() & tensors.keys():
            raise ValueError(f"'{path}' holds several state dicts: save the one that is meant in a file of its own")
        tensors |= named
    if not tensors:
        raise ValueError(f"'{path}' holds no state dict; its entries are {', '.join(map(str, list(content)[:5]))}")
    return tensors, {}


def verify_checksums(path: str | Path) -> None:
    """Read every byte of a zip file, as `torch.save` writes it, and compare it with the checksums in it.

    `torch.load` does not: it takes changed bytes of a tensor as they are.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            damaged = next((entry.filename for entry in entries if _misleads(entry)), None) or archive.testzip()
    except Exception as error:  # zipfile raises many kinds for a damaged file
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # to seek before the start
            raise
        raise ValueError(f"'{path}' is damaged or cut off ({error}): copy or download it again") from error
    if damaged is None:
        return
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(
            f"'{path}' is not written by torch.save: it is a damaged or a compressed archive, such as TorchScript's. "
            "Load the latter with torch.jit.load, save its state dict, and open that file"
        )
    raise ValueError(
        f"'{path}' is damaged: the length or checksum of '{damaged}' inside it is wrong. Copy or download it again, "
        "or, if it was written without checksums (torch.serialization.set_crc32_options), save it again with them"
    )


def _misleads(entry: zipfile.ZipInfo) -> bool:
    """Whether PyTorch would read nothing, or too much, where `testzip` sees no harm."""
    is_folder = bool(entry.external_attr & 0x10)
    return is_folder or entry.file_size != entry.compress_size  # torch.save compresses nothing


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """`torch.load` of a dictionary on the CPU that refuses anything but tensors and plain values.

    Raises:
        ValueError: the file is damaged, would run code, or holds no dictionary.
    """
    with Path(path).open("rb") as file:
        start = file.read(2)
    if start == b"PK":
        verify_checksums(path)
    if start[:2] != b"PK" and start[:1] != b"\x80":  # a zip file, or a pickle as PyTorch wrote them before 1.6
        raise ValueError(f"'{path}' is not a file of weights, or is damaged: it does not begin as PyTorch's files do")
    try:
        with torch.serialization.safe_globals(_PLAIN_VALUES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged file
        # PyTorch's own advice, to load it unsafely, comes first in its message; the cause stands after these words.
        cause = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
        reason = (cause.splitlines() or [type(error).__name__])[0]
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            reason = (
                f"it asks for {asked[1]}, and what a file asks for can run any code. Nothing was run. If you trust it, "
                "load it with torch.load(..., weights_only=False), save only its state dict, and open that file"
            )
        raise ValueError(f"'{path}' is damaged or not a file of plain tensors: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def load_backbone_weights(
    backbone: nn.Module, path: str | Path, *, layout: str = "auto", which: str = "teacher"
) -> Selection:
    """Load a file of any layout in `mira.model.foreign.layouts` into a backbone of timm.

    Projectors, prototypes and the like that the layout names, and a classifier, are left out; everything else must fit.

    Returns:
        What was taken from the file and what was left out.

    Raises:
        ValueError: lists the names that are missing, unknown or of another shape; or the layout is not recognised.
    """
    tensors, _ = read_weights(path)
    selection = select_from(path, tensors, layout=layout, which=which)
    return put_in(backbone, selection, path, classifier=timm_classifier(backbone))


def select_from(path: str | Path, tensors: Mapping[str, Tensor], *, layout: str, which: str) -> Selection:
    """`select`, with the file's name in its errors."""
    try:
        return select(tensors, layout=layout, which=which)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None


def put_in(backbone: nn.Module, selection: Selection, path: str | Path, *, classifier: tuple[str, ...]) -> Selection:
    """Load what was selected from a file, all of it or nothing.

    Args:
        backbone: without its classifier.
        selection: of the file's tensors.
        path: for the error.
        classifier: what the names of the architecture's classifier begin with; methods put projectors in its place.

    Returns:
        The selection without the classifier, which is added to what was left out.

    Raises:
        ValueError: lists the names that are missing, unknown or of another shape.
    """
    own = backbone.state_dict()
    given = without_classifier(selection.tensors, own, classifier)
    if problems := mismatches(own, given):
        raise ValueError(f"the weights in '{path}' do not fit the backbone: {enumerated(problems)}")
    width = getattr(backbone, "embed_dim", None)  # a list where it grows with depth, and that is no ViT
    heads = selection.layout.vit_heads.get(width) if isinstance(width, int) else None
    if heads is not None and heads != (own_heads := _attention_heads(backbone)):
        raise ValueError(
            f"the weights in '{path}' belong to {heads} attention heads and the backbone has {own_heads}: the shapes "
            f"agree, the features would not. Build it with num_heads={heads} (model.backbone.options in a recipe)"
        )
    backbone.load_state_dict({name: given.get(name, tensor) for name, tensor in own.items()})
    dropped = [
        head for head in classifier if any(name.startswith(f"{head}.") for name in selection.tensors.keys() - given)
    ]
    return replace(selection, tensors=given, left_out=(*selection.left_out, *(f"{head}." for head in dropped)))


def timm_classifier(backbone: nn.Module) -> tuple[str, ...]:
    """What the names of a timm architecture's classifier begin with."""
    classifier = (getattr(backbone, "default_cfg", None) or {}).get("classifier", "fc")
    return (classifier,) if isinstance(classifier, str) else tuple(classifier or ())


def without_classifier(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], classifier: tuple[str, ...]
) -> dict[str, Tensor]:
    """The tensors less those of a classifier that the backbone does not have."""
    heads = tuple(f"{head}." for head in classifier)
    return {name: tensor for name, tensor in tensors.items() if name in own or not name.startswith(heads)}


def mismatches(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What stands in the way of loading `given` into a module whose state dict is `own`, a phrase for each name.

    BatchNorm's counters may be missing altogether: they count training steps, and features do not depend on them.
    """
    counted = any(name.endswith("num_batches_tracked") for name in given)
    wanted = [name for name in own if counted or not name.endswith("num_batches_tracked")]
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is not part of the backbone" for name in given if name not in own]
    problems += [
        f"{name} is {tuple(given[name].shape)}, the backbone's is {tuple(own[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != own[name].shape
    ]
    return problems


def enumerated(problems: list[str]) -> str:
    """The first eight, and how many more there are."""
    return "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")


def _attention_heads(backbone: nn.Module) -> int:
    counts = (getattr(module, "num_heads", None) for module in backbone.modules())
    return next((count for count in counts if isinstance(count, int)), 0)


def _is_state_dict(value: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(value, dict) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the "module." that DataParallel and DistributedDataParallel put before every name."""
    wrapped = all(str(name).startswith("module.") for name in tensors)
    return {str(name).removeprefix("module.") if wrapped else str(name): tensor for name, tensor in tensors.items()}
