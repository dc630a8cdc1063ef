"""Where pictures come from, behind one small interface."""

import difflib
import os
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from mira.data.fashion import FashionSource
from mira.data.folder import FolderSource, has_splits
from mira.data.torchvision_sets import TorchvisionSource

Split = Literal["train", "test", "all"]
Labels = Literal["auto", "folder", "none"]


@runtime_checkable  # the type checks of the tests look at instances
class PictureSource(Protocol):
    """A numbered collection of pictures.

    Attributes:
        name: what to call it in a report.
        labels: one class number per picture, or None.
        classes: the names of the classes; empty without labels.
    """

    name: str
    labels: Int64[np.ndarray, " N"] | None
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """The number of pictures, unreadable ones included."""
        ...

    def key(self, index: int) -> str:
        """The name of a picture: its relative path, or "train/123"."""
        ...

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """One picture; raises `UnreadablePicture`."""
        ...


def open_source(
    spec: str | os.PathLike[str],
    *,
    split: str = "train",
    labels: str = "auto",
    channels: int = 3,
    data_dir: str | os.PathLike[str] | None = None,
) -> PictureSource:
    """Open a folder, the built-in set or a set of torchvision.

    Args:
        spec: the path of a folder, "builtin:fashion", or "torchvision:NAME" as in "torchvision:CIFAR10".
        split: "train", "test" or "all". For folders see `FolderSource`.
        labels: "folder": the first folder level (below the split) is the class. "none": no labels. "auto": those
            that the set has; none for folders.
        channels: 3 for RGB, 1 for grey.
        data_dir: where torchvision keeps its sets; by default $MIRA_DATA, else ~/.cache/mira.

    Raises:
        ValueError: with what to do, for anything that cannot be opened.
    """
    for name, value, allowed in (("split", split, get_args(Split)), ("labels", labels, get_args(Labels))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), not {channels!r}")
    kind, colon, name = os.fspath(spec).partition(":")
    if kind not in ("builtin", "torchvision") or not colon:
        return FolderSource(_folder(spec), split=split, labels=labels, channels=channels)
    if labels == "folder":
        raise ValueError(f"labels 'folder' is for folders of pictures; {spec} has its own: use 'auto'")
    source: PictureSource
    if kind == "torchvision":
        data_dir = data_dir or os.environ.get("MIRA_DATA") or "~/.cache/mira"
        source = TorchvisionSource(name, split=split, channels=channels, data_dir=Path(data_dir).expanduser())
    elif name == "fashion":
        source = FashionSource(split=split, channels=channels)
    else:
        raise ValueError(f"there is no built-in set {name!r}: the only one is builtin:fashion")
    if labels == "none":
        source.labels, source.classes = None, ()
    return source


def pretraining_split(spec: str | os.PathLike[str]) -> Split:
    """The split to pretrain on: "train" where the source has one, otherwise "all". Labels do not matter."""
    kind = os.fspath(spec).partition(":")[0]
    if kind in ("builtin", "torchvision") or has_splits(Path(spec).expanduser()):
        return "train"
    return "all"


def _folder(spec: str | os.PathLike[str]) -> Path:
    folder = Path(spec).expanduser()
    if not folder.exists():
        sets = {"fashion": "builtin:fashion", "cifar10": "torchvision:CIFAR10", "mnist": "torchvision:MNIST"}
        word = os.fspath(spec).lower().rpartition(":")[2]
        nearest = difflib.get_close_matches(word, sets, n=1, cutoff=0.7)
        if nearest:
            raise ValueError(f"there is no folder {spec}: did you mean {sets[nearest[0]]}?")
        if ":" in os.fspath(spec):
            raise ValueError(f"unknown source {spec}: write a folder, builtin:fashion or torchvision:NAME")
    return folder
