"""How a run ended, kept in its folder: whoever looks at it later sees whether and why it stopped."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from mira.errors import Interrupted, TooManyUnreadable, TrainingStopped
from mira.files import write_text

How = Literal["finished", "interrupted", "stopped", "failed"]


@dataclass(frozen=True)
class Ended:
    """The end of a run, until it goes on.

    Attributes:
        how: "finished" at its last step; "interrupted" on request, with a checkpoint; "stopped" by itself (collapse,
            a loss that is not finite, too many unreadable images); "failed" otherwise.
        step: steps that it had recorded.
        message: what was said, empty for a finished one.
        time: seconds since 1970.
    """

    how: How
    step: int
    message: str
    time: float


def write_ended(path: Path, *, step: int, error: BaseException | None) -> None:
    """Keep how a run ended; on a full disk nothing is kept, for the error itself matters more."""
    how: How = "finished"
    if isinstance(error, Interrupted):
        how = "interrupted"
    elif isinstance(error, TrainingStopped | TooManyUnreadable):
        how = "stopped"
    elif error is not None:
        how = "failed"
    message = "" if error is None else str(error) or type(error).__name__
    with suppress(OSError):
        write_text(path, json.dumps(asdict(Ended(how, step, message, time.time()))) + "\n")


def read_ended(path: Path) -> Ended | None:
    """How the run ended; None where it goes on, was killed, or the file is damaged."""
    try:
        content = json.loads(path.read_text("utf-8", errors="replace"))
        how, step, message, when = (content[name] for name in ("how", "step", "message", "time"))
        if how in get_args(How) and 0 <= int(step) < 2**53 and 0 <= float(when) < 2**53:
            return Ended(how, int(step), str(message), float(when))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        pass
    return None
