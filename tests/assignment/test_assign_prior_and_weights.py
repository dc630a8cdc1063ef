"""A prior over prototypes and weights of pictures: what must hold of both."""

import pytest
import torch
from assignment_problems import make_logits, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from mira.assignment import assign, dual_bound, kl_divergence, mutual_information, objective
from mira.assignment.absorbed import AbsorbedLabels
from mira.assignment.log_domain import LogDomainLabels

FEW = settings(max_examples=30, deadline=None)
EXACT = {"tolerance": 1e-15, "max_iterations": 500}


def random_prior(prototypes: int, seed: int) -> torch.Tensor:
    return (2 * torch.randn(prototypes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).exp()


def random_weights(shape: torch.Size, seed: int) -> torch.Tensor:
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights[..., 1:] *= weights[..., 1:] > 0.3  # some count nothing
    return 7 * weights + 1e-3 * (weights == weights[..., :1])


@FEW
@given(problems(views=True), st.floats(1e-3, 1e3))
def test_a_uniform_prior_is_none(problem, size):
    prior = torch.full((problem["logits"].shape[-1],), size, dtype=torch.float64)
    plain, given_prior = assign(**problem), assign(**problem, prior=prior)
    assert torch.allclose(given_prior.probs, plain.probs, atol=1e-12)
    assert given_prior.iterations == plain.iterations
    assert torch.allclose(given_prior.gap, plain.gap, atol=1e-14)


@FEW
@given(problems(), st.integers(0, 1000))
def test_whole_weights_are_repetitions(problem, seed):
    counts = torch.randint(0, 4, (len(problem["logits"]),), generator=torch.Generator().manual_seed(seed))
    counts[0] = 1
    weighted = assign(**problem, row_weights=counts.double(), max_iterations=4, tolerance=None)
    repeated = assign(
        **{**problem, "logits": problem["logits"].repeat_interleave(counts, 0)}, max_iterations=4, tolerance=None
    )
    assert torch.allclose(weighted.log_marginal, repeated.log_marginal, atol=1e-9)
    assert torch.allclose(weighted.probs.repeat_interleave(counts, 0), repeated.probs, atol=1e-9)
    assert torch.allclose(weighted.gap, repeated.gap, atol=1e-12)


@FEW
@given(problems(views=True), st.integers(0, 1000), st.sampled_from([0, 1, 5, 40]), st.booleans())
def test_gap_is_primal_minus_dual(problem, seed, iterations, accelerate):
    """And a bound of what any other labels could gain."""
    shape = problem["logits"].shape
    extra = {"prior": random_prior(shape[-1], seed), "row_weights": random_weights(shape[:-1], seed)}
    arguments = {"beta": problem["beta"], "temperature": problem["temperature"], **extra}
    solved = assign(**problem, **extra, max_iterations=iterations, tolerance=None, accelerate=accelerate)
    primal = objective(solved.probs, problem["logits"], **arguments)
    dual = dual_bound(solved.log_marginal, problem["logits"], **arguments)
    assert ((primal - dual - solved.gap).abs() <= 1e-12 * (1 + primal.abs())).all()
    others = torch.softmax(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), -1)
    for share in (1e-3, 0.1, 1.0):
        assert (
            objective(torch.lerp(solved.probs, others, share), problem["logits"], **arguments) >= dual - 1e-12
        ).all()


@FEW
@given(problems(betas=st.sampled_from([0.3, 2 / 3, 0.9])), st.integers(0, 1000))
def test_the_prior_attracts_the_marginal(problem, seed):
    """The labels with the prior are nearer to it: both solve their own problem, and differ only in that distance."""
    prior = random_prior(problem["logits"].shape[-1], seed)
    share = prior / prior.sum()
    with_prior, without = assign(**problem, prior=prior, **EXACT), assign(**problem, **EXACT)
    uniform = torch.full_like(share, 1 / len(share))

    def distances(solved, target):
        return float(kl_divergence(solved.probs.mean(0), target))

    towards = distances(without, share) - distances(with_prior, share)
    away = distances(without, uniform) - distances(with_prior, uniform)
    assert towards - away >= -1e-9


def test_long_tailed_data_keep_their_tail():
    """Pictures of two kinds, 1 to 9, sharp: without prior beta near 1 takes pictures from the frequent kind."""
    logits = torch.zeros(100, 2, dtype=torch.float64)
    logits[:10, 0], logits[10:, 1] = 1.0, 1.0
    exact = {"beta": 0.95, "tolerance": 1e-12, "max_iterations": 2000}
    even = assign(logits, **exact).probs.mean(0)
    tailed = assign(logits, **exact, prior=torch.tensor([0.1, 0.9])).probs.mean(0)
    assert even[0] > 0.2
    assert abs(float(tailed[0]) - 0.1) < 0.02


def test_information_with_weights_is_that_of_the_repeated():
    probs = torch.softmax(torch.randn(5, 4, dtype=torch.float64), -1)
    counts = torch.tensor([1, 3, 0, 2, 1])
    assert torch.allclose(
        mutual_information(probs, counts.double()), mutual_information(probs.repeat_interleave(counts, 0))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [7, 257])
def test_both_maps_agree(dtype, rows):
    """The quick map of the CPU against the one in the log domain, on several points, with weights of odd sizes."""
    logits = make_logits("clustered", torch.Size((2, rows, 1200)), seed=1).to(dtype)
    generator = torch.Generator().manual_seed(0)
    row_weights = 1e6 * torch.rand(2, rows, dtype=torch.float64, generator=generator)
    row_weights[:, 3] = 0
    quick = AbsorbedLabels(logits, 3.0, dtype, row_weights)
    exact = LogDomainLabels(logits, 3.0, dtype, row_weights)
    for spread in (0.0, 1.0, 30.0, 300.0):
        points = spread * torch.randn(2, 2, 1200, dtype=torch.float64, generator=generator)
        sums, expected = quick.column_sums(points), exact.column_sums(points)
        relevant = expected > 1e-9 * expected.sum(-1, keepdim=True)
        assert torch.allclose(sums[relevant], expected[relevant], rtol=2e-4 if dtype == torch.float32 else 1e-10)
    last = points[:, 0]
    assert torch.allclose(quick.labels(last), exact.labels(last), atol=1e-5 if dtype == torch.float32 else 1e-12)
