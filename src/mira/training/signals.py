"""SIGINT, SIGTERM and SIGUSR1 ask the loop to stop after the step; a second SIGINT stops at once.

SIGUSR1 is what schedulers send some time before they end a job. They repeat themselves, and send SIGTERM after it: only
a person who presses Ctrl-C twice means it.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1")
    if hasattr(signal, name)  # Windows has no USR1
)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that is set when the process is asked to stop; handlers are put back at the end.

    Outside the main thread, where Python delivers no signals, the event is simply never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
