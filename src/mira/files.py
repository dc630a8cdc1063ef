"""Writing files so that a crash at any moment leaves the old content or the new, never half of it."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk, a quota or a limit on the size of files is exhausted."""


def cache_folder(kind: Literal["features", "pictures", "shards"]) -> Path:
    """Where everything of a kind is kept that can be made anew: below $MIRA_CACHE, else below ~/.cache/mira.

    Each kind has a folder of its own, so that clearing one never touches another.
    """
    return Path(os.environ.get("MIRA_CACHE") or "~/.cache/mira").expanduser() / kind


def is_temporary(path: Path) -> bool:
    """Whether a path is one that `atomic_path` made: a process killed while writing leaves it behind."""
    return path.name.startswith(".") and ".tmp" in path.suffixes


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that nobody else writes to now."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        if is_temporary(path):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; nothing there is fine.

    A folder loses its name first, in one step: a process killed meanwhile leaves a temporary, not half of a folder.
    """
    if path.is_dir() and not path.is_symlink():
        given_up = path if is_temporary(path) else path.rename(_temporary(path))
        shutil.rmtree(given_up)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, an empty file; what was written there takes its place when the block ends well.

    The content reaches the disk before the name does, so a power cut cannot leave an empty file either; with
    `durable=False` that is left to a later call of `flush`. A link is followed, and a file that is replaced keeps its
    permissions; a new one has those that the person's umask gives, whatever the library that writes it thinks.

    Raises:
        OSError: with a sentence that names `path`: nothing can be written there, or there is no room.
    """
    path = Path(os.path.realpath(path))
    temporary = _temporary(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Created here, so that a name that somebody else has laid in the way is an error; and to see its permissions.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        mode = stat.S_IMODE((path if path.exists() else temporary).stat().st_mode)
        try:
            yield temporary
        except OSError as error:
            if error.errno in NO_ROOM:
                raise _cannot_write(path, error) from error
            raise
        if durable:
            _flush_file(temporary)
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        if error.filename is not None and Path(error.filename) == temporary:
            error.filename = str(path)  # a person knows this name
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _flush_folder(path.parent)


def refuse_unwritable(path: Path) -> None:
    """Say now, not after hours of work, that a file cannot be written. What lies there stays as it is.

    Raises:
        OSError: with a sentence that names it.
    """
    path = Path(os.path.realpath(path))
    there = path.exists()
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error
    if not there:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Bring a file and its name to the disk."""
    _flush_file(path)
    _flush_folder(path.parent)


@contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """One process at a time, by a lock on a file that is left there (where the system has POSIX locks).

    Without `wait` the block runs in any case and is told whether it has the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        yield _lock(descriptor, wait=wait)
    finally:
        os.close(descriptor)


def append_lines(path: Path, text: str, *, durable: bool = True) -> None:
    """Append whole lines in one piece, after closing a line that a killed process left unfinished.

    Processes that append to one file at once wait for each other (where the system has POSIX locks). What does not
    fit on the disk is taken back: the file holds all of the lines or none.

    Raises:
        OSError: with a sentence that names the file: it cannot be written, or there is no room.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)  # /dev/stdout has no end and no disk
            if fcntl is not None and regular:
                fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END) if regular else 0
            if end:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    text = "\n" + text
            try:
                rest = memoryview(text.encode("utf-8", "backslashreplace"))
                while rest:  # a write may take less than it is given
                    rest = rest[file.write(rest) :]
                if durable and regular:
                    os.fsync(file.fileno())
            except OSError:
                if regular:
                    file.truncate(end)
                raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; what is no Unicode in names of files is escaped."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8", errors="backslashreplace")


def _temporary(path: Path) -> Path:
    # A name that nobody can foresee: in a folder that all may write to, a link could be laid there. The suffix stays
    # last, because writers such as numpy.savez choose the format by it.
    return path.with_name(f".{path.stem}.{secrets.token_hex(6)}.tmp{path.suffix}")


def _cannot_write(path: Path, error: OSError) -> OSError:
    """The same kind of error, with a sentence in place of its number."""
    hint = ": make room there" if error.errno in NO_ROOM else ""
    said = type(error)(f"'{path}' cannot be written ({error.strerror or error}){hint}")
    said.errno = error.errno
    return said


def _flush_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
    return True
