"""Words for people: nouns that fit a number, times, commands that can be pasted."""

import shlex
from collections.abc import Sequence


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and what it counts: "1 picture", "2 pictures".

    Args:
        number: how many.
        one: the noun in the singular.
        many: in the plural; None where an "s" makes it.
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """A time for people: "48 s", "3 min 20 s", "5 h 4 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def few(names: Sequence[str]) -> str:
    """The first names of a list that may be long: "a, b, c, ... 9 in all"."""
    return ", ".join(names[:3]) + (f", ... {len(names)} in all" if len(names) > 3 else "")


def command(*words: object) -> str:
    """A command of this program that can be pasted into a shell, whatever blanks and signs its words hold."""
    return shlex.join(["mira", *map(str, words)])
