"""Many processes: the only file that calls torch.distributed.

A process learns who it is from the environment that torchrun, SLURM's srun or `mira pretrain --processes` give it. The
answer is a small value, `Ranks`, that is handed to whatever needs it; nothing is global. One process alone needs no
process group: every method of its `Ranks` returns at once.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others. Rank 0 works alone on some things (looking through a folder of millions of
pictures, an online k-NN), so this is long; a rank that *ends* is noticed at once by its launcher and, with gloo, by the
others."""
_BUCKET = 1 << 23
"""Gradients travel in pieces of at most so many numbers (32 MiB in float32), so that little memory is needed twice."""


class RankLost(RuntimeError):
    """Another process has ended, or has not answered in time."""


class FirstRankFailed(RuntimeError):
    """Rank 0 has raised an error and says it; this process has nothing to add."""


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
            with _lost_ranks():
                dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients of parameters over all ranks, in few large pieces that travel at the same time."""
        if self.world == 1:
            return
        travelling = []
        with _lost_ranks():
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
            with _lost_ranks(), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in their order: a small one that can be pickled, or a tensor on the CPU."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with _lost_ranks():
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
        with _lost_ranks():
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
                f"{self.local_world} processes on this machine and {visible} GPUs: start one process per GPU, or "
                "train with training.device=cpu"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        return device


ALONE = Ranks()
"""One process."""


def ranks_from_environment(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Who this process is: torchrun's variables, else those of a SLURM step, else alone.

    Raises:
        ValueError: SLURM has started several processes, and nothing says where they meet.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Ranks(
            rank=int(environment["RANK"]),
            world=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", 0)),
            local_world=int(environment.get("LOCAL_WORLD_SIZE", 1)),
        )
    # Only srun sets SLURM_STEP_NUM_TASKS: in an interactive allocation one process is one process.
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
            raise ValueError(
                "srun has started several processes but MASTER_ADDR and MASTER_PORT do not say where they meet: start "
                "from scripts/slurm.sbatch, or write `export MASTER_ADDR=$(scontrol show hostnames | head -n 1) "
                "MASTER_PORT=29500` before srun"
            )
        return Ranks(
            rank=int(environment["SLURM_PROCID"]),
            world=int(environment["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            # "4(x2),3": tasks on each node of the step
            local_world=int(environment.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0].partition(",")[0]),
        )
    return ALONE


def started_again(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or SLURM has started this command before, so that it has to go on where it was."""
    return any(int(environment.get(key, 0)) > 0 for key in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Meet the other processes, and part from them at the end. Alone, or inside a group of the caller's, do neither.

    Raises:
        ValueError: see `ranks_from_environment`.
        RankLost: not all processes came.
    """
    ranks = ranks_from_environment()
    if ranks.world == 1 or dist.is_initialized():
        yield ranks
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    with _lost_ranks():
        store = next(rendezvous("env://", ranks.rank, ranks.world, timeout=TIMEOUT))[0]
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=PrefixStore(_agree_on_session(store, ranks), store),
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=TIMEOUT,
        )
    yield ranks
    # Not after an error: to take leave of a rank that is gone would mean to wait for it.
    dist.destroy_process_group()


def _agree_on_session(store: Store, ranks: Ranks) -> str:
    """A name that the processes alive now have in common, and no earlier ones.

    After a failure torchrun starts new processes on the store of the old ones (seen with PyTorch 2.13), where the
    addresses of the dead still stand. So rank 0 answers to what each of the others has made up for itself now.
    """
    own = uuid.uuid4().hex
    if not ranks.first:
        store.set(f"hello/{ranks.rank}", own)
        session = store.get(f"welcome/{own}").decode()  # waits for it
        store.set(f"joined/{session}/{ranks.rank}", "")
        return session
    missing = set(range(1, ranks.world))
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        for rank in sorted(missing):
            if store.check([f"joined/{own}/{rank}"]):
                missing.remove(rank)
            elif store.check([f"hello/{rank}"]):  # perhaps of a dead one, whom the answer does not reach
                store.set(f"welcome/{store.get(f'hello/{rank}').decode()}", own)
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks {sorted(missing)} have not come")
        time.sleep(0.02)
    return own


def host_store() -> tuple[TCPStore, dict[str, str]]:
    """A meeting point for processes of this machine, on a port of its own, and the variables that lead there."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # As torchrun says it: the store is served by the launcher, not by rank 0.
    return store, {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


@contextmanager
def _lost_ranks() -> Iterator[None]:
    """What the backends raise when a peer is gone, in one type and a sentence."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RankLost(
            f"another process has ended or has not answered within {TIMEOUT.total_seconds() / 60:.0f} minutes "
            f"({reason}). The one that failed first says why"
        ) from error
