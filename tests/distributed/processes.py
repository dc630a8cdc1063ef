"""Real processes for tests: a function on every rank of a gloo group, and what each returned."""

import io
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from mira.distributed import Ranks, process_group
from mira.distributed.meeting import host_store

_SECONDS = 600
# A server that has imported everything once forks the ranks: they start in no time, and inherit no thread of pytest's.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["mira.training.start", "mira.training.step"])


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(ranks, *arguments)` in `world` processes; their results by rank, None of one that died."""
    store, address = host_store()
    processes, pipes = [], []
    for rank in range(world):
        ours, theirs = _context.Pipe(duplex=False)
        variables = {**address, "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        process = _context.Process(
            target=_work, args=(theirs, multiprocessing.get_start_method(), variables, function, arguments)
        )
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    results: dict[int, Any] = {}
    try:
        while len(results) < world:
            ready = wait([pipe for rank, pipe in enumerate(pipes) if rank not in results], timeout=_SECONDS)
            assert ready, f"the ranks {sorted(set(range(world)) - set(results))} hang"
            for pipe in ready:
                rank = pipes.index(pipe)  # type: ignore[arg-type]
                try:
                    received = pipe.recv_bytes()  # type: ignore[union-attr]
                except EOFError:
                    results[rank] = None
                    continue
                ok, content = torch.load(io.BytesIO(received), weights_only=False)
                assert ok, f"rank {rank}:\n{content}"
                results[rank] = content
    finally:
        for process in processes:
            process.kill() if len(results) < world else process.join(_SECONDS)
    del store
    return [results[rank] for rank in range(world)]


def _work(
    pipe: Connection, start_method: str, variables: dict[str, str], function: Callable[..., Any], arguments: tuple
) -> None:
    # A server's children would start their own children, a loader's workers, by another server.
    multiprocessing.set_start_method(start_method, force=True)
    os.environ.update(variables, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    buffer = io.BytesIO()
    try:
        with process_group() as ranks:
            result = (True, function(ranks, *arguments))
    except BaseException:
        result = (False, traceback.format_exc())
    torch.save(result, buffer)
    pipe.send_bytes(buffer.getvalue())
    os._exit(0)  # a failed rank may hold loader processes, which multiprocessing would wait for


def rows_of(ranks: Ranks, tensor: torch.Tensor, sizes: tuple[int, ...], dim: int = 0) -> torch.Tensor:
    """This rank's shard of a tensor."""
    return tensor.split(sizes, dim)[ranks.rank]
