"""Run by test_kernels_interpreted.py: the step in one launch, and a whole solution by kernels."""

import pytest
import torch
from assignment_problems import make_logits

from mira.assignment import assign, labels, marginals
from mira.assignment.kernels import FusedMarginals
from mira.assignment.log_domain import LogDomainLabels
from mira.assignment.marginals import LOG_FLOOR, Marginals


@pytest.mark.parametrize(
    ("family", "accelerate", "beta", "tolerance"),
    [
        ("sharp", True, 2 / 3, None),
        ("sharp", True, 0.97, 1e-6),
        ("sharp", False, 0.75, 1e-6),
        ("uneven columns", True, 2 / 3, 1e-6),
        ("uneven columns", True, 0.97, None),
        ("uneven columns", False, 0.75, None),
        ("uneven columns", True, 0.0, 1e-6),
    ],
)
def check_a_step_is_that_of_separate_operations(family, beta, accelerate, tolerance):
    logits = make_logits(family, torch.Size((2, 40, 27)), seed=1)
    start = torch.randn(2, 27, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label_map = LogDomainLabels(logits, 1 / (1 - beta), torch.float64)
    wanted = Marginals(start, beta=beta, accelerate=accelerate)
    found = FusedMarginals(start, beta=beta, accelerate=accelerate, block=16)
    for _ in range(8):  # the ring of changes is full after six
        # The same points for both: what differs is this step's doing.
        sums = label_map.column_sums(wanted.log_u * (-beta / (1 - beta)))
        for one in (wanted, found):
            one.take(sums, tolerance)
        torch.testing.assert_close(found.gap, wanted.gap, rtol=1e-8, atol=1e-16)
        torch.testing.assert_close(found.best, wanted.best, rtol=0, atol=1e-9)
        for one in (wanted, found):
            one.advance()
        torch.testing.assert_close(found.log_u, wanted.log_u, rtol=0, atol=1e-9)
    assert accelerate == (found.log_u.shape[1] == 2)


def check_empty_columns_are_held_at_the_floor():
    sums = torch.tensor([[[0.0, 3.0, 1e-300, 5.0]]], dtype=torch.float64)
    start = torch.zeros(1, 4, dtype=torch.float64)
    for accelerate in (True, False):
        wanted = Marginals(start, beta=0.5, accelerate=accelerate)
        found = FusedMarginals(start, beta=0.5, accelerate=accelerate)
        for _ in range(8):
            for one in (wanted, found):
                one.take(sums.expand(one.log_u.shape), None)
                one.advance()
            torch.testing.assert_close(found.log_u, wanted.log_u, rtol=1e-12, atol=1e-9)
            torch.testing.assert_close(found.gap, wanted.gap, rtol=1e-8, atol=1e-14)
        assert found.log_u.min() >= LOG_FLOOR


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("clustered", torch.bfloat16), ("uneven columns", torch.float64), ("ties", torch.float32), ("sharp", torch.half)],
)
def check_assign_by_kernels(family, dtype, monkeypatch):
    logits = make_logits(family, torch.Size((2, 20, 45)), seed=2).to(dtype)
    problem = {
        "beta": 2 / 3,
        "max_iterations": 8,
        "tolerance": None,
        "row_weights": torch.rand(2, 20, generator=torch.Generator().manual_seed(0)),
        "prior": torch.rand(45, generator=torch.Generator().manual_seed(0)) + 0.1,
    }
    wanted = assign(logits, **problem)
    for module in (labels, marginals):
        monkeypatch.setattr(module, "fusible", lambda _: True)
    found = assign(logits, **problem)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    assert found.probs.dtype == wanted.probs.dtype
    assert torch.allclose(found.probs, wanted.probs, rtol=0, atol=tolerance)
    assert torch.allclose(found.gap, wanted.gap, rtol=1e-3, atol=tolerance * 1e-3)
