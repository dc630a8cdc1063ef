"""Reading files of JSON lines: what can be read is read, what cannot is counted and named, once."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_NAMED = 5  # lines whose numbers are said


def read_json_lines(path: Path, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    """The lines of a file, each made into a value; [] where there is no file.

    Disks, editors and other programs leave odd things in files. A line that is no JSON object, or of which `parse`
    makes nothing, is left out, and one warning says how many there are and where. A last line without an end is what
    a killed process leaves behind: it is left out without a word.

    Args:
        path: of the file, in UTF-8; bytes that are none spoil their line and no other.
        parse: from a line's keys and values; raises ValueError, TypeError or KeyError for one that it cannot use.
    """
    if not path.is_file():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    values: list[T] = []
    odd: list[int] = []
    for number, line in enumerate([*lines, last], 1):
        if not line.strip():
            continue
        try:
            # Bytes that are no UTF-8 become marks that no number holds, so only their own text is spoiled.
            content = json.loads(line.decode("utf-8", "replace"))
            if not isinstance(content, dict):
                raise ValueError("it is no object")
            values.append(parse(content))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            if number <= len(lines):
                odd.append(number)
    if odd:
        named = ", ".join(map(str, odd[:_NAMED])) + (" and others" if len(odd) > _NAMED else "")
        which = f"line {named} cannot" if len(odd) == 1 else f"{len(odd)} lines cannot"
        where = "" if len(odd) == 1 else f" ({named})"
        warnings.warn(f"'{path}': {which} be read and {'is' if len(odd) == 1 else 'are'} left out{where}", stacklevel=3)
    return values
