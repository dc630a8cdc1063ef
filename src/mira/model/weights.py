"""Reading weights from files, without running code that may hide in them."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a `.safetensors` file or a PyTorch file of plain tensors.

    Returns:
        The tensors by name, and the file's metadata (empty for a PyTorch file).

    Raises:
        ValueError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no weights file '{path}'")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
        except SafetensorError as error:
            raise ValueError(f"'{path}' is not a readable safetensors file: {error}") from error
    content = read_torch_file(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    tensors = {str(name).removeprefix("module."): value for name, value in content.items()}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"'{path}' holds no state dict; its entries are {', '.join(map(str, list(content)[:5]))}")
    return tensors, {}


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """`torch.load` of a dictionary on the CPU that refuses anything but tensors and plain values.

    Raises:
        ValueError: the file is damaged, would run code, or holds no dictionary.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"'{path}' is damaged or not a file of plain tensors: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def load_backbone_weights(backbone: nn.Module, path: str | Path) -> None:
    """Load a file into a backbone. A classifier in the file is left out; everything else must fit.

    Raises:
        ValueError: lists the names that are missing, unknown or of another shape.
    """
    tensors, _ = read_weights(path)
    classifier = (getattr(backbone, "default_cfg", None) or {}).get("classifier", "fc")
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    own = backbone.state_dict()
    given = {
        name: value
        for name, value in tensors.items()
        if name in own or not any(name.startswith(f"{head}.") for head in heads)
    }
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is not part of the backbone" for name in given if name not in own]
    problems += [
        f"{name} is {tuple(given[name].shape)}, the backbone's is {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"the weights in '{path}' do not fit the backbone: {shown}")
    backbone.load_state_dict(given)
