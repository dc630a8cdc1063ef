"""Cross-entropy against labels that are never written, in plain torch operations on blocks of rows."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK_BYTES = 1 << 19  # of one matrix: labels, predictions and scratch together stay in the cache
_ACCELERATOR_BLOCK_BYTES = 64 << 20


def rows(
    student: Float[Tensor, "V N K"],
    teacher: Float[Tensor, "G N K"],
    log_weights: Float[Tensor, "G K"],
    shares: Float[Tensor, " N"],
    *,
    scale: float,
    student_scale: float,
    swap: bool,
) -> tuple[Float[Tensor, " N"], Float[Tensor, "G N"], Float[Tensor, "G K"]]:
    """Of each picture, what its predictions cost and the entropy of its labels; and the sum of shares times labels.

    Args:
        student: logits.
        teacher: logits; labels are softmax(scale * teacher + log_weights).
        log_weights: float64.
        shares: what each picture counts, float64.
        scale: of the teacher's logits.
        student_scale: of the student's.
        swap: whether the first G views are spared their own label.
    """
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    lowest = torch.finfo(dtype).min  # a label of zero costs nothing, whatever the prediction
    losses = student.new_zeros(student.shape[1], dtype=dtype)
    entropies = student.new_empty(len(teacher), student.shape[1], dtype=dtype)
    marginal = torch.zeros_like(log_weights)
    factors = _relative(log_weights, dtype)
    for block in _blocks(student, dtype):
        log_labels = torch.log_softmax(_exponents(teacher[:, block], scale, dtype).add_(factors), 2)
        labels = log_labels.exp()
        entropies[:, block] = log_labels.clamp_(min=lowest).mul_(labels).sum(2).neg_()
        torch.mul(labels, shares[block, None].to(dtype), out=log_labels)
        marginal += log_labels.sum(1)
        together = labels.sum(0)
        for view, logits in enumerate(student[:, block]):
            log_predictions = torch.log_softmax(_exponents(logits, student_scale, dtype), 1).clamp_(min=lowest)
            wanted = together - labels[view] if swap and view < len(labels) else together
            losses[block] -= log_predictions.mul_(wanted).sum(1)
    return losses, entropies, marginal


def gradient(
    student: Float[Tensor, "V N K"],
    teacher: Float[Tensor, "G N K"],
    log_weights: Float[Tensor, "G K"],
    row_factors: Float[Tensor, " N"],
    *,
    scale: float,
    student_scale: float,
    swap: bool,
) -> Float[Tensor, "V N K"]:
    """The gradient with respect to the student's logits of the sum of losses times `row_factors`, in their dtype."""
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    found = torch.empty_like(student, memory_format=torch.contiguous_format)
    factors = _relative(log_weights, dtype)
    row_factors = (row_factors * student_scale).to(dtype).unsqueeze(1)
    for block in _blocks(student, dtype):
        labels = torch.softmax(_exponents(teacher[:, block], scale, dtype).add_(factors), 2)
        together = labels.sum(0)
        for view, logits in enumerate(student[:, block]):
            own = swap and view < len(labels)
            change = torch.softmax(_exponents(logits, student_scale, dtype), 1).mul_(len(labels) - own)
            change.sub_(together)
            if own:
                change.add_(labels[view])
            found[view, block] = change.mul_(row_factors[block])
    return found


def _exponents(logits: Float[Tensor, "*V n K"], scale: float, dtype: torch.dtype) -> Float[Tensor, "*V n K"]:
    """Scaled logits less their peak, which goes first: scaling a large common offset would round differences away."""
    logits = logits.to(dtype)
    return (logits - logits.amax(-1, keepdim=True)).mul_(scale)


def _relative(log_weights: Float[Tensor, "G K"], dtype: torch.dtype) -> Float[Tensor, "G 1 K"]:
    return (log_weights - log_weights.amax(1, keepdim=True)).to(dtype).unsqueeze(1)


def _blocks(student: Float[Tensor, "V N K"], dtype: torch.dtype) -> Iterator[slice]:
    """Rows of one block after the other. A compiler makes its own blocks, and gets all rows at once."""
    if torch.compiler.is_compiling():
        yield slice(None)
        return
    block_bytes = _BLOCK_BYTES if student.device.type == "cpu" else _ACCELERATOR_BLOCK_BYTES
    height = max(1, block_bytes // (student.shape[2] * dtype.itemsize))
    for start in range(0, student.shape[1], height):
        yield slice(start, start + height)
