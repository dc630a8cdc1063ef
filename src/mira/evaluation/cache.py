"""Features kept on disk, so that protocols, floors and later commands share one pass over the pictures."""

import contextlib
import hashlib
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from mira.data import PictureSource
from mira.evaluation.features import Features
from mira.files import atomic_path, is_temporary
from mira.versions import versions

FORMAT = 1
"""Of the files and of what decides their content: raised when the way from a picture to its features changes."""

LIMIT = 20 * 2**30
"""Bytes kept at most: ImageNet's training pictures at width 2048 take 10.5 GB."""


def cache_folder() -> Path:
    """$MIRA_CACHE, or `~/.cache/mira/features`."""
    return Path(os.environ.get("MIRA_CACHE") or "~/.cache/mira/features").expanduser()


class FeatureCache:
    """A folder of features by key; a file that has not been used for the longest time goes first.

    Args:
        folder: made when the first features are kept.
        limit: bytes; features larger than it are not kept.
    """

    def __init__(self, folder: Path, *, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit

    def read(self, key: str, source: PictureSource) -> Features | None:
        """The features of a key, with the labels that `source` has now; None where there are none or damaged ones."""
        path = self._path(key)
        try:
            with np.load(path, allow_pickle=False) as content:  # checks each array's sum
                features, indices, unreadable = (content[name] for name in ("features", "indices", "unreadable"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
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
            with contextlib.suppress(FileNotFoundError):  # another process removed it meanwhile
                dated.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(dated) if not is_temporary(path)]

    def size(self) -> int:
        """Bytes kept."""
        return sum(path.stat().st_size for path in self.files())

    def clear(self) -> int:
        """Remove everything that is kept, and what killed processes left half written; returns the bytes freed."""
        freed = self.size()
        for path in (*self.files(), *self.folder.glob(".*.tmp.npz")):
            path.unlink(missing_ok=True)
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


def feature_key(*parts: object) -> str:
    """The key of features: a digest of everything that decides their bits, of `FORMAT` and the libraries too."""
    return hashlib.blake2b(
        repr((FORMAT, sorted(versions().items()), *parts)).encode("utf-8", "surrogateescape"), digest_size=16
    ).hexdigest()
