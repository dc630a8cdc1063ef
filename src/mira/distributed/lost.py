"""What goes wrong between processes, in one type and a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from mira.errors import RankLost

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others. Rank 0 works alone on some things (looking through a folder of millions of
pictures, an online k-NN), so this is long; a rank that *ends* is noticed at once by its launcher and, with gloo, by the
others."""


@contextmanager
def lost_ranks() -> Iterator[None]:
    """What the backends raise when a peer is gone, in one type and a sentence."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RankLost(
            f"another process has ended or has not answered within {TIMEOUT.total_seconds() / 60:.0f} minutes "
            f"({reason}). The one that failed first says why"
        ) from error
