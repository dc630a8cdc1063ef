"""Rows spread over ranks, simulated by threads with a summing `reduce`; and how often it is called."""

import threading
from collections.abc import Callable

import pytest
import torch
from assignment_problems import make_logits
from torch import Tensor

from mira.assignment import Assignment, assign


def assign_on_ranks(shards: tuple[Tensor, ...], **arguments) -> tuple[list[Assignment], list[int]]:
    """Run `assign` on every shard at once; returns each rank's result and number of calls to `reduce`."""
    barrier = threading.Barrier(len(shards), timeout=20)
    slots: list[Tensor] = [torch.empty(0)] * len(shards)
    calls = [0] * len(shards)
    results: dict[int, Assignment] = {}

    def reduce_for(rank: int) -> Callable[[Tensor], Tensor]:
        def reduce(tensor: Tensor) -> Tensor:
            calls[rank] += 1
            slots[rank] = tensor
            barrier.wait()
            total = torch.stack(slots).sum(0)
            barrier.wait()
            return total

        return reduce

    def work(rank: int) -> None:
        results[rank] = assign(shards[rank], **arguments, reduce=reduce_for(rank))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(len(shards))], calls


@pytest.mark.parametrize("sizes", [(30, 30), (41, 19), (37, 0, 23), (0, 59, 1)])
@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize("tolerance", [1e-6, None])
def test_shards_together_are_the_whole(sizes, accelerate, tolerance):
    logits = make_logits("clustered", torch.Size((2, 60, 25)), seed=2)
    arguments = {"beta": 0.75, "accelerate": accelerate, "tolerance": tolerance, "max_iterations": 20}
    whole = assign(logits, **arguments)
    parts, _ = assign_on_ranks(logits.split(sizes, 1), **arguments)
    assert {part.iterations for part in parts} == {whole.iterations}
    assert torch.allclose(torch.cat([part.probs for part in parts], 1), whole.probs, atol=1e-11)
    for part in parts:
        assert torch.equal(part.log_marginal, parts[0].log_marginal)
        assert torch.allclose(part.log_marginal, whole.log_marginal, atol=1e-10)
        assert torch.allclose(part.gap, whole.gap, atol=1e-12)


def test_shards_in_float32_are_the_whole_to_single_precision():
    logits = make_logits("clustered", torch.Size((2, 60, 25)), seed=2).float()
    whole = assign(logits, beta=2 / 3)
    parts, _ = assign_on_ranks(logits.split((11, 49), 1), beta=2 / 3)
    assert torch.allclose(torch.cat([part.probs for part in parts], 1), whole.probs, atol=1e-6)


@pytest.mark.parametrize("accelerate", [True, False])
def test_one_sum_per_iteration_for_all_views(accelerate):
    logits = make_logits("clustered", torch.Size((3, 40, 12)), seed=0)
    arguments = {"beta": 0.75, "accelerate": accelerate}
    (cold, _), calls = assign_on_ranks(logits.split(20, 1), **arguments)
    assert cold.iterations > 1
    assert calls == [cold.iterations + 2] * 2
    start = cold.log_marginal - 0.1 * torch.arange(12)
    (warm, _), calls = assign_on_ranks(logits.split(20, 1), **arguments, initial_log_marginal=start)
    assert calls == [warm.iterations + 1] * 2


def test_at_most_ten_sums_at_the_papers_setting():
    logits = make_logits("clustered", torch.Size((2, 256, 300)), seed=0) * 0.225
    (solved, _), calls = assign_on_ranks(logits.split(128, 1), beta=0.75, temperature=0.225, tolerance=1e-5)
    assert (solved.gap <= 1e-5).all()
    assert max(calls) <= 10
