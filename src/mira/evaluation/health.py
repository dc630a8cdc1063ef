"""How healthy features and prototypes are, without labels."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from mira.assignment.information import entropy, max_information
from mira.data import PictureSource
from mira.evaluation.subject import Compute, Score, Subject
from mira.settings import Settings


class HealthSettings(Settings):
    """Label-free measures of features."""

    split: Literal["auto", "test", "all"] = Field(
        "auto", description="images to measure; auto: the test part, or all of one source without labels"
    )
    first_rank: int = Field(3, ge=1, description="alpha-ReQ: first eigenvalue of the fit, counted from 1")
    last_rank: int = Field(100, ge=2, description="alpha-ReQ: last eigenvalue of the fit")

    @model_validator(mode="after")
    def _in_order(self) -> "HealthSettings":
        if self.first_rank >= self.last_rank:
            raise ValueError(f"first_rank ({self.first_rank}) must be below last_rank ({self.last_rank})")
        return self


def evaluate_health(
    subject: Subject,
    train: PictureSource,
    test: PictureSource,
    settings: HealthSettings,
    *,
    seed: int,
    compute: Compute,
) -> list[Score]:
    """RankMe and alpha-ReQ of the features and, where there are prototypes, what these say about the images.

    No label is used, and nothing is drawn. Units: RankMe counts directions, alpha-ReQ is an exponent, label information
    and marginal entropy are in nats, prototypes in use are percent.
    """
    # A fifth of a folder would bound RankMe by its size for nothing: without labels no test part is kept apart.
    every = settings.split == "all" or (settings.split == "auto" and test.labels is None and train.name == test.name)
    found = compute.features(subject, test, "test pictures").features
    if every:
        found = torch.cat([compute.features(subject, train, "training pictures").features, found])
    split = {"split": "all" if every else "test"}
    first, last = settings.first_rank, settings.last_rank
    alpha = alpha_req(found.to(compute.device), first=first, last=last)
    few = f"alpha-ReQ: the features vary in fewer than two of the directions of ranks {first} to {last}."
    scores = [
        Score("RankMe", rank_me(found.to(compute.device)), split, 0, len(found)),
        Score(
            "alpha-ReQ",
            alpha,
            settings.model_dump() | split,
            train_size=0,
            test_size=len(found),
            note="" if alpha is not None else few,
            chosen={"last_rank": min(last, *found.shape)},  # there are no more eigenvalues
        ),
    ]
    if subject.prototype_logits is not None:
        measured, count = prototype_health(found, subject.prototype_logits)
        most = max_information(count, len(found))
        note = f"label information is at most {most:.2f} nats, for {count:,} prototypes and {len(found):,} images."
        for metric, value in measured.items():
            scores.append(Score(metric, value, split, 0, len(found), chosen={"k": count, "most": most}, note=note))
    return scores


def rank_me(features: Float[Tensor, "N D"], *, epsilon: float = 1e-7) -> float:
    """RankMe: the effective rank of raw features, between 1 and min(N, D) (Garrido et al. 2023, eq. 1).

    exp of the entropy of p = sigma / sum(sigma) + epsilon, sigma the singular values; features are neither
    centred nor normalised. 1 means that all pictures lie on one line: collapse.

    Raises:
        ValueError: no features, or NaN or infinity among them.
    """
    # In float64 the way by the Gram matrix loses only singular values below 1e-8 of the largest, far under epsilon.
    singular = _gram_eigenvalues(_checked(features, "RankMe")).sqrt()
    if singular.sum() == 0:
        return 1.0
    shares = singular / singular.sum() + epsilon
    return float((-(shares * shares.log()).sum()).exp())


def alpha_req(features: Float[Tensor, "N D"], *, first: int = 3, last: int = 100) -> float | None:
    """alpha-ReQ: how fast the eigenvalues of the features' covariance fall, lambda_i ~ i^-alpha (Agrawal et al. 2022).

    Least squares of log lambda_i on log i over the ranks first..last (from 1; the first few do not follow the law,
    the last are noise). Near 1 is what the authors find in features that generalise; far above it, few directions
    carry everything; near 0, all carry as much.

    Returns:
        alpha, or None where fewer than two eigenvalues of these ranks are above rounding.

    Raises:
        ValueError: no features, or NaN or infinity among them.
    """
    centred = _checked(features, "alpha-ReQ")
    eigenvalues = _gram_eigenvalues(centred - centred.mean(dim=0)).flip(0)
    eigenvalues = eigenvalues[eigenvalues > 1e-12 * eigenvalues[0]][:last]
    ranks = torch.arange(1, len(eigenvalues) + 1, dtype=torch.float64, device=eigenvalues.device)
    x, y = ranks[first - 1 :].log(), eigenvalues[first - 1 :].log()
    if len(x) < 2:
        return None
    x = x - x.mean()
    return float(-(x @ y) / (x @ x))


@torch.inference_mode()
def prototype_health(
    features: Float[Tensor, "N D"], prototype_logits: Callable[[Tensor], Tensor], *, batch_size: int = 1024
) -> tuple[dict[str, float], int]:
    """What the distributions over prototypes, softmax of the logits, say about the pictures.

    Returns:
        "label information, nats" and "marginal entropy, nats", each at most log K; "prototypes in use, %": those that
        are some picture's most probable one; and K.
    """
    count = prototype_logits(features[:1]).shape[1]
    marginal = torch.zeros(count, dtype=torch.float64)
    used = torch.zeros(count, dtype=torch.bool)
    conditional = 0.0
    # A million pictures and 65,536 prototypes would be half a terabyte: only sums are kept.
    for part in torch.split(features, batch_size):
        probs = prototype_logits(part).double().softmax(dim=1)
        marginal += probs.sum(dim=0) / len(features)
        conditional += float(entropy(probs).sum()) / len(features)
        used[probs.argmax(dim=1)] = True
    measured = {
        "label information, nats": max(0.0, float(entropy(marginal)) - conditional),
        "marginal entropy, nats": float(entropy(marginal)),
        "prototypes in use, %": 100 * int(used.sum()) / count,
    }
    return measured, count


def _gram_eigenvalues(features: Float[Tensor, "N D"]) -> Float[Tensor, " _"]:
    """Eigenvalues of F F^T or F^T F, whichever is smaller, ascending; the squares of the singular values."""
    wide = features if len(features) <= features.shape[1] else features.T
    eigenvalues: Tensor = torch.linalg.eigvalsh(wide @ wide.T)
    return eigenvalues.clamp(min=0)


def _checked(features: Float[Tensor, "N D"], measure: str) -> Float[Tensor, "N D"]:
    """The features in float64."""
    if features.numel() == 0:
        raise ValueError(f"{measure} needs features: there are none.")
    if not features.isfinite().all():
        raise ValueError("the features hold NaN or infinity: the backbone's weights are damaged.")
    return (features.cpu() if features.device.type == "mps" else features).double()  # float64 does not exist there
