"""Names made of content: of weights whatever file they lie in, and of pictures whatever object serves them."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from mira.data import Identified, PictureSource


def weights_digest(module: nn.Module) -> str:
    """A digest of every parameter and buffer, bit for bit, under its name, and of the layers; the same on any device.

    A run, its checkpoint and its exported backbone have one digest; a changed last bit gives another.
    """
    # The same tensors mean something else in layers that pad otherwise or have another number of heads, which not
    # every layer says of itself: so all plain numbers and words that layers keep are part of it.
    state = hashlib.blake2b(repr(module).encode(), digest_size=16)
    for name, layer in module.named_modules():
        plain = {key: value for key, value in vars(layer).items() if isinstance(value, int | float | str)}
        del plain["training"]
        state.update(f"{name}\0{sorted(plain.items())}\0".encode())
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        state.update(content.numpy().data)
    return state.hexdigest()


def source_digest(source: PictureSource) -> str | None:
    """A digest of the pictures behind a source; None for one that cannot say what they depend on."""
    identity = source.identity() if isinstance(source, Identified) else None
    if identity is None:
        return None
    state = hashlib.blake2b(digest_size=16)
    state.update(f"{source.name}\0{len(source)}\0".encode("utf-8", "surrogateescape"))
    state.update(identity.encode("utf-8", "surrogateescape"))
    return state.hexdigest()


def list_digest(path: str) -> str:
    """Eight characters for the content of a list of files; empty where it cannot be read, which its reader tells."""
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=4).hexdigest()
    except OSError:
        return ""
