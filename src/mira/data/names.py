"""Many names in one block of memory."""

import os
from collections.abc import Iterable

import numpy as np


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
