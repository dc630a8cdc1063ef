"""Weights for others: a backbone in timm's names."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from mira.files import atomic_path


def write_backbone(backbone: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> Path:
    """Write a backbone's weights and buffers as safetensors under the names of its state dict.

    For a backbone of timm these are timm's names: `timm.create_model` with the arguments that built the backbone, and
    `checkpoint_path`, loads the file (not where the small stem took the place of the architecture's own).

    Args:
        metadata: goes into the file's header as it is (architecture, preprocessing).

    Returns:
        The path written.

    Raises:
        ValueError: the suffix is not `.safetensors`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are exported as .safetensors, not '{path.suffix}': rename '{path.name}'.")
    # Copies: safetensors refuses tensors that share memory or are not contiguous (channels-last ones).
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in backbone.state_dict().items()}
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(f"'{path}' cannot be written ({error}): is the disk full?") from error
    return path


def _same_header(content: bytes) -> bytes:
    """The same file with sorted metadata: safetensors writes them in any order, and equal weights are equal files."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-len(text) % 8 + len(text))
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
