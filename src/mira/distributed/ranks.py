"""One of the processes that train together, and what it does with the others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mira.distributed.lost import lost_ranks
from mira.errors import FirstRankFailed
from mira.wording import counted

T = TypeVar("T")

_BUCKET = 1 << 23
"""Gradients travel in pieces of at most so many numbers (32 MiB in float32), so that little memory is needed twice."""


@dataclass(frozen=True)
class Ranks:
    """One of the processes that train together.

    Attributes:
        rank: of this process, from 0; rank 0 writes everything.
        world: the number of processes.
        local_rank: among the processes of this machine.
        local_world: the number of processes of this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place: the same bits on every rank.

        This is the `reduce` of `mira.assign`. Tensors on a GPU go through NCCL, others through gloo.
        """
        if self.world > 1:
            with lost_ranks():
                dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients of parameters over all ranks, in few large pieces that travel at the same time."""
        if self.world == 1:
            return
        travelling = []
        with lost_ranks():
            for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
                flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
                travelling.append((dist.all_reduce(flat, async_op=True), flat, bucket))
            for work, flat, bucket in travelling:
                work.wait()
                pieces = torch.split(flat, [gradient.numel() for gradient in bucket])
                torch._foreach_copy_(
                    bucket, [piece.view(gradient.shape) for piece, gradient in zip(pieces, bucket, strict=True)]
                )

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the values that rank 0 has, in place."""
        if self.world > 1:
            with lost_ranks(), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in their order: a small one that can be pickled, or a tensor on the CPU."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with lost_ranks():
            dist.all_gather_object(values, value)
        return values

    def from_first(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 alone, and return its result on every rank; the others wait.

        Raises:
            FirstRankFailed: on the other ranks, when the function raised an error, which goes on its way on rank 0.
        """
        if self.world == 1:
            return function()
        answer: list[Any] = [None, None]
        error = None
        if self.first:
            try:
                answer[0] = function()
            except Exception as raised:
                error = raised
                answer[1] = f"{type(raised).__name__}: {raised}"
        with lost_ranks():
            dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
        if error is not None:
            raise error
        if answer[1] is not None:
            raise FirstRankFailed(f"rank 0 failed with {answer[1]}")
        result: T = answer[0]
        return result

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self.sum(torch.zeros(1))

    def device(self, name: str) -> torch.device:
        """The device that a recipe's `training.device` means for this process: "cuda" is a GPU of its own.

        Raises:
            ValueError: there are fewer GPUs than processes on this machine.
        """
        if name != "cuda" or self.world == 1:
            return torch.device(name)
        visible = torch.cuda.device_count()
        # A scheduler may show each process its own GPU alone.
        index = 0 if visible == 1 else self.local_rank
        if index >= visible:
            raise ValueError(
                f"{counted(self.local_world, 'process', 'processes')} on this machine and {counted(visible, 'GPU')}: "
                "start one process per GPU, or "
                "train with training.device=cpu"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        return device


ALONE = Ranks()
"""One process."""


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
