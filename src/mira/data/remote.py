"""Shards on a server or in a bucket: copied to the disk one by one, and only as long as they are needed."""

import contextlib
import errno
import hashlib
import http.client
import json
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from mira.files import atomic_path, exclusive, is_temporary

_ATTEMPTS = 3
_TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 20
_END_MARK = 1024  # bytes, all zero, that a tar file ends with


class ShardUnavailable(ValueError):
    """A shard cannot be fetched; the message says which and why."""


class RemoteFile:
    """A file that an address names, such as "https://host/train-000.tar" or "s3://bucket/train-000.tar"."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = PurePosixPath(urlsplit(url).path).name

    def __str__(self) -> str:
        return self.url

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[BinaryIO, int | None]]:
        """The content from its start, and its length where it is known before.

        Raises:
            ShardUnavailable: it needs a library that is not installed.
            OSError: it cannot be had now.
        """
        if urlsplit(self.url).scheme in ("http", "https"):
            with urllib.request.urlopen(self.url, timeout=_TIMEOUT) as answer:
                length = answer.headers.get("Content-Length")
                yield answer, None if length is None else int(length)
        else:
            import fsspec

            try:
                try:
                    opened = fsspec.open(self.url, "rb")
                except (ImportError, ValueError) as error:  # the package for it is missing, or no such protocol
                    raise ShardUnavailable(f"{self.url} cannot be opened: {error}") from error
                with opened as file:
                    yield file, getattr(file, "size", None)
            except (OSError, ShardUnavailable):
                raise
            except Exception as error:  # each service has its own kinds
                raise OSError(f"{type(error).__name__}: {error}") from error


class RemoteShards:
    """Local copies of remote files, fetched when they are opened or expected, removed when room is needed.

    All processes of a machine share the copies. They take at most `limit` bytes; those used longest ago go first.
    """

    def __init__(self, files: Sequence[RemoteFile], folder: Path, *, limit: int) -> None:
        """Nothing is fetched yet.

        Args:
            files: the shards.
            folder: of the copies, shared with other sets.
            limit: of the bytes in it.
        """
        self.files, self.folder, self.limit = files, folder, limit
        self._expected: Sequence[int] = ()
        self._fetcher: tuple[int, threading.Thread] | None = None  # with the process that it belongs to
        self._fetching = False
        self._guard = threading.Lock()  # of the three above

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_fetcher": None, "_fetching": False, "_expected": ()}
        del state["_guard"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _guard=threading.Lock())

    def open(self, number: int) -> BinaryIO:
        """The copy of a shard, fetched first if need be; raises `ShardUnavailable`."""
        path = self._path(number)
        with self._usable_folder():
            while True:
                try:
                    file = path.open("rb")
                except FileNotFoundError:
                    self._fetch(number)
                else:
                    with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                        now = time.time_ns()  # the kernel's own clock for files stands still for milliseconds
                        os.utime(path, ns=(now, now))
                    return file

    def expect(self, numbers: Sequence[int]) -> None:
        """Fetch these shards in the background, in this order; they are the last to be removed."""
        with self._guard:
            if tuple(numbers) == tuple(self._expected):
                return
            self._expected = tuple(numbers)
            if self._fetcher is None or self._fetcher[0] != os.getpid() or not self._fetching:
                thread = threading.Thread(target=self._fetch_expected, name="mira-shards", daemon=True)
                self._fetcher, self._fetching = (os.getpid(), thread), True
                thread.start()

    def kept(self, number: int, make: Callable[[BinaryIO, str], Any]) -> Any:
        """What `make` finds in a shard, kept beside the copies for ever as JSON: the shard is fetched only for that."""
        note = self._note(number)
        with self._usable_folder(), exclusive(note.with_suffix(".json.lock")):
            if not note.is_file():
                with self.open(number) as file:
                    size = os.fstat(file.fileno()).st_size
                    try:
                        found = make(file, str(self.files[number]))
                    except ValueError:
                        self._path(number).unlink(missing_ok=True)  # it may be a page that stood in its place
                        raise
                with atomic_path(note) as temporary:
                    temporary.write_text(json.dumps({"url": self.files[number].url, "size": size, "found": found}))
        return json.loads(note.read_text())["found"]

    def size(self, number: int) -> int:
        """The bytes of a shard of which something is `kept`."""
        size: int = json.loads(self._note(number).read_text())["size"]
        return size

    def _path(self, number: int) -> Path:
        file = self.files[number]
        return self.folder / f"{hashlib.blake2b(file.url.encode(), digest_size=8).hexdigest()}-{file.name}"

    def _note(self, number: int) -> Path:
        return self._path(number).with_suffix(".json")

    @contextlib.contextmanager
    def _usable_folder(self) -> Iterator[None]:
        """What goes wrong with copies and locks is no fault of a picture's."""
        try:
            yield
        except OSError as error:
            raise ShardUnavailable(
                f"copies of remote files cannot be kept in {self.folder} ({error}): set MIRA_CACHE to a folder that "
                "you may write to"
            ) from error

    def _fetch_expected(self) -> None:
        """All that is expected; what fails here is said when the shard is opened."""
        done: Sequence[int] = ()
        while True:
            with self._guard:
                if done == self._expected:
                    self._fetching = False
                    return
                done = self._expected
            for number in done:
                with contextlib.suppress(ShardUnavailable, OSError):
                    if self._expected == done:
                        self._fetch(number, wait=False)

    def _fetch(self, number: int, *, wait: bool = True) -> None:
        """Bring a shard here; without `wait` not if another process is already doing so."""
        path = self._path(number)
        with exclusive(path.with_suffix(".lock"), wait=wait) as mine:
            for attempt in range(1, _ATTEMPTS + 1):
                if not mine or path.is_file():  # another process was quicker
                    return
                try:
                    self._copy(number)
                except (OSError, http.client.HTTPException) as error:
                    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise ShardUnavailable(
                            f"the disk of {self.folder} has no room for {self.files[number]}: lower "
                            "data.cache_gigabytes and free some, or set MIRA_CACHE to a folder on another disk"
                        ) from error
                    gone = isinstance(error, FileNotFoundError | PermissionError) or (
                        isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410)
                    )
                    if gone or attempt == _ATTEMPTS:
                        raise ShardUnavailable(
                            f"{self.files[number]} cannot be fetched ({error}): check the address and the connection. "
                            "A run goes on from its last checkpoint with --resume"
                        ) from error
                    time.sleep(4.0 ** (attempt - 1))

    def _copy(self, number: int) -> None:
        with (
            self.files[number].open() as (content, length),
            atomic_path(self._path(number)) as temporary,
        ):
            with temporary.open("wb+") as copy:
                self._make_room(copy, length or 0)
                shutil.copyfileobj(content, copy, _BLOCK)
                copy.flush()
                size = copy.tell()
                self._make_room(copy, size)
                copy.seek(max(0, size - _END_MARK))
                ended = not any(copy.read())
            if length is not None and size != length:
                raise OSError(f"it ended after {size} of {length} bytes")
            if length is None and not ended:
                raise OSError(f"it ended after {size} bytes, without the end mark of a tar file")
            if self._note(number).is_file() and size != self.size(number):
                raise ShardUnavailable(
                    f"{self.files[number]} has another length than when it was first seen: put the old file back, or "
                    f"delete {self._note(number)} and start a new run"
                )

    def _make_room(self, file: BinaryIO, needed: int) -> None:
        """Make `file` so many bytes long, and remove copies until all together keep to the limit.

        Those that are not expected go first, the one used longest ago before the others; then those expected last.
        Half copies go at once where no process fetches them: it would hold their lock.
        """
        if needed > self.limit:
            raise ShardUnavailable(
                f"a shard takes {needed / 2**30:.2g} GB and all copies together may take {self.limit / 2**30:.2g}: "
                "raise data.cache_gigabytes"
            )
        expected = {self._path(number): place for place, number in enumerate(self._expected)}
        with exclusive(self.folder / "room.lock"):
            os.ftruncate(file.fileno(), needed)  # the place is taken before it is filled
            total = 0
            copies = []
            for path in self.folder.glob("*.tar"):
                with contextlib.suppress(FileNotFoundError):
                    if is_temporary(path) and _left_behind(path):
                        path.unlink()
                        continue
                    status = path.stat()
                    total += status.st_size
                    if not is_temporary(path):
                        copies.append((path in expected, -expected.get(path, 0), status.st_mtime, status.st_size, path))
            for *_, size, path in sorted(copies):
                if total <= self.limit:
                    return
                path.unlink(missing_ok=True)
                total -= size


def _left_behind(temporary: Path) -> bool:
    """Whether the process that was fetching this file is no more: locks end with those who hold them."""
    stem = temporary.name.removeprefix(".").removesuffix(".tmp.tar").rpartition(".")[0]
    with exclusive(temporary.with_name(f"{stem}.lock"), wait=False) as free:
        return free


def is_remote(spec: str | os.PathLike[str]) -> bool:
    """Whether a source is named by an address with a protocol."""
    return "://" in os.fspath(spec)
