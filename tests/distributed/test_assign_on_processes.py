"""`assign` over real processes: the labels of one process on the joined batch, with few collectives."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import on_ranks, rows_of
from torch import Tensor

from mira.assignment import Assignment, assign
from mira.distributed import Ranks


def cosine_logits(kind: str, views: int, pictures: int, prototypes: int) -> Tensor:
    """Cosine similarities as a head of width 256 gives them: without structure, or around shared centres."""
    generator = torch.Generator().manual_seed(prototypes)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    if kind == "random":
        projections, directions = normal(views, pictures, 256), normal(prototypes, 256)
    else:
        centres = normal(20, 256)
        projections = centres[torch.randint(20, (pictures,), generator=generator)] + 0.6 * normal(views, pictures, 256)
        directions = centres[torch.randint(20, (prototypes,), generator=generator)] + 0.6 * normal(prototypes, 256)
    return F.normalize(projections, dim=-1) @ F.normalize(directions, dim=-1).T


def solve_shard(ranks: Ranks, logits: Tensor, sizes: tuple[int, ...], arguments: dict) -> tuple[Assignment, int, int]:
    """The shard's assignment, calls of `reduce`, and collectives that torch.distributed really made."""
    calls, collectives = 0, 0
    real = dist.all_reduce

    def counted(*args, **kwargs):
        nonlocal collectives
        collectives += 1
        return real(*args, **kwargs)

    def reduce(tensor: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return ranks.sum(tensor)

    dist.all_reduce = counted
    solved = assign(rows_of(ranks, logits, sizes, dim=1), reduce=reduce, **arguments)
    return solved, calls, collectives


@pytest.mark.parametrize("sizes", [(64, 64), (101, 27), (32, 32, 32, 32), (40, 0, 87, 1)])
def test_shards_together_are_the_joined_batch(sizes: tuple[int, ...]) -> None:
    logits = cosine_logits("clustered", 2, 128, 300)
    arguments = {"beta": 0.75, "temperature": 0.225, "tolerance": 1e-6}
    whole = assign(logits, **arguments)
    parts = [part for part, _, _ in on_ranks(len(sizes), solve_shard, logits, sizes, arguments)]
    joined = torch.cat([part.probs for part in parts], dim=1)
    assert joined.dtype == torch.float32
    torch.testing.assert_close(joined, whole.probs, rtol=0, atol=1e-6)
    for part in parts:
        assert part.iterations == whole.iterations
        assert torch.equal(part.log_marginal, parts[0].log_marginal)  # the same bits on every rank
        assert torch.equal(part.gap, parts[0].gap)


@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("prototypes", [300, 1000, 3000])
def test_at_most_ten_collectives_at_the_papers_setting(kind: str, prototypes: int) -> None:
    logits = cosine_logits(kind, 2, 256, prototypes)
    arguments = {"beta": 0.75, "temperature": 0.225, "tolerance": 1e-5}
    for solved, calls, collectives in on_ranks(2, solve_shard, logits, (128, 128), arguments):
        assert (solved.gap <= 1e-5).all()
        assert calls == collectives <= 10
