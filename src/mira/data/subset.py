"""Some of the pictures of a source, as a source."""

import numpy as np
from jaxtyping import Int64, UInt8

from mira.data.sources import Identified, PictureSource, ShardedSource


def to_choose_from(source: PictureSource, count: int) -> int:
    """From how many of the first pictures `count` may be chosen to look at.

    All of them; but of a source whose files have to be fetched, those of as few files as hold so many.
    """
    if isinstance(source, ShardedSource) and source.fetched_sizes and count < len(source):
        return int(np.searchsorted(source.shard_of, source.shard_of[count - 1], side="right"))
    return len(source)


class PictureSubset:
    """The chosen pictures of a source, in the order given.

    Args:
        source: any source.
        chosen: which of its pictures.
    """

    def __init__(self, source: PictureSource, chosen: Int64[np.ndarray, " N"]) -> None:
        self._source, self._chosen = source, chosen
        self.name = source.name
        self.classes = source.classes
        self.labels = None if source.labels is None else source.labels[chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def key(self, index: int) -> str:
        """The picture's name in its source."""
        return self._source.key(int(self._chosen[index]))

    def identity(self) -> str | None:
        """The source's own and which of its pictures; None where the source has none."""
        own = self._source.identity() if isinstance(self._source, Identified) else None
        return None if own is None else f"{own}\0{self._chosen.tolist()}"

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """The picture, as its source gives it."""
        return self._source.read(int(self._chosen[index]))
