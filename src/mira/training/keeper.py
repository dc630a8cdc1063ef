"""Which checkpoints stay: the newest ones and the best, each read again after it was written."""

import os
import shutil
import threading
from pathlib import Path

from mira.files import atomic_path, flush
from mira.model.weights import verify_checksums
from mira.training.checkpoint import Checkpoint, checkpoint_paths, save_checkpoint

BEST = "best.pt"


class CheckpointKeeper:
    """Writes checkpoints into a folder and removes old ones.

    Writing is done when `save` returns, so that a process killed at any later moment has lost nothing before it.
    What takes long on a slow disk goes on in a thread while training continues: bringing the file to the disk,
    reading it again, and only then giving up older ones.

    Args:
        folder: of the checkpoints.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, checkpoint: Checkpoint, *, best: bool = False, prune: bool = True) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what to write.
            best: it becomes `best.pt` too, which stays until a better one comes.
            prune: give up old ones.

        Raises:
            OSError: the disk is full or the folder cannot be written; older checkpoints are untouched.
            ValueError: the one before could not be read again.
        """
        self.wait()
        path = save_checkpoint(self._folder, checkpoint)
        self._thread = threading.Thread(target=self._settle, args=(path, best, prune), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is safe on the disk; raises as `save`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _settle(self, path: Path, best: bool, prune: bool) -> None:
        try:
            flush(path)
            _forget_cached(path)
            verify_checksums(path)
            if best:
                _link(path, path.with_name(BEST))
            # Of those up to this one: a newer one is a damaged one that the run had to go back behind.
            older = [old for old in checkpoint_paths(self._folder) if old <= path]
            for old in older[: -self._keep] if prune else ():
                old.unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            self._error = error


def _forget_cached(path: Path) -> None:
    """Ask the system to read the file from the disk next time, not from its memory."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _link(path: Path, name: Path) -> None:
    """Give a file a second name, atomically; a copy where the file system has no links."""
    with atomic_path(name) as temporary:
        try:
            temporary.unlink()  # a link takes a new name
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
