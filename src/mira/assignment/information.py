"""Entropies, divergences and the two sides of the assignment problem, as pure functions in nats.

Notation: `N` pictures, `K` prototypes, a distribution over prototypes in the last dimension, pictures in the one
before it. Zeros are exact: 0 log 0 = 0. Sources: Cover and Thomas, Elements of Information Theory, chapter 2; Lee et
al. 2022 (arXiv 2211.02284), section 3, for the objective; docs/assignment.md for the dual bound.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def entropy(probs: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch"]:
    """Entropy H(p) = -sum_j p_j log p_j of each distribution, in nats (Cover and Thomas, 2.1)."""
    return -torch.xlogy(probs, probs).sum(-1)


def marginal_entropy(
    probs: Float[Tensor, "*views N K"], row_weights: Float[Tensor, "*#views N"] | None = None
) -> Float[Tensor, "*views"]:
    """Entropy H(mean_i p_i) of the average distribution over the pictures, in nats; at most log K."""
    return entropy(_marginal(probs, row_weights))


def mutual_information(
    probs: Float[Tensor, "*views N K"], row_weights: Float[Tensor, "*#views N"] | None = None
) -> Float[Tensor, "*views"]:
    """Mutual information between picture and prototype, H(mean_i p_i) - mean_i H(p_i), in nats.

    Zero when all pictures share one distribution, log K when they are certain and evenly spread (Lee et al. 2022,
    section 3). Row weights say what each picture counts in the means.
    """
    return marginal_entropy(probs, row_weights) - _mean(entropy(probs), row_weights)


def max_information(prototypes: int, images: int) -> float:
    """The most that labels can say about so many images, in nats: log min(N, K), for MI <= H(w_bar) and MI <= log N."""
    return math.log(min(prototypes, images))


def kl_divergence(p: Float[Tensor, "*#batch K"], q: Float[Tensor, "*#batch K"]) -> Float[Tensor, "*batch"]:
    """Kullback-Leibler divergence KL(p || q) = sum_j p_j log(p_j / q_j), in nats (Cover and Thomas, 2.26).

    Infinite where q is zero and p is not. Summed as p log(p/q) - p + q, whose terms are never negative, and near
    p = q by way of p/q - 1, so that the small divergence of close distributions does not drown in rounding.
    """
    excess = p / q.clamp(min=torch.finfo(q.dtype).tiny) - 1
    near: Tensor = q * (torch.special.xlog1py(1 + excess, excess) - excess)
    far = torch.xlogy(p, p) - torch.xlogy(p, q) - p + q
    return far.where(p > 2 * q, near).sum(-1)


def objective(
    probs: Float[Tensor, "*views N K"],
    logits: Float[Tensor, "*views N K"],
    *,
    beta: float,
    temperature: float = 1.0,
    prior: Float[Tensor, "*#views K"] | None = None,
    row_weights: Float[Tensor, "*#views N"] | None = None,
) -> Float[Tensor, "*views"]:
    """What the labels minimise: F(W) = mean_i KL(w_i || softmax(z_i / temperature)) - beta MI(W), in nats.

    Lee et al. 2022, section 3; see "The problem" in docs/assignment.md. With a prior, MI(W) = log K - KL(w_bar ||
    prior) - mean_i H(w_i), which for the uniform one is the mutual information.
    """
    log_p = torch.log_softmax(logits / temperature, -1)
    # A label of zero contributes nothing even where the prediction underflows to zero.
    cross = torch.where(probs > 0, probs * log_p, 0.0).sum(-1)
    information = mutual_information(probs, row_weights)
    if prior is not None:
        information = information + (_marginal(probs, row_weights) * _relative(prior)).sum(-1)
    return _mean(-entropy(probs) - cross, row_weights) - beta * information


def dual_bound(
    log_marginal: Float[Tensor, "*views K"],
    logits: Float[Tensor, "*views N K"],
    *,
    beta: float,
    temperature: float = 1.0,
    prior: Float[Tensor, "*#views K"] | None = None,
    row_weights: Float[Tensor, "*#views N"] | None = None,
) -> Float[Tensor, "*views"]:
    """Lower bound on `objective` from a marginal u: D(u) = -(1-beta) mean_i log sum_j (p_ij u_j^-beta)^(1/(1-beta)).

    u is normalised to the simplex first, which is what makes it a bound (docs/assignment.md, "The certificate"):
    D(u) <= min F for every u, with equality at the solution, and F(W(u)) - D(u) = beta KL(mean_i w_i(u) || u). With a
    prior, u_j is divided by K prior_j.
    """
    log_p = torch.log_softmax(logits / temperature, -1)
    log_u = torch.log_softmax(log_marginal, -1)
    if prior is not None:
        log_u = log_u - _relative(prior)
    values = torch.logsumexp((log_p - beta * log_u.unsqueeze(-2)) / (1 - beta), -1)
    return -(1 - beta) * _mean(values, row_weights)


def _mean(values: Float[Tensor, "*views N"], row_weights: Float[Tensor, "*#views N"] | None) -> Float[Tensor, "*views"]:
    if row_weights is None:
        return values.mean(-1)
    return (values * row_weights).sum(-1) / row_weights.sum(-1)


def _marginal(
    probs: Float[Tensor, "*views N K"], row_weights: Float[Tensor, "*#views N"] | None
) -> Float[Tensor, "*views K"]:
    if row_weights is None:
        return probs.mean(-2)
    return (probs * row_weights.unsqueeze(-1)).sum(-2) / row_weights.sum(-1, keepdim=True)


def _relative(prior: Float[Tensor, "*views K"]) -> Float[Tensor, "*views K"]:
    """log(K prior), of a prior that need not be normalised: zero for the uniform one."""
    return torch.log_softmax(prior.log(), -1) + math.log(prior.shape[-1])
