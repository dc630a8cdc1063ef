"""Pictures in tar files, by the convention of WebDataset: "key.jpg" with "key.cls" or "key.json" beside it."""

import contextlib
import json
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from tarfile import BLOCKSIZE, NUL
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from mira.data.decoding import SUFFIXES, UnreadablePicture, decode
from mira.data.folder import TEST_FOLDERS, TRAIN_FOLDER
from mira.data.names import Names
from mira.data.shards import files_of_split, identity_of, rows_of_split, shard_paths


class _Member(NamedTuple):
    name: str  # of the picture inside the file
    shard: int
    offset: int
    size: int
    label: int | None


class TarSource:
    """The pictures in one or many uncompressed tar files, in the order in which they lie there.

    The files are gone through once for the place of every picture; pictures are then read from any place, so that the
    order of a run is the same as for a folder. That needs files that can be sought in: compressed files and pipes
    cannot be used. A file that is cut off gives what it has, with a warning.

    Splits: files called `train...` and `test...`, `val...` or so are the splits. Without such names "test" is a fixed
    fifth of the pictures, chosen by a hash of file and name.
    """

    def __init__(self, pattern: str, *, split: str, labels: str, channels: int) -> None:
        """List the files; raises ValueError when one is missing or no tar file, or there are no pictures."""
        every = shard_paths(pattern, ".tar")
        self._shards = files_of_split(every, split)
        self.name = pattern
        self.channels = channels
        members = [member for number, path in enumerate(self._shards) for member in _members(path, number)]
        if not members:
            raise ValueError(f"no pictures in {pattern}: known suffixes are {', '.join(sorted(SUFFIXES))}")
        chosen = rows_of_split([self._key(member.shard, member.name) for member in members], every, split)
        members = [members[row] for row in chosen]
        self.labels: Int64[np.ndarray, " N"] | None = None
        self.classes: tuple[str, ...] = ()
        if labels == "folder":
            folders = [_folder(member.name) for member in members]
            names, numbers = np.unique(folders, return_inverse=True)
            self.classes, self.labels = tuple(str(name) for name in names), numbers.astype(np.int64)
        elif labels == "auto":
            known = [member.label for member in members if member.label is not None]
            if len(known) == len(members):
                self.labels = np.array(known, np.int64)
                self.classes = tuple(str(label) for label in range(max(known) + 1))
        self._names = Names(member.name for member in members)
        self._places = np.array([member[1:4] for member in members], np.int64)

    def __len__(self) -> int:
        """The number of pictures, unreadable ones included."""
        return len(self._names)

    def key(self, index: int) -> str:
        """The file and the name inside it."""
        return self._key(int(self._places[index, 0]), self._names[index])

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """Decode one picture; raises `UnreadablePicture`."""
        return decode(self.encoded(index), key=self.key(index), channels=self.channels)

    def encoded(self, index: int) -> bytes:
        """The content of a picture's file; raises `UnreadablePicture`."""
        shard, offset, size = self._places[index].tolist()
        try:
            # Opened anew for every picture: nothing is shared between processes then.
            with self._shards[shard].open("rb") as file:
                file.seek(offset)
                data: bytes = file.read(size)
        except OSError as error:
            raise UnreadablePicture(self.key(index), error.strerror or str(error)) from error
        if len(data) < size:
            raise UnreadablePicture(self.key(index), "the tar file is cut off here")
        return data

    def identity(self) -> str:
        """The tar files with their sizes and the times of their last change, and which pictures of them."""
        return identity_of(self._shards, self.channels, self._places.tolist())

    def _key(self, shard: int, name: str) -> str:
        return f"{self._shards[shard].name}/{name}"


def _members(path: Path, number: int) -> Iterator[_Member]:
    """The pictures of one tar file, each with the label that lies beside it."""
    pictures: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as file:
            for member in _until_damaged(file, path):
                if not member.isfile() or Path(member.name).name.startswith("."):
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                key, kind = folder + slash + stem, (dot + suffix).lower()
                if kind in SUFFIXES:
                    pictures[member.name] = member
                elif kind in (".cls", ".json"):
                    content = file.extractfile(member)
                    label = _label(content.read() if content else b"", kind)
                    if label is not None:
                        labels[key] = label
    except tarfile.ReadError as error:
        hint = ": unpack compressed files first" if _is_compressed(path) else ""
        raise ValueError(f"{path} is not a tar file ({error}){hint}") from error
    for name, member in pictures.items():
        key = name[: len(name) - len(Path(name).name)] + Path(name).name.partition(".")[0]
        yield _Member(name, number, member.offset_data, member.size, labels.get(key))


def _until_damaged(file: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file; one that ends before its end mark, as when a download broke off, gives a warning."""
    count = end = 0
    with contextlib.suppress(tarfile.TarError, EOFError, OSError):
        for member in file:
            yield member
            count += 1
            end = member.offset_data + (member.size + BLOCKSIZE - 1) // BLOCKSIZE * BLOCKSIZE
    with path.open("rb") as content:
        content.seek(end)
        if content.read(BLOCKSIZE) != NUL * BLOCKSIZE:
            warnings.warn(f"{path} is damaged or cut off after {count} members: the rest is missing", stacklevel=2)


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _label(content: bytes, kind: str) -> int | None:
    """A class number from the text of a number, or from "label" or "cls" of a JSON object."""
    try:
        value = json.loads(content)
    except ValueError:
        return None
    if kind == ".json":
        value = value.get("label", value.get("cls")) if isinstance(value, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _folder(name: str) -> str:
    parts = name.removeprefix("./").split("/")
    if len(parts) > 1 and parts[0] in (TRAIN_FOLDER, *TEST_FOLDERS):
        parts = parts[1:]
    if len(parts) < 2:
        raise ValueError(
            f"labels 'folder' takes the class from the first folder level, but {name!r} lies in no folder of its tar "
            "file: use labels 'auto' or 'none'"
        )
    return parts[0]
