"""What the campaigns share: how many tries, from which seed, and what may come out of one."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

ALL = 5000
"""Tries of all campaigns together where MIRA_HOSTILE_TRIES does not say otherwise."""
SECONDS = 20.0
"""More for one try is a hang, on a machine that does other things too."""


def tries(name: str, usual: int) -> Iterator[tuple[int, np.random.Generator]]:
    """The numbers of a campaign's tries, each with its own generator; printed, so that one can be made again."""
    count, seed = share(usual), announced_seed(name)
    for number in range(count):
        yield number, np.random.default_rng([seed, number])


def share(usual: int) -> int:
    """How many tries a campaign makes that makes so many of `ALL`; at least one."""
    return max(round(usual * int(os.environ.get("MIRA_HOSTILE_TRIES", ALL)) / ALL), 1)


def announced_seed(name: str) -> int:
    """The seed of a campaign, which is printed."""
    seed = int(os.environ.get("MIRA_HOSTILE_SEED", 0))
    print(f"{name}: MIRA_HOSTILE_SEED={seed}")
    return seed


def sentence_or_nothing(call: Callable[[], Any], given: object, *refusals: type[Exception]) -> Any:
    """Make a try: it works, or refuses with a sentence; anything else fails the test with what was given."""
    began = time.monotonic()
    try:
        return call()
    except refusals as error:
        text = str(error)
        assert text.strip(), f"no words for {given!r:.500}"
        assert len(text) < 5000, f"{len(text)} characters for {given!r:.500}: {text[:300]}"
        return None
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} instead of a sentence for {given!r:.1000}: {error}") from error
    finally:
        took = time.monotonic() - began
        assert took < SECONDS, f"{took:.0f} s for {given!r:.500}"


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with some of them changed, cut, moved, doubled or made extreme."""
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not content:
            break
        at, kind = int(rng.integers(len(content))), int(rng.integers(6))
        length = int(rng.integers(1, 40))
        if kind == 0:
            content[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            content[at : at + length] = rng.bytes(length)
        elif kind == 2:
            del content[at:]
        elif kind == 3:
            content[at:at] = content[at : at + length]
        elif kind == 4:
            content[at : at + 4] = bytes([255, 255, 255, 127])
        else:
            content[at : at + 8] = bytes(8)
    return bytes(content)
