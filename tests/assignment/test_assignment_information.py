"""Entropies and divergences against their definitions and each other."""

import math

import pytest
import torch
from assignment_problems import problems
from hypothesis import given, settings

from mira.assignment import (
    assign,
    dual_bound,
    entropy,
    kl_divergence,
    marginal_entropy,
    mutual_information,
    objective,
)

FEW = settings(max_examples=30, deadline=None)


def softmax(*shape: int, seed: int = 0) -> torch.Tensor:
    logits = 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.softmax(logits, -1)


def test_known_values():
    certain = torch.eye(4, dtype=torch.float64)
    assert (entropy(certain) == 0).all()
    assert entropy(torch.full((8,), 1 / 8)).item() == pytest.approx(math.log(8))
    assert mutual_information(certain).item() == pytest.approx(math.log(4))
    assert marginal_entropy(certain).item() == pytest.approx(math.log(4))
    assert mutual_information(softmax(1, 6).expand(5, 6)).item() == pytest.approx(0, abs=1e-15)


def test_agrees_with_torch_distributions():
    p, q = softmax(5, 7), softmax(5, 7, seed=1)
    one, other = torch.distributions.Categorical(p), torch.distributions.Categorical(q)
    assert torch.allclose(entropy(p), one.entropy(), atol=1e-14)
    assert torch.allclose(kl_divergence(p, q), torch.distributions.kl_divergence(one, other), atol=1e-13)


def test_zeros_are_exact():
    p, q = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.5, 0.5, 0.0])
    assert kl_divergence(p, q).item() == pytest.approx(math.log(2))
    assert kl_divergence(q, p).item() == math.inf
    assert kl_divergence(p, p).item() == 0
    labels = torch.eye(3, dtype=torch.float64)
    assert objective(labels, 1e5 * labels, beta=0.5).item() == pytest.approx(-0.5 * math.log(3))


def test_a_small_divergence_does_not_drown_in_rounding():
    p = softmax(1, 100).float()[0]
    p /= p.sum()
    change = 1e-4 * torch.cos(torch.arange(100.0))
    q = p * (1 + change)
    expected = kl_divergence(p.double(), q.double())
    assert abs(kl_divergence(p, q).double() - expected) < 1e-2 * expected


@FEW
@given(problems(views=True))
def test_objective_is_what_its_name_says(problem):
    labels = softmax(*problem["logits"].shape, seed=2)
    prediction = torch.softmax(problem["logits"] / problem["temperature"], -1)
    expected = kl_divergence(labels, prediction).mean(-1) - problem["beta"] * mutual_information(labels)
    arguments = {"beta": problem["beta"], "temperature": problem["temperature"]}
    assert torch.allclose(objective(labels, problem["logits"], **arguments), expected, atol=1e-10)


@FEW
@given(problems(views=True))
def test_the_dual_bounds_the_optimum_from_any_marginal(problem):
    arguments = {"beta": problem["beta"], "temperature": problem["temperature"]}
    solved = assign(**problem, tolerance=1e-12, max_iterations=500)
    optimum = objective(solved.probs, problem["logits"], **arguments)
    shape = problem["logits"][..., 0, :].shape
    anywhere = softmax(*shape, seed=3).log()
    assert (dual_bound(anywhere, problem["logits"], **arguments) <= optimum + 1e-12).all()
    assert torch.allclose(dual_bound(solved.log_marginal, problem["logits"], **arguments), optimum, atol=1e-11)
    # Normalised inside: an unnormalised u would not give a bound.
    shifted = dual_bound(anywhere + 5, problem["logits"], **arguments)
    assert torch.allclose(shifted, dual_bound(anywhere, problem["logits"], **arguments), atol=1e-12)


@FEW
@given(problems(views=True))
def test_mutual_information_is_at_least_zero_and_at_most_log_k(problem):
    labels = assign(**problem).probs
    information = mutual_information(labels)
    assert (information >= -1e-12).all()
    assert (information <= math.log(labels.shape[-1]) + 1e-12).all()
