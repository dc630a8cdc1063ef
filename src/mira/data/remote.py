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
_ABANDONED = 3600  # seconds after which a half copy belongs to a process that is no more


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
                opened = fsspec.open(self.url, "rb")
            except (ImportError, ValueError) as error:  # the package for it is missing, or no such protocol
                raise ShardUnavailable(f"{self.url} cannot be opened: {error}") from error
            with opened as file:
                yield file, getattr(file, "size", None)


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

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fetcher": None, "_expected": ()}

    def open(self, number: int) -> BinaryIO:
        """The copy of a shard, fetched first if need be; raises `ShardUnavailable`."""
        path = self._path(number)
        while True:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                self._fetch(number)
            else:
                with contextlib.suppress(FileNotFoundError):
                    now = time.time_ns()  # the kernel's own clock for files stands still for milliseconds
                    os.utime(path, ns=(now, now))
                return file

    def expect(self, numbers: Sequence[int]) -> None:
        """Fetch these shards in the background, in this order; they are the last to be removed."""
        if tuple(numbers) == tuple(self._expected):
            return
        self._expected = tuple(numbers)
        if self._fetcher is None or self._fetcher[0] != os.getpid() or not self._fetcher[1].is_alive():
            thread = threading.Thread(target=self._fetch_expected, name="mira-shards", daemon=True)
            self._fetcher = os.getpid(), thread
            thread.start()

    def kept(self, number: int, make: Callable[[BinaryIO, str], Any]) -> Any:
        """What `make` finds in a shard, kept beside the copies for ever as JSON: the shard is fetched only for that."""
        note = self._note(number)
        with exclusive(note.with_suffix(".json.lock")):
            if not note.is_file():
                with self.open(number) as file:
                    size = os.fstat(file.fileno()).st_size
                    found = make(file, str(self.files[number]))
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

    def _fetch_expected(self) -> None:
        """All that is expected; what fails here is said when the shard is opened."""
        done: Sequence[int] = ()
        with contextlib.suppress(ShardUnavailable, OSError):
            while done != self._expected:
                done = self._expected
                for number in done:
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
            atomic_path(self._path(number), durable=False) as temporary,
        ):
            with temporary.open("wb") as copy:
                self._make_room(copy, length or 0)
                shutil.copyfileobj(content, copy, _BLOCK)
                copy.flush()
                size = copy.tell()
                self._make_room(copy, size)
            if length is not None and size != length:
                raise OSError(f"it ended after {size} of {length} bytes")
            if self._note(number).is_file() and size != self.size(number):
                raise ShardUnavailable(
                    f"{self.files[number]} has another length than when it was first seen: put the old file back, or "
                    f"delete {self._note(number)} and start a new run"
                )

    def _make_room(self, file: BinaryIO, needed: int) -> None:
        """Make `file` so many bytes long, and remove copies until all together keep to the limit.

        Those that are not expected go first, the one used longest ago before the others; then those expected last.
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
                    status = path.stat()
                    if is_temporary(path) and status.st_mtime < time.time() - _ABANDONED:
                        path.unlink()
                        continue
                    total += status.st_size
                    if not is_temporary(path):
                        copies.append((path in expected, -expected.get(path, 0), status.st_mtime, status.st_size, path))
            for *_, size, path in sorted(copies):
                if total <= self.limit:
                    return
                path.unlink(missing_ok=True)
                total -= size


def is_remote(spec: str | os.PathLike[str]) -> bool:
    """Whether a source is named by an address with a protocol."""
    return "://" in os.fspath(spec)
