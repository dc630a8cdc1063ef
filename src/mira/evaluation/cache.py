"""Features kept on disk, so that protocols, floors and later commands share one pass over the pictures."""

import contextlib
import hashlib
import os
import re
import warnings
from pathlib import Path

import numpy as np
import torch

from mira.data import PictureSource
from mira.evaluation.features import Features
from mira.files import atomic_path, remove_temporaries
from mira.versions import versions

FORMAT = 2
"""Of the files and of what decides their content: raised when the way from a picture to its features changes."""

_ARRAYS = ("key", "features", "indices", "unreadable")
_NAME = re.compile(r"[0-9a-f]{32}\.npz")

LIMIT = 20 * 2**30
"""Bytes kept at most: ImageNet's training pictures at width 2048 take 10.5 GB."""


class FeatureCache:
    """A folder of features by key; a file that has not been used for the longest time goes first.

    Args:
        folder: made when the first features are kept.
        limit: bytes; features larger than it are not kept.
    """

    def __init__(self, folder: Path, *, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit

    def read(self, key: str, source: PictureSource) -> Features | None:
        """The features of a key, with the labels that `source` has now; None where there are none.

        Damaged ones, or those of something else, are none either: a warning says so, and they are made anew.
        """
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as content:  # checks each array's sum
                named, features, indices, unreadable = (content[name] for name in _ARRAYS)
            _check(named, features, indices, unreadable, key=key, pictures=len(source))
        except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
            warnings.warn(f"kept features '{path}' are damaged and made anew ({error})", stacklevel=2)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used just now
        rows = torch.from_numpy(indices)
        labels = None if source.labels is None else torch.as_tensor(source.labels)[rows]
        keys = [source.key(index) for index in indices.tolist()]
        skipped = [(key, why) for key, why in unreadable.tolist()]
        return Features(torch.from_numpy(features), labels, rows, keys, skipped, tuple(source.classes))

    def keep(self, key: str, features: Features) -> None:
        """Write features; a full disk or a folder that may not be written is a warning and no more."""
        arrays = {
            "key": np.array(key),
            "features": features.features.numpy(),
            "indices": features.indices.numpy(),
            "unreadable": np.array(features.unreadable, np.str_).reshape(-1, 2),
        }
        if sum(array.nbytes for array in arrays.values()) > self.limit:
            return
        try:
            with atomic_path(self._path(key)) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            self._shrink()
        except OSError as error:
            warnings.warn(f"features are not kept in '{self.folder}': {error.strerror or error}", stacklevel=2)

    def files(self) -> list[Path]:
        """What is kept, the least recently used first."""
        dated = []
        for path in self.folder.glob("*.npz"):
            if not _NAME.fullmatch(path.name):  # the folder may be one of the person's, with files of theirs
                continue
            with contextlib.suppress(FileNotFoundError):  # another process removed it meanwhile
                dated.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(dated)]

    def size(self) -> int:
        """Bytes kept."""
        return sum(path.stat().st_size for path in self.files())

    def clear(self) -> int:
        """Remove everything that is kept, and what killed processes left half written; returns the bytes freed."""
        freed = self.size()
        for path in self.files():
            path.unlink(missing_ok=True)
        remove_temporaries(self.folder)
        return freed

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def _shrink(self) -> None:
        files = self.files()
        excess = sum(path.stat().st_size for path in files) - self.limit
        for path in files:
            if excess <= 0:
                break
            excess -= path.stat().st_size
            path.unlink(missing_ok=True)


def _check(
    named: np.ndarray, features: np.ndarray, indices: np.ndarray, unreadable: np.ndarray, *, key: str, pictures: int
) -> None:
    """Raise ValueError unless these are the features of every picture of a source, or the reason why it has none."""
    if str(named) != key:
        raise ValueError("they are of something else")
    if features.dtype != np.float32 or features.ndim != 2 or indices.dtype != np.int64 or unreadable.dtype.kind != "U":
        raise ValueError("other kinds of arrays")
    if indices.shape != features.shape[:1] or unreadable.shape[1:] != (2,):
        raise ValueError("arrays of other shapes")
    if len(indices) + len(unreadable) != pictures or len(np.unique(indices)) != len(indices):
        raise ValueError("pictures are missing")
    if len(indices) and not 0 <= indices.min() <= indices.max() < pictures:
        raise ValueError("pictures that there are not")


def feature_key(*parts: object) -> str:
    """The key of features: a digest of everything that decides their bits, of `FORMAT` and the libraries too."""
    return hashlib.blake2b(
        repr((FORMAT, sorted(versions().items()), *parts)).encode("utf-8", "surrogateescape"), digest_size=16
    ).hexdigest()
