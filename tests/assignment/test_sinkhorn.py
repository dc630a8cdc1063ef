"""Sinkhorn-Knopp: SwAV's three iterations, convergence, its gap, and ranks."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from assignment_problems import FAMILIES, make_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import on_threads
from torch import Tensor

from mira.assignment import kl_divergence, sinkhorn

FEW = settings(max_examples=40, deadline=None)


def swav(logits: Tensor, epsilon: float, iterations: int) -> Tensor:
    """SwAV's published computation (Caron et al. 2020, appendix A), matrices [K, B] and all."""
    q = torch.exp(logits / epsilon).T
    prototypes, batch = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / batch
    return (q * batch).T


def alternate(logits: Tensor, rows: Tensor, columns: Tensor, iterations: int) -> Tensor:
    """Sinkhorn-Knopp in logarithms, potentials by turns, to marginals `rows` and `columns`."""
    f, g = torch.zeros_like(rows), torch.zeros_like(columns)
    for _ in range(iterations):
        g = columns.log() - torch.logsumexp(logits + f[:, None], 0)
        f = rows.log() - torch.logsumexp(logits + g, 1)
    return (logits + f[:, None] + g).exp() / rows[:, None]


@st.composite
def problems(draw: st.DrawFn, *, views: bool = False, mild: bool = False) -> dict:
    """Arguments of `sinkhorn`. Mild ones, logits within 4 of each other, converge in some dozens of iterations."""
    shape = [draw(st.integers(1, 24)), draw(st.integers(1, 16))]
    if views:
        shape = [draw(st.integers(1, 3)), *shape]
    logits = make_logits(draw(st.sampled_from(FAMILIES)), torch.Size(shape), draw(st.integers(0, 2**31)))
    if mild:
        logits = 2 * logits / logits.abs().max().clamp(min=1e-9)
    return {"logits": logits, "temperature": draw(st.sampled_from([1.0, 2.0] if mild else [0.3, 1.0, 2.0]))}


