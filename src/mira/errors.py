"""Errors that end a command early, and the exit codes that tell a script which it was.

Light to import: a command that fails at once, or only starts others, need not load PyTorch to say so.
"""

import signal

EXIT_OK = 0
EXIT_UNUSABLE = 2
"""Something given cannot be used; the message says what."""
EXIT_STOPPED = 3
"""The training stopped itself: non-finite loss, collapse, or too many unreadable pictures."""
EXIT_RANK_LOST = 70
"""Another of the processes that train together has ended (EX_SOFTWARE of sysexits.h)."""
EXIT_WORKER_DIED = 71
"""A process that prepares batches was killed or hangs; the state is on disk (EX_OSERR of sysexits.h)."""
EXIT_INTERRUPTED = 75
"""Asked to stop; the state is on disk, and `mira pretrain --resume` continues (EX_TEMPFAIL of sysexits.h)."""
EXIT_SIGINT = 130
"""Stopped by Ctrl-C; 128 + the signal's number, as shells have it (so a second SIGTERM is 143)."""


class TrainingStopped(RuntimeError):
    """The run stopped itself; the message says why and what to change. The last good checkpoint is kept."""


class TooManyUnreadable(ValueError):
    """More pictures than allowed cannot be read; `unreadable` holds (index, "key<TAB>reason") of some of them."""

    def __init__(self, message: str, unreadable: tuple[tuple[int, str], ...] = ()) -> None:
        self.unreadable = unreadable
        super().__init__(message, unreadable)  # the arguments, so that it can be pickled

    def __str__(self) -> str:
        return str(self.args[0])


class WorkerDied(RuntimeError):
    """A process that prepares batches has ended or hangs; the message says what it may have been."""


class RankLost(RuntimeError):
    """Another of the processes that train together has ended, or has not answered in time."""


class FirstRankFailed(RuntimeError):
    """Rank 0 has raised an error and says it; this process has nothing to add."""


class Interrupted(RuntimeError):
    """The run was asked to stop (SIGINT, SIGTERM, SIGHUP, SIGUSR1); its state is on disk."""


class StoppedAtOnce(KeyboardInterrupt):
    """Asked to stop for the second time; what is on the disk is the newest checkpoint before. Holds the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped at once by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


def beyond_memory(error: BaseException) -> bool:
    """Whether an error says that memory is too small: Python's, a GPU's or that of PyTorch on a CPU."""
    words = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory", "bad_alloc", "std::length_error")
    return (
        isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or any(w in str(error) for w in words)
    )
