"""One process at a time trains into a run's folder."""

import errno
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""In the run's folder while a process trains into it: its number and its machine."""

AFTER_RESTART = 120.0
"""Seconds that a process started again by its scheduler waits for the one before: a network file system keeps the lock
of a machine that went down for about 90."""

_PATIENCE = 1.0  # for a process that is just ending
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# The system's lock belongs to the process, so it does not keep its threads apart.
_held: set[Path] = set()
_guard = threading.Lock()


@contextmanager
def only_one(folder: Path, *, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold the folder of a run, which is made if need be and, if it stays empty, removed again.

    The lock is one of POSIX's on a file (`lockf`, not `flock`): it ends with the process, whatever ends it, does not
    pass to loader processes that outlive it for a moment, and holds between machines on a network file system.

    Args:
        folder: of the run.
        patience: seconds to wait for a process that holds it.

    Raises:
        ValueError: another process holds it, or the path is a file.
        OSError: the folder cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file: name a folder for the run")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = Path(os.path.realpath(folder)) / LOCK
    with _guard:
        if path in _held:
            raise ValueError(_in_use(folder, "this process already does"))
        _held.add(path)
    descriptor = None
    try:
        try:
            descriptor = _take(path, folder, patience)
        except OSError as error:
            said = type(error)(f"the run's folder '{folder}' cannot be written to ({error.strerror or error})")
            raise said from error
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            os.close(descriptor)
        with _guard:
            _held.discard(path)
        with suppress(OSError):  # not empty: it is a run now
            for empty in made:
                empty.rmdir()


def holder(folder: Path) -> tuple[int, str] | None:
    """The process and the machine that the lock file names; None where there is none. The process may be dead."""
    try:
        process, machine = (folder / LOCK).read_text("utf-8", errors="replace").split()
        return int(process), machine
    except (OSError, ValueError):
        return None


def is_dead(process: int, machine: str) -> bool:
    """Whether a process is known to be gone; of another machine's nothing is known."""
    if machine != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False


def _take(path: Path, folder: Path, patience: float) -> int:
    """The descriptor of the locked file, which names this process."""
    deadline = time.monotonic() + patience
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the one before has just removed the folder, which it left empty
            if time.monotonic() > deadline:
                raise
            continue
        try:
            if _lock(descriptor, folder):
                # The one before removed its file when it ended: what was locked must be the file that is there.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), path.stat()):
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
                        return descriptor
            elif time.monotonic() > deadline:
                named = holder(folder)
                who = f"process {named[0]} on {named[1]} does" if named else "another process does"
                raise ValueError(_in_use(folder, who))
            else:
                time.sleep(0.05)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        if fcntl is not None:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"the file system of '{folder}' knows no locks: see to it yourself that no other process trains there",
            stacklevel=2,
        )
    return True


def _in_use(folder: Path, who: str) -> str:
    return (
        f"only one process at a time trains into '{folder}', and {who}: wait until it has ended, or name another "
        "folder for the run. Evaluating and looking at it is possible meanwhile"
    )
