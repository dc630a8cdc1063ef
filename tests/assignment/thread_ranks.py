"""Ranks as threads: a function on every shard of the rows at once, with a `reduce` that sums over them."""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def on_threads(function: Callable[..., T], shards: tuple[Tensor, ...], **arguments) -> tuple[list[T], list[int]]:
    """Call `function(shard, **arguments, reduce=...)` for all shards; each one's result and its calls of `reduce`.

    An argument that is a tuple has one part for each shard.
    """
    barrier = threading.Barrier(len(shards), timeout=20)
    slots: list[Tensor] = [torch.empty(0)] * len(shards)
    calls = [0] * len(shards)
    results: dict[int, T] = {}

    def work(rank: int) -> None:
        def reduce(tensor: Tensor) -> Tensor:
            calls[rank] += 1
            slots[rank] = tensor
            barrier.wait()
            total = torch.stack(slots).sum(0)
            barrier.wait()
            return tensor.copy_(total)  # in place, as torch.distributed does it

        own = {name: value[rank] if isinstance(value, tuple) else value for name, value in arguments.items()}
        results[rank] = function(shards[rank], **own, reduce=reduce)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(len(shards))], calls
