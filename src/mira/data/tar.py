"""Pictures in tar files, by the convention of WebDataset: "key.jpg" with "key.cls" or "key.json" beside it."""

import contextlib
import json
import os
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tarfile import BLOCKSIZE, NUL
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from mira.data.class_numbers import classes_of
from mira.data.decoding import SUFFIXES, UnreadablePicture, decode
from mira.data.folder import TEST_FOLDERS, TRAIN_FOLDER
from mira.data.limits import image_bytes
from mira.data.names import Names, escaped
from mira.data.remote import RemoteShards, in_threads, is_remote
from mira.data.remote_file import RemoteFile, shown
from mira.data.shards import files_of_split, identity_of, remote_files, rows_of_split, shard_paths

_AT_ONCE = 4  # remote files that are gone through at the same time
_LARGEST_LABEL = 2**20  # bytes of a file beside a picture


class _Member(NamedTuple):
    name: str  # of the picture inside the file
    offset: int
    size: int
    label: int | None


class _LocalShards:
    """Files that are there. Of several, one that is no tar file is left out with a warning."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def open(self, number: int) -> BinaryIO:
        return self.files[number].open("rb")

    def expect(self, numbers: Sequence[int]) -> None:
        pass

    def members(self) -> list[list[_Member]]:
        found = []
        for path in self.files:
            try:
                with path.open("rb") as file:
                    found.append(_members(file, escaped(str(path))))
            except (ValueError, OSError) as error:
                if len(self.files) == 1:
                    raise
                warnings.warn(f"{error}. It is left out", stacklevel=2)
                found.append([])
        return found

    def fetched_sizes(self) -> Sequence[int]:
        return ()

    def identity(self, *more: object) -> str:
        return identity_of(self.files, *more)


class _RemoteShards(RemoteShards):
    """Files that are fetched; what they hold is known from the first time on."""

    def members(self) -> list[list[_Member]]:
        found = in_threads(lambda number: self.kept(number, _members), len(self.files), at_once=_AT_ONCE)
        return [[_Member(*member) for member in members] for members in found]

    def fetched_sizes(self) -> Sequence[int]:
        return [self.size(number) for number in range(len(self.files))]

    def identity(self, *more: object) -> str:
        return repr(([(str(file), self.digest(number)) for number, file in enumerate(self.files)], more))


class TarSource:
    """The pictures in one or many uncompressed tar files, in the order in which they lie there.

    The files are gone through once for the place of every picture; pictures are then read from any place, so that the
    order of a run is the same as for a folder. That needs files that can be sought in, so not compressed ones. A file
    that is cut off gives what it has, with a warning.

    Files on a server ("https://host/train-{000..146}.tar") or in a bucket ("s3://...", by fsspec) are fetched one by
    one when a picture of them is read, and kept as long as there is room. What they hold is noted the first time, for
    which each is fetched once.

    Splits: files called `train...` and `test...`, `val...` or so are the splits. Without such names "test" is a fixed
    fifth of the pictures, chosen by a hash of file and name.
    """

    def __init__(
        self, pattern: str, *, split: str, labels: str, channels: int, copies: Path, copies_limit: int
    ) -> None:
        """List the files.

        Args:
            pattern: of their names (see `shard_paths`) or addresses.
            split: see the class.
            labels: "auto" takes those that lie beside the pictures, "folder" the first folder level inside the files.
            channels: of the pictures.
            copies: folder for the copies of remote files.
            copies_limit: the most bytes they may take.

        Raises:
            ValueError: a file is missing or no tar file, or there are no pictures.
        """
        self.name = escaped(shown(pattern) if is_remote(pattern) else pattern)
        self.channels = channels
        every: Sequence[Path | RemoteFile]
        if is_remote(pattern):
            every = remote_files(pattern)
            self._shards: Any = _RemoteShards(files_of_split(every, split), copies, limit=copies_limit)
        else:
            every = shard_paths(pattern, ".tar")
            self._shards = _LocalShards(files_of_split(every, split))
        self.room = copies_limit
        listed = [(shard, member) for shard, found in enumerate(self._shards.members()) for member in found]
        if not listed:
            raise ValueError(f"no pictures in {self.name}: known suffixes are {', '.join(sorted(SUFFIXES))}")
        chosen = rows_of_split([self._key(shard, member.name) for shard, member in listed], every, split)
        self.labels: Int64[np.ndarray, " N"] | None = None
        self.classes: tuple[str, ...] = ()
        if labels != "none":
            # Of the whole set, before it is divided: both parts have the same classes.
            values = [_folder(member.name) if labels == "folder" else member.label for _, member in listed]
            every_label, self.classes = classes_of(values, self.name)
            self.labels = None if every_label is None else every_label[chosen]
        listed = [listed[row] for row in chosen]
        members = [member for _, member in listed]
        self.shard_of: Int64[np.ndarray, " N"] = np.array([shard for shard, _ in listed], np.int64)
        self.fetched_sizes: Sequence[int] = self._shards.fetched_sizes()
        self._names = Names(member.name for member in members)
        self._places = np.array([(member.offset, member.size) for member in members], np.int64)

    def __len__(self) -> int:
        """The number of pictures, unreadable ones included."""
        return len(self._names)

    def key(self, index: int) -> str:
        """The file and the name inside it."""
        return self._key(int(self.shard_of[index]), self._names[index])

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """Decode one picture; raises `UnreadablePicture`."""
        return decode(self.encoded(index), key=self.key(index), channels=self.channels)

    def encoded(self, index: int) -> bytes:
        """The content of a picture's file; raises `UnreadablePicture`, or `ShardUnavailable` for a remote shard."""
        offset, size = self._places[index].tolist()
        if size < 0:
            raise UnreadablePicture(self.key(index), "the tar file does not hold what it says: it is cut off here")
        if size > image_bytes():
            raise UnreadablePicture(self.key(index), f"a file of {size / 2**20:,.0f} MB (MIRA_IMAGE_MEGABYTES)")
        try:
            # Opened anew for every picture: nothing is shared between processes then.
            with self._shards.open(int(self.shard_of[index])) as file:
                file.seek(offset)
                data: bytes = file.read(size)
        except OSError as error:
            raise UnreadablePicture(self.key(index), error.strerror or str(error)) from error
        if len(data) < size:
            raise UnreadablePicture(self.key(index), "the tar file is cut off here")
        return data

    def identity(self) -> str:
        """The tar files with their sizes and, on this machine, the times of their last change; and which pictures."""
        identity: str = self._shards.identity(self.channels, self.shard_of.tolist(), self._places.tolist())
        return identity

    def expect(self, shards: Sequence[int]) -> None:
        """Pictures of these shards are needed soon, in this order: remote ones are fetched in the background."""
        self._shards.expect(shards)

    def _key(self, shard: int, name: str) -> str:
        return escaped(f"{self._shards.files[shard].name}/{name}")


