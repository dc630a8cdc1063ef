"""Where pictures come from, behind one small interface."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from mira.data.fashion import FashionSource
from mira.data.folder import FolderSource, has_splits
from mira.data.hugging_face import HuggingFaceSource, has_own_splits
from mira.data.limits import megabytes_of
from mira.data.names import path_of, path_text
from mira.data.parquet import ParquetSource
from mira.data.remote import is_remote
from mira.data.shards import has_split_files, remote_files, shard_paths
from mira.data.tar import TarSource
from mira.data.torchvision_sets import TorchvisionSource
from mira.files import cache_folder

Split = Literal["train", "test", "all"]
Labels = Literal["auto", "folder", "none"]
_KINDS = ("builtin", "torchvision", "hf", "parquet")


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


@runtime_checkable
class Identified(Protocol):
    """A source that can say what its pictures depend on, so that features of them can be kept."""

    def identity(self) -> str | None:
        """A text that changes whenever a picture may have; None where that cannot be told after all."""
        ...


@runtime_checkable
class EncodedSource(Protocol):
    """A source that keeps its pictures encoded, so that they can be decoded at the size that is needed."""

    channels: int

    def encoded(self, index: int) -> bytes:
        """The file of a picture; raises `UnreadablePicture`."""
        ...


@runtime_checkable
class ShardedSource(Protocol):
    """A source whose pictures lie in a few large files that may have to be fetched.

    Attributes:
        shard_of: the file that each picture lies in, numbered from 0.
        fetched_sizes: bytes of each file that has to be fetched; empty where all are here.
        room: bytes that copies of fetched files may take.
    """

    shard_of: Int64[np.ndarray, " N"]
    fetched_sizes: Sequence[int]
    room: int

    def expect(self, shards: Sequence[int]) -> None:
        """Pictures of these files are needed soon, in this order."""
        ...


def open_source(
    spec: str | os.PathLike[str],
    *,
    split: str = "train",
    labels: str = "auto",
    channels: int = 3,
    data_dir: str | os.PathLike[str] | None = None,
    copies_gigabytes: float | None = None,
) -> PictureSource:
    """Open a folder, tar or Parquet files, the built-in set, or a set of torchvision or Hugging Face.

    Args:
        spec: the path of a folder; tar files, as in "shards/train-{000..012}.tar", "shards/*.tar" or
            "https://host/train-{000..012}.tar" ("s3://..." and what else fsspec knows); local Parquet files
            likewise, or "parquet:FOLDER"; "builtin:fashion"; "torchvision:NAME" as in "torchvision:CIFAR10";
            "hf:NAME" for Hugging Face's hub, or "hf:FOLDER" for what `save_to_disk` wrote.
        split: "train", "test" or "all". For folders see `FolderSource`.
        labels: "folder": the first folder level (below the split) is the class, in folders and tar files. "none":
            no labels. "auto": those that the set has; none for folders.
        channels: 3 for RGB, 1 for grey.
        data_dir: where torchvision keeps its sets; by default $MIRA_DATA, else ~/.cache/mira.
        copies_gigabytes: the most that copies of remote files may take in `cache_folder("shards")`; None for
            $MIRA_CACHE_GIGABYTES, else 50.

    Raises:
        ValueError: with what to do, for anything that cannot be opened.
    """
    for name, value, allowed in (("split", split, get_args(Split)), ("labels", labels, get_args(Labels))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), not {channels!r}")
    kind, colon, name = os.fspath(spec).partition(":")
    if (suffix := _shard_suffix(spec)) == ".tar":
        if copies_gigabytes is None:
            copies_gigabytes = megabytes_of("MIRA_CACHE_GIGABYTES", 50.0, "gigabytes")
        limit = int(copies_gigabytes * 2**30)
        return TarSource(
            _pattern(spec),
            split=split,
            labels=labels,
            channels=channels,
            copies=cache_folder("shards"),
            copies_limit=limit,
        )
    if is_remote(spec):
        raise ValueError(f"of what lies at an address only tar files can be read, not {spec}: fetch it first")
    if not suffix and (kind not in _KINDS or not colon):
        return FolderSource(_folder(spec), split=split, labels=labels, channels=channels)
    if labels == "folder":
        raise ValueError(f"labels 'folder' is for folders of pictures; {spec} has its own: use 'auto'")
    if suffix:
        return ParquetSource(_pattern(spec), split=split, labels=labels, channels=channels)
    if kind == "hf":
        return HuggingFaceSource(name, split=split, labels=labels, channels=channels)
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
    kind, _, name = os.fspath(spec).partition(":")
    if suffix := _shard_suffix(spec):
        pattern = _pattern(spec)
        own = has_split_files(remote_files(pattern) if is_remote(pattern) else shard_paths(pattern, suffix))
    elif kind == "hf":
        own = has_own_splits(name)
    else:
        own = kind in ("builtin", "torchvision") or has_splits(path_of(spec))
    return "train" if own else "all"


def absolute_spec(spec: str | os.PathLike[str]) -> str:
    """The same source, to be opened from any working folder."""
    if is_remote(spec):
        return os.fspath(spec)
    kind, colon, name = os.fspath(spec).partition(":")
    if kind not in _KINDS or not colon:
        return path_text(path_of(spec).absolute())
    if kind == "parquet" or (kind == "hf" and path_of(name).exists()):
        return f"{kind}:{path_text(path_of(name).absolute())}"
    return os.fspath(spec)


def _shard_suffix(spec: str | os.PathLike[str]) -> str:
    """Which kind of large files a source consists of, if of any."""
    text = os.fspath(spec)
    if text.startswith("parquet:"):
        return ".parquet"
    if not is_remote(text) and path_of(text).is_dir():
        return ""  # a folder may be called anything
    return next((suffix for suffix in (".tar", ".parquet") if text.endswith(suffix)), "")


def _pattern(spec: str | os.PathLike[str]) -> str:
    return os.fspath(spec).removeprefix("parquet:")


def _folder(spec: str | os.PathLike[str]) -> Path:
    folder = path_of(spec)
    if not folder.exists():
        sets = {"fashion": "builtin:fashion", "cifar10": "torchvision:CIFAR10", "mnist": "torchvision:MNIST"}
        word = os.fspath(spec).lower().rpartition(":")[2]
        nearest = difflib.get_close_matches(word, sets, n=1, cutoff=0.7)
        if nearest:
            raise ValueError(f"there is no folder {spec}: did you mean {sets[nearest[0]]}?")
        if ":" in os.fspath(spec):
            raise ValueError(f"unknown source {spec}: write a folder, builtin:fashion, torchvision:NAME or hf:NAME")
    return folder
