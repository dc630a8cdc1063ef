"""Worker processes that prepare whole batches, in order, and whose errors keep their own words."""

import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from mira.errors import WorkerDied


class BatchLoader:
    """A PyTorch DataLoader over requests for whole batches, whose errors keep their own words.

    One pass goes over all requests of a run, so the workers live as long as it does and never pause for an epoch.
    """

    def __init__(
        self, dataset: Dataset[Any], requests: Sequence[Any], *, workers: int, pin_memory: bool = False
    ) -> None:
        self._requests = requests
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
        )

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        try:
            while (batch := _next(batches)) is not None:
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            # Ends the workers. Left to the garbage collector, which meets the iterator's parts in any order,
            # each of them would be waited for.
            workers = list(getattr(batches, "_workers", ()))
            del batches
            for worker in workers:
                worker.kill()  # one that waits for a server does not listen, and would be waited for at the end


def _next(batches: Iterator[Any]) -> Any:
    try:
        return next(batches, None)
    except RuntimeError as error:
        if "worker" not in str(error):
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
    # Ctrl-C and a scheduler's SIGTERM go to the whole process group, but are the main process's affair: it finishes
    # its step, saves, and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    sys.excepthook = _say_unless_left


def _say_unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What multiprocessing's thread that hands batches over would print when the main process has gone meanwhile."""
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)
