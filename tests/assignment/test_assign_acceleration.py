"""The accelerated iteration against the plain one, and warm starts."""

import pytest
import torch
from assignment_problems import FAMILIES, make_logits, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from mira.assignment import assign

SHAPE = torch.Size((96, 40))


def iterations(logits: torch.Tensor, *, beta: float, **arguments) -> int:
    solved = assign(logits, beta=beta, **{"tolerance": 1e-6, "max_iterations": 2000, **arguments})
    assert (solved.gap <= 1e-6).all()
    return solved.iterations


@pytest.mark.parametrize(("beta", "share"), [(0.5, 0.8), (2 / 3, 0.7), (0.75, 0.6), (0.9, 0.5), (0.97, 0.5)])
def test_takes_fewer_iterations_in_every_family(beta, share):
    plain, mixed = [], []
    for family in FAMILIES:
        logits = make_logits(family, SHAPE, seed=1)
        plain.append(iterations(logits, beta=beta, accelerate=False))
        mixed.append(iterations(logits, beta=beta))
    assert all(few <= many for few, many in zip(mixed, plain, strict=True)), (mixed, plain)
    assert sum(mixed) <= share * sum(plain), (mixed, plain)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beta", [0.5, 2 / 3, 0.75, 0.9, 0.97, 0.999])
def test_never_ends_worse_than_plain_after_as_many_iterations(family, beta):
    for seed in range(3):
        logits = make_logits(family, SHAPE, seed=seed)
        last = torch.inf
        for count in (0, 1, 2, 3, 4, 6, 9, 15, 40):
            never_worse_than_plain(logits, beta=beta, max_iterations=count)
            gap = float(assign(logits, beta=beta, max_iterations=count, tolerance=None).gap)
            assert gap <= last, (seed, count)  # and never grows with the budget
            last = gap


@settings(max_examples=60, deadline=None)
@given(
    problems(views=True, betas=st.floats(0.0, 0.9999)),
    st.sampled_from([1.0, 30.0, 1e3, 1e4]),
    st.integers(0, 60),
    st.integers(0, 1000),
)
def test_never_ends_worse_on_random_problems_from_random_starts(problem, size, count, seed):
    """Logits up to +-1e4 and beyond, several views, any beta, good and bad starts."""
    shape = problem["logits"].shape
    start = torch.randn(shape[0], shape[2], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    problem["logits"] *= size / problem["logits"].abs().max().clamp(min=1e-9)
    never_worse_than_plain(**problem, max_iterations=count)
    never_worse_than_plain(**problem, max_iterations=count, initial_log_marginal=start * (seed % 50))


def never_worse_than_plain(logits: torch.Tensor, **arguments) -> None:
    plain = assign(logits, **arguments, tolerance=None, accelerate=False)
    mixed = assign(logits, **arguments, tolerance=None)
    # Both evaluate the plain points, in another order of sums.
    assert (mixed.gap <= plain.gap * (1 + 1e-6) + 1e-13).all(), (mixed.gap, plain.gap)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beta", [0.9, 0.99])
def test_reaches_a_gap_in_no_more_iterations(family, beta):
    for seed in range(3):
        logits = make_logits(family, SHAPE, seed=seed).float()
        assert iterations(logits, beta=beta) <= iterations(logits, beta=beta, accelerate=False)


@pytest.mark.parametrize("accelerate", [True, False])
def test_a_warm_start_takes_fewer_iterations(accelerate):
    logits = make_logits("clustered", SHAPE, seed=0)
    nearby = logits + 0.02 * make_logits("cosine", SHAPE, seed=1)
    arguments = {"beta": 0.75, "accelerate": accelerate}
    cold = iterations(nearby, **arguments)
    warm = iterations(nearby, **arguments, initial_log_marginal=assign(logits, beta=0.75).log_marginal)
    assert warm < cold


def test_a_solution_handed_in_is_recognised():
    logits = make_logits("clustered", torch.Size((2, 64, 20)), seed=0)
    solved = assign(logits, beta=0.75, tolerance=1e-12)
    again = assign(logits, beta=0.75, tolerance=1e-6, initial_log_marginal=solved.log_marginal + 3.0)
    assert again.iterations == 0
    assert torch.allclose(again.probs, solved.probs, atol=1e-12)


def test_a_hopeless_start_is_recovered_from():
    logits = make_logits("clustered", torch.Size((64, 20)), seed=0)
    start = torch.linspace(0, -1e5, 20)
    solved = assign(logits, beta=0.75, tolerance=1e-10, max_iterations=300, initial_log_marginal=start)
    expected = assign(logits, beta=0.75, tolerance=1e-10)
    assert solved.gap <= 1e-10
    assert torch.allclose(solved.probs, expected.probs, atol=1e-4)
