"""Words for people: nouns that fit a number, commands that can be pasted."""

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


def few(names: Sequence[str]) -> str:
    """The first names of a list that may be long: "a, b, c, ... 9 in all"."""
    return ", ".join(names[:3]) + (f", ... {len(names)} in all" if len(names) > 3 else "")


def command(*words: object) -> str:
    """A command of this program that can be pasted into a shell, whatever blanks and signs its words hold."""
    return shlex.join(["mira", *map(str, words)])
