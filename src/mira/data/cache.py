"""Decoded pictures in one file on the disk, shared by all processes; as long as memory lasts it stays in memory too."""

import contextlib
import hashlib
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from torch.utils.data import Dataset

from mira.data.augment import resize
from mira.data.decoding import UnreadablePicture
from mira.data.sources import Identified, PictureSource
from mira.data.workers import BatchLoader
from mira.files import atomic_path, exclusive

_BATCH = 64  # pictures that a worker hands over at once


class CachedSource:
    """A source whose pictures lie decoded in a file.

    With `short_side` None the pictures are those of the source to the last bit. Otherwise larger ones are kept with
    this short side, antialiased, so crops of them are resized twice and enlarged where they were not before.
    """

    def __init__(
        self, source: PictureSource, folder: Path, *, short_side: int | None, limit: int, workers: int = 0
    ) -> None:
        """Open the cache of a source, made first if need be.

        Args:
            source: any that can tell its identity.
            folder: of the caches; each has a file for the pictures and one for their places.
            short_side: what larger pictures are reduced to, pixels; None keeps them as they are.
            limit: the most bytes the pictures may take.
            workers: processes that make it.

        Raises:
            ValueError: the pictures take more than `limit`, or the source cannot tell when it has changed.
        """
        identity = source.identity() if isinstance(source, Identified) else None
        if identity is None:
            raise ValueError(f"{source.name} cannot tell when its pictures change, so they cannot be cached")
        self._source = source
        self.name, self.labels, self.classes = source.name, source.labels, source.classes
        self._identity = f"{identity}\0{short_side}"
        name = hashlib.blake2b(self._identity.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        self._path, places = folder / f"{name}.pictures", folder / f"{name}.npz"
        self._places = places
        with exclusive(folder / f"{name}.lock"):
            found = _read_places(places, self._path, len(source))
            if found is None:
                _write(source, self._path, places, short_side=short_side, limit=limit, workers=workers)
                found = _read_places(places, self._path, len(source))
        if found is None:
            raise ValueError(f"the cache {self._path} cannot be read back after it was written: is the disk sound?")
        self._shapes, self._reasons, self._sums = found
        self._ends = np.cumsum(self._shapes.prod(1))
        self._reader = _Reader(source, short_side)

    def __len__(self) -> int:
        """The number of pictures, unreadable ones included."""
        return len(self._source)

    def key(self, index: int) -> str:
        """The picture's name in its source."""
        return self._source.key(index)

    def identity(self) -> str:
        """The source's own and the size."""
        return self._identity

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """The picture as the cache has it; raises `UnreadablePicture`.

        A damaged one is read from the source, with a warning, and the cache is made anew when it is next opened.
        """
        if self._reasons[index]:
            raise UnreadablePicture(self.key(index), str(self._reasons[index]))
        shape = tuple(self._shapes[index].tolist())
        size = int(np.prod(shape))
        try:
            picture = np.fromfile(self._path, np.uint8, count=size, offset=int(self._ends[index]) - size)
        except OSError:
            picture = np.empty(0, np.uint8)
        if len(picture) == size and zlib.crc32(picture.data) == self._sums[index]:
            return picture.reshape(shape)
        warnings.warn(
            f"the cache {self._path} is damaged: {self.key(index)} is read from its source, and the cache is made "
            "anew when the next run opens it",
            stacklevel=2,
        )
        with contextlib.suppress(OSError):
            self._places.unlink(missing_ok=True)
        picture, reason = self._reader.of(index)
        if reason:
            raise UnreadablePicture(self.key(index), reason)
        return picture


class _Reader(Dataset[list[tuple[UInt8[np.ndarray, "H W C"], str]]]):
    """Ranges of pictures, each with the reason why it cannot be read (then without pixels) or an empty text."""

    def __init__(self, source: PictureSource, short_side: int | None) -> None:
        self._source, self._short_side = source, short_side

    def __getitem__(self, indices: range) -> list[tuple[UInt8[np.ndarray, "H W C"], str]]:
        return [self.of(index) for index in indices]

    def of(self, index: int) -> tuple[UInt8[np.ndarray, "H W C"], str]:
        """One picture as the cache is to have it."""
        try:
            picture = self._source.read(index)
        except UnreadablePicture as error:
            return np.empty((0, 0, 1), np.uint8), error.reason
        height, width = picture.shape[:2]
        side = self._short_side
        if side is not None and side < min(height, width):
            share = side / min(height, width)
            picture = resize(picture, (max(round(height * share), side), max(round(width * share), side)))
        return picture, ""


def _read_places(
    places: Path, pictures: Path, count: int
) -> tuple[Int64[np.ndarray, "N 3"], np.ndarray, Int64[np.ndarray, " N"]] | None:
    """Shape, reason and checksum of every picture; None where there is no cache, or, with a warning, a damaged one."""
    if not (pictures.is_file() and places.is_file()):
        return None
    try:
        with np.load(places, allow_pickle=False) as arrays:  # checks each array's own sum
            shapes, reasons, sums = arrays["shapes"], arrays["reasons"], arrays["sums"]
        if not (shapes.shape == (count, 3) and len(reasons) == len(sums) == count and (shapes >= 0).all()):
            raise ValueError("other shapes")
        if pictures.stat().st_size != shapes.prod(1).sum():
            raise ValueError(f"'{pictures.name}' has another length")
    except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
        warnings.warn(f"the cache {pictures} is damaged and made anew ({error})", stacklevel=3)
        return None
    return shapes, reasons, sums


def _write(
    source: PictureSource, path: Path, places: Path, *, short_side: int | None, limit: int, workers: int
) -> None:
    shapes: list[tuple[int, ...]] = []
    reasons: list[str] = []
    sums: list[int] = []
    total = 0
    requests = [range(start, min(start + _BATCH, len(source))) for start in range(0, len(source), _BATCH)]
    batches: Any = BatchLoader(_Reader(source, short_side), requests, workers=workers)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for batch in batches:
            for picture, reason in batch:
                shapes.append(picture.shape)
                reasons.append(reason)
                sums.append(zlib.crc32(picture.tobytes()))
                total += picture.nbytes
                file.write(picture.tobytes())
            if total > limit:
                needed = total * len(source) / len(shapes)
                raise ValueError(
                    f"the cache of {source.name} would take about {needed / 2**30:.1f} GB, more than the allowed "
                    f"{limit / 2**30:.1f}: raise data.cache_gigabytes or lower data.cache_size"
                )
    with atomic_path(places) as temporary:  # last: with it the cache is whole
        np.savez(temporary, shapes=np.array(shapes, np.int64), reasons=np.array(reasons), sums=np.array(sums, np.int64))
