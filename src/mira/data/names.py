"""Names of pictures, classes and folders: whatever they are made of, all sources show and write them in one way.

`escaped` is that way (`mira.escaping`). From where a source has listed its pictures on, every key and every class name
is one line of plain text; only where a file is opened its own name is used.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mira.escaping import escaped as escaped

_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")
_NO_UNICODE = re.compile("[\ud800-\udfff]")


def path_text(path: str | os.PathLike[str]) -> str:
    """A path as text that recipes and results can hold: bytes that are no UTF-8 are escaped, nothing else."""
    return _NO_UNICODE.sub(lambda match: f"\\u{ord(match[0]):04x}", os.fspath(path))


def path_of(text: str | os.PathLike[str]) -> Path:
    """The path that `path_text` was made of, with the person's own folder in place of "~".

    Raises:
        ValueError: "~NAME" of a person that this machine does not know.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: {error}") from None
    meant = Path(_BYTE.sub(lambda match: chr(0xDC00 + int(match[1], 16)), str(path)))
    return meant if meant != path and not _exists(path) and _exists(meant) else path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a null character
        return False


class Names:
    """A fixed list of names.

    One block of bytes instead of a list of strings: worker processes share its memory, because reading it touches no
    reference counts.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]])