def _members(content: BinaryIO, name_of_file: str) -> list[_Member]:
    """The pictures of one tar file, each with the label that lies beside it."""
    pictures: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    bounded = _Bounded(content)
    try:
        with tarfile.open(fileobj=bounded, mode="r:") as file:  # type: ignore[call-overload]
            for member in _until_damaged(file, bounded, name_of_file):
                if not member.isfile() or Path(member.name).name.startswith("."):
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                key, kind = folder + slash + stem, (dot + suffix).lower()
                if kind in SUFFIXES:
                    pictures[member.name] = member
                elif kind in (".cls", ".json") and 0 <= member.size <= _LARGEST_LABEL and not member.issparse():
                    bounded.seek(member.offset_data)
                    label = _label(bounded.read(member.size), kind)
                    if label is not None:
                        labels[key] = label
    except (tarfile.TarError, EOFError, OverflowError, ValueError) as error:
        hint = ": unpack compressed files first" if _is_compressed(content) else ""
        raise ValueError(f"{name_of_file} is not a tar file ({error}){hint}") from error
    found = []
    for name, member in pictures.items():
        key = name[: len(name) - len(Path(name).name)] + Path(name).name.partition(".")[0]
        there = 0 <= member.size <= bounded.length - member.offset_data and not member.issparse()
        place = (member.offset_data, member.size) if there else (0, -1)
        found.append(_Member(name, *place, labels.get(key)))
    return found


class _Bounded:
    """A file that is never asked for more than it has: headers may claim any size."""

    def __init__(self, content: BinaryIO) -> None:
        self._content = content
        self.length = content.seek(0, os.SEEK_END)
        content.seek(0)

    def seek(self, offset: int) -> int:
        return self._content.seek(min(max(offset, 0), self.length))

    def tell(self) -> int:
        return self._content.tell()

    def read(self, size: int = -1) -> bytes:
        left = max(self.length - self.tell(), 0)
        return self._content.read(left if size < 0 else min(size, left))


def _until_damaged(file: tarfile.TarFile, content: "_Bounded", name: str) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file; one that ends before its end mark, as when a download broke off, gives a warning."""
    count = end = 0
    # Beside its own errors tarfile raises what numbers and texts raise that damage has made.
    with contextlib.suppress(tarfile.TarError, EOFError, OSError, ValueError, OverflowError):
        for member in file:
            yield member
            count += 1
            end = member.offset_data + (member.size + BLOCKSIZE - 1) // BLOCKSIZE * BLOCKSIZE
    content.seek(end)
    if content.read(BLOCKSIZE) != NUL * BLOCKSIZE:
        warnings.warn(f"{name} is damaged or cut off after {count} members: the rest is missing", stacklevel=2)


def _is_compressed(content: BinaryIO) -> bool:
    content.seek(0)
    return content.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _label(content: bytes, kind: str) -> int | None:
    """A class number from the text of a number, or from "label" or "cls" of a JSON object."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
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
            f"labels 'folder' takes the class from the first folder level, but '{escaped(name)}' lies in no folder of "
            "its tar file: use labels 'auto' or 'none'"
        )
    return parts[0]
