"""How processes meet and part."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from mira.distributed.environment import ranks_from_environment
from mira.distributed.lost import TIMEOUT, lost_ranks
from mira.distributed.ranks import Ranks


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
    with lost_ranks():
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


def in_group() -> bool:
    """Whether this process has met others and not parted from them: so it ends after an error."""
    return dist.is_initialized()


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
