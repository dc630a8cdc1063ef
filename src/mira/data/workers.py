"""Worker processes that prepare whole batches, in order, and whose errors keep their own words."""

import ctypes
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from mira.errors import WorkerDied

PATIENCE = 1200.0
"""Seconds without a batch after which a worker is taken to hang: fetching a large shard over a slow line takes minutes,
and the processes that train together wait for each other for half an hour."""
_LOOK = 2.0  # seconds between two looks whether a worker has died
_END = 5.0  # seconds that a killed one may take to be gone


class BatchLoader:
    """A PyTorch DataLoader over requests for whole batches, whose errors keep their own words.

    One pass goes over all requests of a run, so the workers live as long as it does and never pause for an epoch.

    Args:
        dataset: makes a batch of a request.
        requests: one for each batch.
        workers: processes; 0 makes the batches in this one.
        pin_memory: copy batches into page-locked memory for a GPU.
        patience: seconds to wait for a batch of the workers.

    Raises:
        WorkerDied: while iterating, and only where a batch is waited for: a worker was killed, or hangs.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        requests: Sequence[Any],
        *,
        workers: int,
        pin_memory: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        self._requests, self._patience = requests, patience
        self._loader: DataLoader[Any] = DataLoader(
            _Guarded(dataset),
            sampler=requests,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=_start_worker,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # unused, but without it the global generator would be drawn from
            prefetch_factor=2 if workers else None,
            timeout=_LOOK if workers else 0,
        )

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Any]:
        with _no_sudden_errors():
            batches = iter(self._loader)
            with _no_sudden_errors():  # again: the first workers of a process bring PyTorch's handler
                workers = list(getattr(batches, "_workers", ()))
                watchdog = _Watchdog(workers, self._patience)
                try:
                    while (batch := _next(batches, watchdog)) is not None:
                        if isinstance(batch, Exception):
                            raise batch
                        yield batch
                except BaseException:
                    _end_at_once(batches, workers)
                    raise
                finally:
                    watchdog.close()
                # Ends the workers. Left to the garbage collector, which meets the iterator's parts in any order, each
                # of them would be waited for.
                del batches
                _kill(workers)


class _Watchdog:
    """Kills workers when a batch of theirs is waited for too long.

    From a thread of its own: a worker that is stopped may keep the main thread in the middle of taking a batch over,
    where there is no time limit. Its death ends that.
    """

    def __init__(self, workers: Sequence[Any], patience: float) -> None:
        self.patience, self.hung = patience, False
        self._workers, self._deadline = workers, float("inf")
        self._done = threading.Event()
        if workers:
            threading.Thread(target=self._watch, daemon=True, name="loader-watchdog").start()

    def __enter__(self) -> None:
        self._deadline = time.monotonic() + self.patience

    def __exit__(self, *_: object) -> None:
        self._deadline = float("inf")

    def close(self) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(_LOOK, self.patience)):
            if time.monotonic() > self._deadline:
                self.hung = True
                for worker in self._workers:
                    worker.kill()
                return


def _end_at_once(batches: Iterator[Any], workers: Sequence[Any]) -> None:
    """End workers that may not listen, as one that is stopped or waits for a server."""
    _kill(workers)
    if workers:
        # PyTorch's own tidying up would wait for ever on a lock that a worker held when it was killed.
        tidy = threading.Thread(target=batches._shutdown_workers, daemon=True)  # type: ignore[attr-defined]
        tidy.start()
        tidy.join(_END)


def _kill(workers: Sequence[Any]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:  # PyTorch's handler must not meet their end once it is back
        worker.join(_END)


@contextmanager
def _no_sudden_errors() -> Iterator[None]:
    """Keep PyTorch from raising an error wherever the main thread is in the moment in which a worker dies.

    In the middle of a step it would leave half of it, which cannot be saved. A dead worker is noticed soon enough
    where its batch is waited for.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", None) != "torch.utils.data._utils.signal_handling":
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        with suppress(ValueError):  # left to another thread
            signal.signal(signal.SIGCHLD, before)


def _next(batches: Iterator[Any], watchdog: _Watchdog) -> Any:
    try:
        with watchdog:
            while True:
                try:
                    return next(batches, None)
                except RuntimeError as error:
                    if "timed out" not in str(error) or watchdog.hung:  # else only a look whether a worker has died
                        raise
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        if watchdog.hung:
            raise WorkerDied(
                f"no batch came for {watchdog.patience:g} seconds: a loader process hangs, most likely in reading an "
                "image from a disk or a server that does not answer. If reading takes that long, raise "
                "data.worker_timeout"
            ) from error
        if isinstance(error, RuntimeError) and "worker" not in str(error):
            raise
        raise WorkerDied(
            "a loader process died. In a script, call MIRA below `if __name__ == '__main__':`; otherwise it is most "
            "likely a lack of memory or of shared memory (/dev/shm): use fewer workers or a smaller batch, or give "
            f"the container more shared memory ({error})"
        ) from error


class _Guarded(Dataset[Any]):
    """Hands exceptions over as values: DataLoader would wrap the text of a worker's traceback into the message."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, request: Any) -> Any:
        try:
            return self._dataset[request]
        except Exception as error:
            if not isinstance(error, ValueError):  # an error of the program: its place matters
                error.add_note(traceback.format_exc())
            return error.with_traceback(None)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    # Ctrl-C, a closed terminal and a scheduler's SIGTERM go to the whole process group, but are the main process's
    # affair: it finishes its step, saves, and ends the workers.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    _end_with_parent()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    sys.excepthook = _say_unless_left


def _end_with_parent() -> None:
    """Let the system kill this process when the one that started it ends, whatever either is doing."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _say_unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What multiprocessing's thread that hands batches over would print when the main process has gone meanwhile."""
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)
