"""Every way to labels over real processes, uneven and empty ones, equals itself on the joined batch."""

import pytest
import torch
from processes import on_ranks
from torch import Tensor

from mira.distributed import ALONE, Ranks
from mira.training.assignment_methods import METHODS, AssignmentSettings

STEPS = 3


def label_some_steps(
    ranks: Ranks, settings: AssignmentSettings, sizes: tuple[int, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's labels of the last step, and what it remembers then."""
    state = settings.initial_state(9, torch.device("cpu"))
    for step in range(STEPS):
        logits = torch.randn(2, sum(sizes), 9, generator=torch.Generator().manual_seed(step)) + torch.arange(9)
        mine = logits.split(sizes, 1)[ranks.rank]
        reduce = ranks.sum if ranks.world > 1 else None
        solved, state = settings.solve(mine, state, beta=0.7, temperature=0.5, reduce=reduce)
    return solved.probs, state


@pytest.mark.parametrize("target", [None, 0.5])
@pytest.mark.parametrize("method", METHODS)
def test_processes_equal_one_on_the_joined_batch(method: type, target: float | None) -> None:
    settings = method(target_entropy=target)
    whole, remembered = label_some_steps(ALONE, settings, (24,))
    parts = on_ranks(3, label_some_steps, settings, (15, 0, 9))
    torch.testing.assert_close(torch.cat([labels for labels, _ in parts], 1), whole, rtol=0, atol=1e-6)
    for _, state in parts:
        assert state.keys() == remembered.keys()
        for name, value in state.items():
            assert torch.equal(value, parts[0][1][name])
            torch.testing.assert_close(value, remembered[name], rtol=1e-6, atol=1e-6)
