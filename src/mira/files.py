"""Writing files so that a crash at any moment leaves the old content or the new, never half of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def is_temporary(path: Path) -> bool:
    """Whether a path is one that `atomic_path` made: a process killed while writing leaves it behind."""
    return path.name.startswith(".") and ".tmp" in path.suffixes


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that nobody else writes to now."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        if is_temporary(path):
            path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`; what was written there takes its place when the block ends well.

    The content reaches the disk before the name does, so a power cut cannot leave an empty file either; with
    `durable=False` that is left to a later call of `flush`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers such as numpy.savez choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if durable:
            _flush_file(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.filename is not None and Path(error.filename) == temporary:
            error.filename = str(path)  # a person knows this name
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _flush_folder(path.parent)


def flush(path: Path) -> None:
    """Bring a file and its name to the disk."""
    _flush_file(path)
    _flush_folder(path.parent)


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


def _lock(descriptor: int, *, wait: bool) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
    return True


def append_lines(path: Path, text: str) -> None:
    """Append whole lines in one piece, after closing a line that a killed process left unfinished.

    Processes that append to one file at once wait for each other (where the system has POSIX locks).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")
