"""In which order the pictures are seen: pure functions of the seed and the step."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from mira.data.mixing import ShardMixing
from mira.data.uniforms import hashed


class BatchRequest(NamedTuple):
    """Which pictures make up a batch, in which epoch they are seen, and which shards are needed from there on."""

    epoch: int
    indices: Int64[np.ndarray, " B"]
    shards: tuple[int, ...] = ()


def steps_per_epoch(n: int, batch_size: int) -> int:
    """How many whole batches an epoch has; raises ValueError when it has none."""
    if not 1 <= batch_size <= n:
        raise ValueError(
            f"batch_size is {batch_size} but there {'is 1 picture' if n == 1 else f'are {n} pictures'}: "
            f"lower batch_size to at most {n}"
            if batch_size > n
            else f"batch_size must be at least 1, not {batch_size}"
        )
    return n // batch_size


def shares(batch_size: int, *, rank: int = 0, world: int = 1, parts: int = 1) -> list[slice]:
    """Which places of a batch a rank has: one slice for each of the `parts` that go through the network in turn.

    The batch is cut into parts, then each part is shared by the ranks in their order, as evenly as numbers allow. So
    a part holds the same pictures whatever the number of ranks.

    Raises:
        ValueError: there are not enough pictures for every rank to have one in every part.
    """
    if batch_size < world * parts:
        each = f" in {parts} parts" if parts > 1 else ""
        raise ValueError(
            f"batch_size {batch_size}{each} cannot be shared by {world} processes: make it at least {world * parts}"
        )
    slices = []
    for part in range(parts):
        start, stop = part * batch_size // parts, (part + 1) * batch_size // parts
        own, end = (start + edge * (stop - start) // world for edge in (rank, rank + 1))
        slices.append(slice(own, end))
    return slices


def batch_indices(
    n: int,
    batch_size: int,
    *,
    seed: int,
    step: int,
    rank: int = 0,
    world: int = 1,
    parts: int = 1,
    mixing: ShardMixing | None = None,
) -> Int64[np.ndarray, " B"]:
    """The pictures of a rank's part of a step's batch: a pure function.

    Each epoch is a permutation of the pictures, made from (seed, epoch) and cut into whole batches; what is left
    over is dropped. `shares` says which places of a batch are this rank's.

    Args:
        n: the number of pictures.
        batch_size: the size of the whole batch, over all ranks.
        seed: of the run.
        step: counted over all epochs, from 0.
        rank: of this process.
        world: the number of processes.
        parts: see `shares`.
        mixing: where the pictures lie, if few of their shards shall be needed at a time.
    """
    epoch, position = divmod(step, steps_per_epoch(n, batch_size))
    batch = _permutation(n, seed, epoch, mixing)[position * batch_size : (position + 1) * batch_size]
    return np.concatenate([batch[share] for share in shares(batch_size, rank=rank, world=world, parts=parts)])


@functools.lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int, mixing: ShardMixing | None) -> Int64[np.ndarray, " N"]:
    mixed = hashed(seed, epoch, np.arange(n))
    if mixing is None:
        return np.argsort(mixed, kind="stable")
    return np.lexsort((mixed, mixing.groups(seed, epoch)[mixing.shard_of]))


class Requests(Sequence[BatchRequest]):
    """The requests of the steps from `first` to before `last`."""

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        first: int,
        last: int,
        rank: int,
        world: int,
        parts: int = 1,
        mixing: ShardMixing | None = None,
    ) -> None:
        self._steps = range(first, last)
        self._per_epoch = steps_per_epoch(n, batch_size)
        self._seed, self._mixing = seed, mixing
        self._indices = functools.partial(
            batch_indices, n, batch_size, seed=seed, rank=rank, world=world, parts=parts, mixing=mixing
        )

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, position: Any) -> Any:
        step = self._steps[position]
        epoch, indices = step // self._per_epoch, self._indices(step=step)
        shards = self._mixing.needed(self._seed, epoch, int(indices[0])) if self._mixing else ()
        return BatchRequest(epoch, indices, shards)