def random_shares(count: int, seed: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


@FEW
@given(problems(views=True), st.sampled_from([1, 2, 3, 10]))
def test_is_the_published_computation(problem, iterations):
    solved = sinkhorn(**problem, max_iterations=iterations)
    assert solved.iterations == iterations
    for probs, logits in zip(solved.probs, problem["logits"], strict=True):
        assert torch.allclose(probs, swav(logits, problem["temperature"], iterations), atol=1e-12)


def test_the_default_is_swavs_three_iterations_in_single_precision():
    logits = make_logits("cosine", torch.Size((64, 30)), seed=0) * 0.225  # cosines
    solved = sinkhorn(logits.float(), temperature=0.05)
    assert solved.probs.dtype == torch.float32
    assert torch.allclose(solved.probs.double(), swav(logits, 0.05, 3), atol=2e-6)


@FEW
@given(problems(views=True), st.sampled_from([0, 1, 3, 30]), st.integers(0, 1000))
def test_rows_are_distributions_and_the_gap_is_the_distance_of_the_marginal(problem, iterations, seed):
    views, pictures, prototypes = problem["logits"].shape
    prior, weights = random_shares(prototypes, seed), random_shares(pictures, seed + 1)
    solved = sinkhorn(**problem, max_iterations=iterations, prior=prior, row_weights=weights)
    assert torch.allclose(solved.probs.sum(-1), torch.ones((), dtype=torch.float64), atol=1e-13)
    marginal = torch.einsum("n,vnk->vk", weights / weights.sum(), solved.probs)
    assert torch.allclose(solved.log_marginal.exp(), marginal, atol=1e-13)
    target = (prior / prior.sum()).expand(views, -1)
    assert torch.allclose(solved.gap, kl_divergence(target, marginal), atol=1e-12)
    assert ((marginal - target).abs().sum(-1) <= (2 * solved.gap).sqrt() + 1e-12).all()  # Pinsker


@FEW
@given(problems(mild=True), st.integers(0, 1000))
def test_the_gap_never_grows_and_bounds_the_error_of_the_labels_from_below(problem, seed):
    problem["prior"] = random_shares(problem["logits"].shape[1], seed)
    exact = sinkhorn(**problem, tolerance=1e-15, max_iterations=1000)
    last = torch.inf
    for iterations in range(1, 9):
        solved = sinkhorn(**problem, max_iterations=iterations)
        assert solved.gap <= last * (1 + 1e-9) + 1e-14
        assert kl_divergence(exact.probs, solved.probs).mean() >= solved.gap - 1e-9
        last = solved.gap


@FEW
@given(problems(mild=True), st.integers(0, 1000))
def test_at_convergence_the_shares_are_those_asked_for(problem, seed):
    pictures, prototypes = problem["logits"].shape
    prior, weights = random_shares(prototypes, seed), random_shares(pictures, seed + 1)
    solved = sinkhorn(**problem, prior=prior, row_weights=weights, tolerance=1e-10, max_iterations=1000)
    assert solved.gap <= 1e-10
    assert torch.allclose(solved.log_marginal.exp(), prior / prior.sum(), atol=2e-5)
    even = sinkhorn(**problem, tolerance=1e-10, max_iterations=1000)
    assert torch.allclose(even.probs.mean(0), torch.full((prototypes,), 1 / prototypes).double(), atol=2e-5)


@FEW
@given(problems(), st.integers(0, 1000), st.sampled_from([1, 3, 40]))
def test_prior_and_row_weights_are_the_two_marginals_of_plain_sinkhorn(problem, seed, iterations):
    """From the same start: row weights there are a first potential of the rows."""
    pictures, prototypes = problem["logits"].shape
    prior, weights = random_shares(prototypes, seed), random_shares(pictures, seed + 1)
    solved = sinkhorn(**problem, prior=prior, row_weights=weights, max_iterations=iterations)
    rows, scaled = weights / weights.sum(), problem["logits"] / problem["temperature"]
    weighted = alternate(scaled + rows.log()[:, None], rows, prior / prior.sum(), iterations)
    assert torch.allclose(solved.probs, weighted, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_convex_solver_agrees(family):
    logits = make_logits(family, torch.Size((6, 4)), seed=3)
    prior = random_shares(4, 1)
    labels = cp.Variable((6, 4))
    cost = -cp.sum(cp.entr(labels)) / 6 - cp.sum(cp.multiply(labels, logits.numpy())) / 6
    shares = (prior / prior.sum()).numpy()
    constraints = [cp.sum(labels, axis=1) == 1, cp.sum(labels, axis=0) / 6 == shares]
    cp.Problem(cp.Minimize(cost), constraints).solve(solver=cp.CLARABEL)
    ours = sinkhorn(logits, prior=prior, tolerance=1e-12, max_iterations=100_000).probs.numpy()
    assert np.abs(ours - labels.value).max() < 2e-4


@FEW
@given(problems(), st.integers(0, 1000), st.sampled_from([1, 3]))
def test_a_constant_added_to_a_column_or_to_all_changes_nothing(problem, seed, iterations):
    offsets = 50 * torch.randn(problem["logits"].shape[1], generator=torch.Generator().manual_seed(seed)).double()
    solved = sinkhorn(**problem, max_iterations=iterations)
    shifted = sinkhorn(**{**problem, "logits": problem["logits"] + offsets + 1e4}, max_iterations=iterations)
    assert torch.allclose(shifted.probs, solved.probs, atol=1e-8)


@FEW
@given(problems(mild=True), st.integers(0, 1000))
def test_a_constant_added_to_a_row_changes_nothing_at_convergence(problem, seed):
    offsets = 5 * torch.randn(len(problem["logits"]), 1, generator=torch.Generator().manual_seed(seed)).double()
    exact = {"tolerance": 1e-15, "max_iterations": 1000}
    shifted = sinkhorn(**{**problem, "logits": problem["logits"] + offsets}, **exact)
    assert torch.allclose(shifted.probs, sinkhorn(**problem, **exact).probs, atol=1e-6)


@FEW
@given(problems(), st.integers(0, 1000))
def test_permuting_pictures_and_prototypes_permutes_labels(problem, seed):
    generator = torch.Generator().manual_seed(seed)
    pictures, prototypes = problem["logits"].shape
    rows, columns = torch.randperm(pictures, generator=generator), torch.randperm(prototypes, generator=generator)
    permuted = sinkhorn(**{**problem, "logits": problem["logits"][rows][:, columns]})
    assert torch.allclose(permuted.probs, sinkhorn(**problem).probs[rows][:, columns], atol=1e-10)


@FEW
@given(problems(), st.integers(0, 1000))
def test_whole_weights_are_repetitions(problem, seed):
    counts = torch.randint(0, 4, (len(problem["logits"]),), generator=torch.Generator().manual_seed(seed))
    counts[0] = 1
    weighted = sinkhorn(**problem, row_weights=counts.double())
    repeated = sinkhorn(**{**problem, "logits": problem["logits"].repeat_interleave(counts, 0)})
    assert torch.allclose(weighted.probs.repeat_interleave(counts, 0), repeated.probs, atol=1e-10)
    assert torch.allclose(weighted.gap, repeated.gap, atol=1e-12)


@FEW
@given(problems(views=True), st.sampled_from([None, 1e-4]))
def test_views_solved_together_are_views_solved_apart(problem, tolerance):
    together = sinkhorn(**problem, tolerance=tolerance, max_iterations=12)
    for view, logits in enumerate(problem["logits"]):
        apart = sinkhorn(**{**problem, "logits": logits}, tolerance=tolerance, max_iterations=12)
        assert torch.allclose(together.probs[view], apart.probs, atol=1e-10)
        assert torch.allclose(together.gap[view], apart.gap, atol=1e-12)


@settings(max_examples=80, deadline=None)
@given(
    problems(views=True),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([1.0, 100.0, 1e4]),
    st.sampled_from([1e-45, 1e-30, 1e-3, 1.0, 1e30]),
    st.sampled_from([0, 1, 3, 20]),
)
def test_extreme_logits_and_temperatures(problem, dtype, size, temperature, iterations):
    logits = (problem["logits"] * (size / problem["logits"].abs().max().clamp(min=1e-9))).to(dtype)
    before = logits.clone()
    solved = sinkhorn(logits, temperature=temperature, max_iterations=iterations)
    assert solved.probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(logits, before)
    assert solved.probs.isfinite().all()
    assert solved.log_marginal.isfinite().all()
    assert (solved.gap >= 0).all()
    assert torch.allclose(solved.probs.sum(-1), torch.ones((), dtype=solved.probs.dtype), atol=4e-6)


@pytest.mark.parametrize("sizes", [(30, 30), (41, 19), (37, 0, 23), (0, 59, 1)])
@pytest.mark.parametrize("tolerance", [1e-6, None])
def test_shards_together_are_the_whole(sizes, tolerance):
    logits = make_logits("clustered", torch.Size((2, 60, 25)), seed=2) + 1e4
    weights = random_shares(60, 0)
    arguments = {"tolerance": tolerance, "max_iterations": 6, "prior": random_shares(25, 1)}
    whole = sinkhorn(logits, **arguments, row_weights=weights)
    parts, calls = on_threads(sinkhorn, logits.split(sizes, 1), **arguments, row_weights=weights.split(sizes))
    assert calls == [whole.iterations + 2] * len(sizes)
    assert torch.allclose(torch.cat([part.probs for part in parts], 1), whole.probs, atol=1e-9)
    for part in parts:
        assert torch.equal(part.log_marginal, parts[0].log_marginal)
        assert torch.allclose(part.gap, whole.gap, atol=1e-11)


def test_bad_arguments_are_named():
    logits = torch.zeros(4, 3)
    for arguments, message in (
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"max_iterations": -1}, "max_iterations must be a whole number"),
        ({"tolerance": -1.0}, "tolerance must be a finite number"),
        ({"prior": torch.zeros(3)}, "prior must be positive"),
        ({"row_weights": torch.zeros(3)}, r"row_weights must have shape \[4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            sinkhorn(logits, **arguments)
    with pytest.raises(ValueError, match="logits must be finite"):
        sinkhorn(logits / 0)
    with pytest.raises(ValueError, match="logits are empty"):
        sinkhorn(logits[:0])
