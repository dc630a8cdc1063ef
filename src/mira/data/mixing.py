"""The order of pictures that lie in large files which do not all fit on the disk at once."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from jaxtyping import Int64

from mira.data.sources import PictureSource, ShardedSource
from mira.data.uniforms import hashed
from mira.wording import counted


@dataclass(frozen=True, eq=False)
class ShardMixing:
    """An order that needs few shards at a time: groups of shards follow each other, their pictures mixed within.

    Which shards form a group, and in which order the groups come, is drawn anew for each epoch.

    Attributes:
        shard_of: the shard that each picture lies in, numbered from 0.
        together: how many shards make a group.
    """

    shard_of: Int64[np.ndarray, " N"]
    together: int

    def groups(self, seed: int, epoch: int) -> Int64[np.ndarray, " S"]:
        """The group of each shard in an epoch, numbered in the order in which they come."""
        numbers = np.arange(self.shard_of.max() + 1)
        place = np.argsort(np.argsort(hashed(seed, epoch, numbers, 0), kind="stable"))
        groups: np.ndarray = place // self.together
        return groups

    def needed(self, seed: int, epoch: int, index: int) -> tuple[int, ...]:
        """The shards of a picture's group, then those of the group after it, which may be the next epoch's first."""
        groups = self.groups(seed, epoch)
        group = groups[self.shard_of[index]]
        after = groups == group + 1 if group < groups.max() else self.groups(seed, epoch + 1) == 0
        now = np.flatnonzero(groups == group)
        return (*now.tolist(), *np.setdiff1d(np.flatnonzero(after), now).tolist())


def shard_mixing(source: PictureSource, together: int | None) -> ShardMixing | None:
    """The order for a source; None mixes all its pictures.

    Args:
        source: any.
        together: the shards of a group; None for no groups.

    Raises:
        ValueError: the source has no shards, or there is no room for the copies of those needed at a time.
    """
    if not isinstance(source, ShardedSource):
        if together is None:
            return None
        raise ValueError(f"data.mix_shards is for tar files, and {source.name} has none: leave it out")
    sizes = sorted(source.fetched_sizes, reverse=True)
    # Three groups: the one being read, the next, which is fetched meanwhile, and the one before, which another process
    # may still be reading.
    count = len(sizes) if together is None else min(3 * together, len(sizes))
    needed = sum(sizes[:count])
    if needed > source.room:
        fits = bisect_right(list(accumulate(sizes)), source.room) // 3
        ways = [f"data.mix_shards={fits}{' or less' if fits > 1 else ''}"] if fits and fits != together else []
        ways.append(f"data.cache_gigabytes={needed / 2**30 + 0.01:.2f} or more")
        what = "all" if count == len(sizes) else f"{count} (three times data.mix_shards)"
        raise ValueError(
            f"copies of {what} of the {counted(len(sizes), 'remote shard')} take {needed / 2**30:.2f} GB, more than "
            f"data.cache_gigabytes={source.room / 2**30:.2f}: set {' or '.join(ways)}"
        )
    return None if together is None else ShardMixing(source.shard_of, together)
