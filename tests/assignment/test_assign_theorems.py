"""What must hold of every solution, on random problems."""

import pytest
import torch
from assignment_problems import problems
from hypothesis import given, settings
from hypothesis import strategies as st

from mira.assignment import assign, dual_bound, kl_divergence, objective

FEW = settings(max_examples=40, deadline=None)
EXACT = {"tolerance": 1e-15, "max_iterations": 500}


def value(probs: torch.Tensor, problem: dict) -> torch.Tensor:
    return objective(probs, problem["logits"], beta=problem["beta"], temperature=problem["temperature"])


def random_labels(like: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(3 * torch.randn(like.shape, generator=generator, dtype=like.dtype), -1)


@FEW
@given(problems(views=True), st.sampled_from([0, 1, 5, 50]), st.booleans())
def test_rows_are_distributions_and_u_is_on_the_simplex(problem, iterations, accelerate):
    solved = assign(**problem, max_iterations=iterations, tolerance=None, accelerate=accelerate)
    assert solved.iterations == iterations
    assert solved.probs.shape == problem["logits"].shape
    assert (solved.probs >= 0).all()
    assert torch.allclose(solved.probs.sum(-1), torch.ones((), dtype=torch.float64), atol=1e-13)
    assert torch.allclose(solved.log_marginal.exp().sum(-1), torch.ones((), dtype=torch.float64), atol=1e-13)
    assert (solved.gap >= 0).all()


@FEW
@given(problems())
def test_labels_belong_to_the_marginal_that_is_returned(problem):
    solved = assign(**problem, max_iterations=3, tolerance=None)
    beta = problem["beta"]
    exponents = problem["logits"] / problem["temperature"] - beta * solved.log_marginal
    assert torch.allclose(solved.probs, torch.softmax(exponents / (1 - beta), -1), atol=1e-12)


@FEW
@given(problems(views=True))
def test_beta_zero_is_softmax_and_needs_no_iteration(problem):
    solved = assign(**{**problem, "beta": 0.0})
    assert torch.allclose(solved.probs, torch.softmax(problem["logits"] / problem["temperature"], -1), atol=1e-14)
    assert solved.iterations == 0
    assert (solved.gap == 0).all()


@FEW
@given(problems(views=True), st.sampled_from([0, 1, 3, 10, 100]), st.booleans())
def test_gap_is_primal_minus_dual(problem, iterations, accelerate):
    solved = assign(**problem, max_iterations=iterations, tolerance=None, accelerate=accelerate)
    arguments = {"beta": problem["beta"], "temperature": problem["temperature"]}
    dual = dual_bound(solved.log_marginal, problem["logits"], **arguments)
    primal = objective(solved.probs, problem["logits"], **arguments)
    scale = 1 + primal.abs()
    assert ((primal - dual - solved.gap).abs() <= 1e-12 * scale).all()


@FEW
@given(problems(), st.sampled_from([0, 1, 2, 4]), st.booleans())
def test_gap_bounds_the_true_gap_and_the_error_of_the_labels(problem, iterations, accelerate):
    exact = assign(**problem, **EXACT)
    solved = assign(**problem, max_iterations=iterations, tolerance=None, accelerate=accelerate)
    true_gap = value(solved.probs, problem) - value(exact.probs, problem)
    assert -1e-12 <= true_gap <= solved.gap + 1e-12
    error = kl_divergence(solved.probs, exact.probs).mean()
    assert error <= (solved.gap + exact.gap) / (1 - problem["beta"]) + 1e-12


@FEW
@given(problems(views=True), st.integers(0, 1000), st.floats(1e-4, 1.0))
def test_no_feasible_labels_are_better(problem, seed, share):
    solved = assign(**problem, **EXACT)
    others = torch.lerp(solved.probs, random_labels(solved.probs, seed), share)
    assert (value(solved.probs, problem) <= value(others, problem) + 1e-12).all()


@FEW
@given(problems(), st.integers(0, 1000))
def test_a_constant_added_to_a_row_changes_nothing(problem, seed):
    offsets = 50 * torch.randn(len(problem["logits"]), 1, generator=torch.Generator().manual_seed(seed)).double()
    shifted = assign(**{**problem, "logits": problem["logits"] + offsets}, **EXACT)
    assert torch.allclose(shifted.probs, assign(**problem, **EXACT).probs, atol=1e-7)


@FEW
@given(problems(), st.integers(0, 1000))
def test_permuting_pictures_and_prototypes_permutes_labels(problem, seed):
    generator = torch.Generator().manual_seed(seed)
    pictures, prototypes = problem["logits"].shape
    rows, columns = torch.randperm(pictures, generator=generator), torch.randperm(prototypes, generator=generator)
    solved = assign(**problem, max_iterations=4, tolerance=None)
    permuted = assign(**{**problem, "logits": problem["logits"][rows][:, columns]}, max_iterations=4, tolerance=None)
    assert torch.allclose(permuted.probs, solved.probs[rows][:, columns], atol=1e-9)


@FEW
@given(problems())
def test_a_batch_repeated_has_the_same_labels(problem):
    once = assign(**problem, max_iterations=4, tolerance=None)
    twice = assign(**{**problem, "logits": problem["logits"].repeat(2, 1)}, max_iterations=4, tolerance=None)
    assert torch.allclose(twice.probs, once.probs.repeat(2, 1), atol=1e-9)


@FEW
@given(problems(views=True), st.sampled_from([None, 1e-4]))
def test_views_solved_together_are_views_solved_apart(problem, tolerance):
    together = assign(**problem, tolerance=tolerance, max_iterations=12)
    for view, logits in enumerate(problem["logits"]):
        apart = assign(**{**problem, "logits": logits}, tolerance=tolerance, max_iterations=12)
        assert torch.allclose(together.probs[view], apart.probs, atol=1e-10)
        assert torch.allclose(together.gap[view], apart.gap, atol=1e-12)
        assert apart.iterations <= together.iterations


@pytest.mark.parametrize(("pictures", "prototypes"), [(1, 1), (1, 7), (9, 1)])
@pytest.mark.parametrize("beta", [0.0, 2 / 3, 0.999])
def test_one_picture_and_one_prototype(pictures, prototypes, beta):
    """One prototype: all labels are 1. One picture: its mutual information is 0, so that the optimum is softmax."""
    logits = torch.randn(pictures, prototypes, dtype=torch.float64)
    solved = assign(logits, beta=beta, tolerance=1e-14, max_iterations=20000)
    assert solved.gap <= 1e-14
    assert torch.allclose(solved.probs, torch.softmax(logits, -1), atol=1e-5)


@FEW
@given(st.floats(0.0, 0.95), st.floats(0.05, 2.0))
def test_images_differences_are_sharpened_and_prototypes_differences_are_not(beta: float, temperature: float) -> None:
    """To first order, what differs between images counts at temperature (1 - beta) t, what differs between prototypes
    for all images alike counts at t: log w_ij = d_ij / (t (1 - beta)) + b_j / t + const. docs/collapse.md rests on it.
    """
    small = 1e-5 * temperature * (1 - beta)
    generator = torch.Generator().manual_seed(0)
    deviations = torch.randn(200, 7, generator=generator, dtype=torch.float64)
    deviations -= deviations.mean(0)
    deviations -= deviations.mean(1, keepdim=True)
    biases = torch.randn(7, generator=generator, dtype=torch.float64)
    solved = assign(
        small * (deviations + biases), beta=beta, temperature=temperature, max_iterations=300, tolerance=None
    )
    found = solved.probs.log() / small
    expected = deviations / (temperature * (1 - beta)) + biases / temperature
    found, expected = (x - x.mean(1, keepdim=True) for x in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * expected.abs().max().item())
