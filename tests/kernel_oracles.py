"""What kernels are measured against, in float64 and by the definition; for the interpreter and for a GPU alike."""

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def log_labels(logits: Tensor, scale: float, log_weights: Tensor) -> Tensor:
    """[V, C, N, K] for logits [V, N, K] and weights [V, C, K]."""
    logits = logits.double()
    peaks = logits.amax(-1, keepdim=True)
    return torch.log_softmax((logits - peaks).unsqueeze(1) * scale + log_weights.unsqueeze(2), -1)


def sums_of_labels(logits: Tensor, scale: float, log_weights: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """[V, C, K], without underflow before the last step."""
    logs = log_labels(logits, scale, log_weights)
    if row_weights is not None:
        logs = logs + row_weights.double().log()[:, None, :, None]
    return logs.logsumexp(2).exp()


def cross_entropy_by_definition(
    student: Tensor, teacher: Tensor, log_weights: Tensor, scale: float, student_scale: float, swap: bool
) -> tuple[Tensor, Tensor]:
    """Per picture, the sum over targets and views [N] and the entropies of the labels [G, N]."""
    logs = log_labels(teacher, scale, log_weights.unsqueeze(1)).squeeze(1)
    predictions = torch.log_softmax(student.double() * student_scale, -1)
    losses = torch.zeros(student.shape[1], dtype=torch.float64, device=student.device)
    for target, labels in enumerate(logs.exp()):
        for view, log_probs in enumerate(predictions):
            if not (swap and view == target):
                losses = losses - (labels * log_probs).sum(-1)
    return losses, -(logs.exp() * logs).sum(-1)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The largest, of what float64 can hold at all."""
    assert found.dtype == torch.float64
    assert not found.isnan().any()
    held = wanted > 1e-290
    assert (found[~held] < 1e-280).all()
    return float(((found - wanted).abs() / wanted)[held].max())
