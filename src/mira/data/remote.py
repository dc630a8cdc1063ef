"""Shards on a server or in a bucket: copied to the disk one by one, and only as long as they are needed."""

import contextlib
import errno
import hashlib
import http.client
import json
import os
import queue
import threading
import time
import urllib.error
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from mira.data.remote_file import RemoteFile, ShardUnavailable, check_room, copy_content
from mira.files import atomic_path, exclusive, is_temporary

T = TypeVar("T")

_ATTEMPTS = 3
_END_MARK = 1024  # bytes, all zero, that a tar file ends with


class _Note(NamedTuple):
    """What is known of a shard since it was first fetched."""

    size: int
    digest: str  # of its bytes
    version: Mapping[str, str]
    found: Any


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
        self._known: dict[int, tuple[int, str, int]] = {}  # size and digest, and when the note was written
        self._versions: dict[int, Mapping[str, str]] = {}  # of what was fetched and has no note yet
        self._offline = False
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
            self._check_same(number)
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
        """What `make` finds in a shard, kept beside the copies for ever as JSON: the shard is fetched only for that.

        A shard that the server says was replaced is fetched again, and what it holds found anew, with a warning.
        """
        path = self._note_path(number)
        with self._usable_folder(), exclusive(path.with_suffix(".json.lock")):
            note = self._note(number)
            replaced = note is not None and self._is_replaced(number, note)
            if note is None or replaced:
                path.unlink(missing_ok=True)
                if replaced:
                    self._path(number).unlink(missing_ok=True)
                made = self._make_note(number, make)
                if note is not None and made.digest != note.digest:
                    warnings.warn(f"{self.files[number]} was replaced on its server: it is listed anew", stacklevel=2)
                note = made
                with atomic_path(path) as temporary:
                    temporary.write_text(json.dumps({"url": str(self.files[number]), **note._asdict()}))
            self._known[number] = note.size, note.digest, path.stat().st_mtime_ns
        return note.found

    def size(self, number: int) -> int:
        """The bytes of a shard of which something is `kept`."""
        return self._known[number][0]

    def digest(self, number: int) -> str:
        """Of the bytes of a shard of which something is `kept`."""
        return self._known[number][1]

    def _make_note(self, number: int, make: Callable[[BinaryIO, str], Any]) -> _Note:
        with self.open(number) as file:
            size = os.fstat(file.fileno()).st_size
            digest = _digest(file)
            file.seek(0)
            try:
                found = make(file, str(self.files[number]))
            except ValueError:
                self._path(number).unlink(missing_ok=True)  # it may be a page that stood in its place
                raise
        if not found:
            self._path(number).unlink(missing_ok=True)  # nothing of it is ever read
        return _Note(size, digest, self._versions.pop(number, {}), found)

    def _note(self, number: int) -> _Note | None:
        """None where there is none, or a damaged one."""
        try:
            content = json.loads(self._note_path(number).read_text())
            note = _Note(*(content[name] for name in _Note._fields))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        kinds = (isinstance(note.size, int), isinstance(note.digest, str), isinstance(note.version, dict))
        return note if all(kinds) and isinstance(note.found, list) else None

    def _is_replaced(self, number: int, note: _Note) -> bool:
        if self._offline:
            return False
        try:
            return self.files[number].is_another_than(note.version)
        except (OSError, http.client.HTTPException, ValueError):
            self._offline = True  # what was fetched before serves without a connection
            return False

    def _check_same(self, number: int) -> None:
        """Refuse a copy that another process has put in the place of the one whose places are known here."""
        if number not in self._known:
            return
        size, digest, written = self._known[number]
        with contextlib.suppress(FileNotFoundError):
            now = self._note_path(number).stat().st_mtime_ns
            if now != written:
                note = self._note(number)
                if note is not None and note.digest != digest:
                    raise ShardUnavailable(self._changed(number))
                self._known[number] = size, digest, now

    def _noted_digest(self, number: int, *, otherwise: str) -> str:
        if number in self._known:
            return self.digest(number)
        note = self._note(number)
        return otherwise if note is None else note.digest

    def _changed(self, number: int) -> str:
        return (
            f"{self.files[number]} has another content than when it was first seen: put the old file back, or open it "
            "again for what it holds now, and start a new run"
        )

    def _path(self, number: int) -> Path:
        file = self.files[number]
        return self.folder / f"{hashlib.blake2b(file.url.encode(), digest_size=8).hexdigest()}-{file.name}"

    def _note_path(self, number: int) -> Path:
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
                except ShardUnavailable:
                    raise
                except (OSError, http.client.HTTPException, ValueError) as error:
                    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise ShardUnavailable(
                            f"the disk of {self.folder} has no room for {self.files[number]}: lower "
                            "data.cache_gigabytes and free some, or set MIRA_CACHE to a folder on another disk"
                        ) from error
                    gone = isinstance(error, FileNotFoundError | PermissionError | ValueError) or (
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
            self.files[number].open() as answer,
            atomic_path(self._path(number)) as temporary,
        ):
            try:
                with temporary.open("wb+") as copy:
                    self._make_room(copy, answer.length or 0)
                    size, digest = copy_content(answer.content, copy, limit=self.limit)
                    copy.flush()
                    self._make_room(copy, size)
                    copy.seek(max(0, size - _END_MARK))
                    ended = not any(copy.read())
            except ShardUnavailable as error:
                raise ShardUnavailable(f"{self.files[number]} cannot be fetched: {error}") from error
            if answer.length is not None and size != answer.length:
                raise OSError(f"it ended after {size} of {answer.length} bytes")
            if answer.length is None and not ended:
                raise OSError(f"it ended after {size} bytes, without the end mark of a tar file")
            if digest != self._noted_digest(number, otherwise=digest):
                raise ShardUnavailable(self._changed(number))
            self._versions[number] = answer.version

    def _make_room(self, file: BinaryIO, needed: int) -> None:
        """Make `file` so many bytes long, and remove copies until all together keep to the limit.

        Those that are not expected go first, the one used longest ago before the others; then those expected last.
        Half copies go at once where no process fetches them: it would hold their lock.
        """
        check_room(needed, self.limit)
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


def _digest(file: BinaryIO) -> str:
    state = hashlib.blake2b(digest_size=16)
    while block := file.read(1 << 20):
        state.update(block)
    return state.hexdigest()


def is_remote(spec: str | os.PathLike[str]) -> bool:
    """Whether a source is named by an address with a protocol."""
    return "://" in os.fspath(spec)


def in_threads(function: Callable[[int], T], count: int, *, at_once: int) -> list[T]:
    """The function of 0, 1, ..., some at a time, in threads that keep nobody waiting.

    An error, or a signal that ends the waiting, leaves them where they are: unlike those of an executor they are not
    waited for, here or at the end of the process.
    """
    results: dict[int, T] = {}
    ready: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()
    numbers = iter(range(count))
    guard = threading.Lock()

    def work() -> None:
        while True:
            with guard:
                number = next(numbers, None)
            if number is None:
                return
            try:
                ready.put((number, function(number), None))
            except BaseException as error:
                ready.put((number, None, error))
                return

    for _ in range(min(at_once, count)):
        threading.Thread(target=work, name="mira-list", daemon=True).start()
    while len(results) < count:
        number, result, error = ready.get()
        if error is not None:
            numbers = iter(())  # nothing more is begun
            raise error
        results[number] = result  # type: ignore[assignment]
    return [results[number] for number in range(count)]
