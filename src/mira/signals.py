"""SIGINT, SIGTERM and SIGUSR1 ask the loop to stop after the step; a second SIGINT or SIGTERM ends the process at once.

SIGUSR1 is what schedulers send some time before they end a job. They repeat themselves, and send SIGTERM after it: it
never counts as the first of two.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mira.errors import StoppedAtOnce

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1")
    if hasattr(signal, name)  # Windows has no USR1
)
ECHO = 1.0
"""Seconds in which a signal that comes again is still the same request: who signals a whole group of processes reaches
a launcher, which passes it on, and the launched, twice."""

Handler = Callable[[int, FrameType | None], None]


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

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
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


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that is set when the process is asked to stop.

    Outside the main thread, where Python delivers no signals, the event is simply never set.

    Raises:
        StoppedAtOnce: out of whatever is being done, when asked again.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def end(number: int) -> None:
        raise StoppedAtOnce(number)

    with on_stop_signals(lambda _: stop.set(), end):
        yield stop
