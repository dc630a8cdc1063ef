"""How healthy features are, without labels."""

import torch
from jaxtyping import Float
from torch import Tensor


def rank_me(features: Float[Tensor, "N D"], *, epsilon: float = 1e-7) -> float:
    """RankMe: the effective rank of raw features, between 1 and min(N, D) (Garrido et al. 2023, eq. 1).

    exp of the entropy of p = sigma / sum(sigma) + epsilon, sigma the singular values; features are neither
    centred nor normalised. 1 means that all pictures lie on one line: collapse.

    Raises:
        ValueError: no features, or NaN or infinity among them.
    """
    if features.numel() == 0:
        raise ValueError("RankMe needs features: there are none.")
    if not features.isfinite().all():
        raise ValueError("the features hold NaN or infinity: the backbone's weights are damaged.")
    # Singular values are roots of the eigenvalues of the smaller Gram matrix: D^2 numbers instead of N x D.
    # In float64 this loses only singular values below 1e-8 of the largest, far under epsilon.
    if features.device.type == "mps":
        features = features.cpu()  # float64 does not exist there
    wide = features if len(features) <= features.shape[1] else features.T
    gram = wide.double() @ wide.double().T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    if singular.sum() == 0:
        return 1.0
    shares = singular / singular.sum() + epsilon
    return float((-(shares * shares.log()).sum()).exp())
