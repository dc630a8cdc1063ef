"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 ask the loop to stop; a second SIGINT or SIGTERM ends the process at once.

SIGUSR1 is what schedulers send some time before they end a job. They repeat themselves, and send SIGTERM after it; a
terminal that is closed sends SIGHUP, as often as it likes. Neither ever counts as the first of two.
"""

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from mira.errors import StoppedAtOnce

T = TypeVar("T")

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)  # Windows has no HUP and USR1
)
_END_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
ECHO = 1.0
"""Seconds in which a signal that comes again is still the same request: who signals a whole group of processes reaches
a launcher, which passes it on, and the launched, twice."""


def end_on_signals() -> None:
    """Let SIGTERM, SIGHUP and SIGQUIT end the command as Ctrl-C does: by an exception, on whose way temporary files and
    loader processes are removed. What the process was told to ignore it ignores."""

    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a process forked from this one ends as it would have without
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _leave_closed_terminal()
        if any(inner.f_code.co_filename == logging.__file__ for inner, _ in traceback.walk_stack(frame)):
            # It has hooks around a fork, and Python swallows what is raised there: once more, shortly after.
            signal.signal(signal.SIGALRM, lambda _, later: end(number, later))
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        raise StoppedAtOnce(number)

    for number in _END_SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


@contextmanager
def on_stop_signals(ask: Callable[[int], None], end: Callable[[int], None]) -> Iterator[None]:
    """Call a function for every signal that asks to stop; handlers are put back at the end.

    A signal that is ignored stays so: shells that run a script start its background jobs without SIGINT, and nohup is
    there to be obeyed.

    Args:
        ask: called with the signal, the first time.
        end: called with the signal in its place for a SIGINT or SIGTERM that comes later than `ECHO` after another.
    """
    first: list[float] = []
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a loader process that has just been forked: it is told by this one
            return
        now = time.monotonic()
        _leave_closed_terminal()
        if number in (signal.SIGINT, signal.SIGTERM):
            if first and now - first[0] > ECHO:
                end(number)
                return
            first.append(now)
        ask(number)

    # None is a handler that Python did not install and could not put back.
    kept = (signal.SIG_IGN, None)
    before = {number: now for number in STOP_SIGNALS if (now := signal.getsignal(number)) not in kept}
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """Whether the process was asked to stop; hears it also in the middle of waiting for something."""

    def __init__(self) -> None:
        self._asked = self._waiting = False

    def is_set(self) -> bool:
        """Whether it was."""
        return self._asked

    def ask(self) -> None:
        """Note it; called by the signal's handler, which runs wherever the main thread is."""
        self._asked = True
        if self._waiting:
            self._waiting = False
            raise _Heard

    def unless_asked(self, wait: Callable[[], T]) -> T | None:
        """What `wait` returns, or None when asked to stop before or meanwhile: its waiting is then broken off.

        Only for what may be broken off anywhere, and is not gone on with.
        """
        try:
            try:
                self._waiting = True
                return None if self._asked else wait()
            finally:
                self._waiting = False
        except _Heard:
            return None


class _Heard(BaseException):  # no Exception: what is broken off must not take it for an error of its own
    pass


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """A request that is set when the process is asked to stop.

    Outside the main thread, where Python delivers no signals, it is simply never set.

    Raises:
        StoppedAtOnce: out of whatever is being done, when asked again.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def end(number: int) -> None:
        raise StoppedAtOnce(number)

    with on_stop_signals(lambda _: stop.ask(), end):
        yield stop


def _leave_closed_terminal() -> None:
    """Where the terminal is gone, say the rest to nobody: writing to it would be an error that prevents saving."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
