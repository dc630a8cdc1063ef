"""`assign` against a general convex solver that knows nothing of it."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from assignment_problems import FAMILIES, make_logits
from scipy.special import entr, log_softmax

from mira.assignment import assign


def solve_convex(log_p: np.ndarray, beta: float) -> np.ndarray:
    """Labels that minimise F, by Clarabel's interior-point method over the labels themselves."""
    pictures, prototypes = log_p.shape
    labels, marginal = cp.Variable((pictures, prototypes)), cp.Variable(prototypes)
    cost = (
        -(1 - beta) * cp.sum(cp.entr(labels)) / pictures
        - cp.sum(cp.multiply(labels, log_p)) / pictures
        - beta * cp.sum(cp.entr(marginal))
    )
    constraints = [cp.sum(labels, axis=1) == 1, marginal == cp.sum(labels, axis=0) / pictures]
    cp.Problem(cp.Minimize(cost), constraints).solve(solver=cp.CLARABEL)
    # The solver keeps constraints to its tolerance only; F wants distributions.
    feasible = labels.value.clip(0)
    return feasible / feasible.sum(1, keepdims=True)


def value(labels: np.ndarray, log_p: np.ndarray, beta: float) -> float:
    """F as the paper writes it: mean KL(w || p) minus beta times (entropy of the mean minus mean of entropies)."""
    entropies = entr(labels).sum(1)
    divergence = -entropies - (labels * log_p).sum(1)
    return float(divergence.mean() - beta * (entr(labels.mean(0)).sum() - entropies.mean()))


@pytest.mark.parametrize("beta", [0.0, 0.5, 2 / 3, 0.9])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_convex_solver_agrees(family, beta):
    logits = make_logits(family, torch.Size((7, 5)), seed=3)
    log_p = log_softmax(logits.numpy(), axis=1)
    ours = assign(logits, beta=beta, tolerance=1e-14, max_iterations=2000).probs.numpy()
    theirs = solve_convex(log_p, beta)
    optimum = value(theirs, log_p, beta)
    assert value(ours, log_p, beta) == pytest.approx(optimum, rel=1e-6, abs=1e-6)
    assert value(ours, log_p, beta) <= optimum + 1e-9
    assert np.abs(ours - theirs).max() < 1e-3
