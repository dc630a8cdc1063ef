"""Cross-entropy of a student's predictions against the assignment's labels, which are never written out."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mira.assignment import cross_entropy_blocks
from mira.assignment.fused import fusible
from mira.assignment.validation import check_floats, check_number, check_row_weights, check_tensors


@dataclass(frozen=True)
class CrossEntropy:
    """A loss, and what its labels are like: means over pictures, in nats where that applies.

    Attributes:
        loss: the cross-entropy; the student's gradient comes from here. float32, or float64 if any logits are.
        label_entropy: of the labels of each target, mean_i H(w_i).
        marginal: the mean of the labels of each target, w_bar. The mutual information is H(w_bar) - mean_i H(w_i).
    """

    loss: Float[Tensor, ""]
    label_entropy: Float[Tensor, "*targets"]
    marginal: Float[Tensor, "*targets K"]


def swapped_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    log_marginal: Tensor,
    *,
    beta: float,
    temperature: float,
    student_temperature: float,
    log_prior: Tensor | None = None,
    row_weights: Tensor | None = None,
) -> CrossEntropy:
    """Each global crop's labels are predicted from every other crop (Lee et al. 2022, arXiv 2211.02284, equation 7).

    The labels are those of `assign`, W = softmax((z / temperature - beta log_marginal) / (1 - beta)), made again from
    the teacher's logits z and the marginal that was solved for. Beside the student's gradient nothing of the size of
    the logits is written, for any K.

    Args:
        student: logits (cosines) of all V crops, [V, N, K]; half precision is read as it is.
        teacher: logits of the G global crops, which are the first of the V, [G, N, K]; they get no gradient.
        log_marginal: `Assignment.log_marginal` of the teacher's logits, [G, K].
        beta: as given to `assign`.
        temperature: of the teacher, as given to `assign`.
        student_temperature: divides the student's logits.
        log_prior: [K] or [G, K], of the prior given to `assign`.
        row_weights: [N], what each picture counts in the means, 0 or more. Their values are looked at, so that the
            host waits for the device; without them it never does.

    Returns:
        The mean over pictures, then over the V - 1 other crops, then over the G targets; and the labels' statistics.

    Raises:
        ValueError: shapes that do not go together, fewer than two crops, or a number out of its range.
    """
    check_tensors(student=student, teacher=teacher)
    if min(student.ndim, teacher.ndim) > 0 and not 2 <= len(student) >= len(teacher) > 0:
        raise ValueError(
            f"the loss needs at least two views and a view per target, got {len(student)} and {len(teacher)}"
        )
    return _cross_entropy(
        student, teacher, log_marginal, beta, temperature, student_temperature, log_prior, row_weights, swap=True
    )


def label_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    log_marginal: Tensor,
    *,
    beta: float,
    temperature: float,
    student_temperature: float,
    log_prior: Tensor | None = None,
    row_weights: Tensor | None = None,
) -> CrossEntropy:
    """One set of predictions [N, K] against one set of labels; everything else as in `swapped_cross_entropy`.

    Raises:
        ValueError: shapes that do not go together, or a number out of its range.
    """
    check_tensors(student=student, teacher=teacher, log_marginal=log_marginal)
    found = _cross_entropy(
        student.unsqueeze(0),
        teacher.unsqueeze(0),
        log_marginal.unsqueeze(0),
        beta,
        temperature,
        student_temperature,
        log_prior,
        row_weights,
        swap=False,
    )
    return CrossEntropy(found.loss, found.label_entropy[0], found.marginal[0])


def _cross_entropy(
    student: Tensor,
    teacher: Tensor,
    log_marginal: Tensor,
    beta: float,
    temperature: float,
    student_temperature: float,
    log_prior: Tensor | None,
    row_weights: Tensor | None,
    *,
    swap: bool,
) -> CrossEntropy:
    _check(student, teacher, log_marginal, beta, temperature, student_temperature, log_prior, row_weights)
    against = log_marginal.detach().double()
    if log_prior is not None:
        against = against - log_prior.detach().double()
    rows = student.shape[1]
    if row_weights is None:
        shares = against.new_full((rows,), 1 / max(rows, 1))
    else:
        shares = row_weights.detach().double()
        shares = shares / shares.sum()
    limits = torch.finfo(torch.float32)  # for a temperature so small that a float does not hold its inverse
    scale, student_scale = (
        min(max(1 / given, limits.tiny), limits.max) for given in (temperature * (1 - beta), student_temperature)
    )
    return CrossEntropy(
        *_LabelCrossEntropy.apply(  # type: ignore[no-untyped-call]
            student, teacher.detach(), against * (-beta / (1 - beta)), shares, scale, student_scale, swap
        )
    )


class _LabelCrossEntropy(torch.autograd.Function):
    """Rows of losses and the gradient from Triton on CUDA devices, from blocks of rows elsewhere."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Float[Tensor, "V N K"],
        teacher: Float[Tensor, "G N K"],
        log_weights: Float[Tensor, "G K"],
        shares: Float[Tensor, " N"],
        scale: float,
        student_scale: float,
        swap: bool,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " G"], Float[Tensor, "G K"]]:
        statistics = student.new_empty(0)
        if fusible(student):
            from mira.assignment.kernels import column_sums, cross_entropy_rows
            from mira.assignment.kernels.rows import base_2_scale

            losses, entropies, statistics = cross_entropy_rows(
                student, teacher, log_weights, scale=scale, student_scale=student_scale, swap=swap
            )
            weights = shares.expand(len(teacher), -1).contiguous()
            marginal = column_sums(teacher, base_2_scale(scale, teacher), log_weights.unsqueeze(1), weights).squeeze(1)
        else:
            losses, entropies, marginal = cross_entropy_blocks.rows(
                student, teacher, log_weights, shares, scale=scale, student_scale=student_scale, swap=swap
            )
        pairs = len(teacher) * (len(student) - swap)
        ctx.save_for_backward(student, teacher, log_weights, shares / pairs, statistics)
        ctx.scales = scale, student_scale, swap
        loss = (losses * shares).sum() / pairs
        found = loss.to(losses.dtype), (entropies * shares).sum(1).to(losses.dtype), marginal.to(losses.dtype)
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, ""], *_: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, log_weights, shares, statistics = ctx.saved_tensors
        scale, student_scale, swap = ctx.scales
        factors = shares * upstream
        if fusible(student):
            from mira.assignment.kernels import cross_entropy_gradient

            gradient = cross_entropy_gradient(
                student,
                teacher,
                log_weights,
                statistics,
                factors,
                scale=scale,
                student_scale=student_scale,
                swap=swap,
            )
        else:
            gradient = cross_entropy_blocks.gradient(
                student, teacher, log_weights, factors, scale=scale, student_scale=student_scale, swap=swap
            )
        return gradient, None, None, None, None, None, None


def _check(
    student: Tensor,
    teacher: Tensor,
    log_marginal: Tensor,
    beta: float,
    temperature: float,
    student_temperature: float,
    log_prior: Tensor | None,
    row_weights: Tensor | None,
) -> None:
    check_tensors(log_marginal=log_marginal)
    check_tensors(optional=True, log_prior=log_prior, row_weights=row_weights)
    if student.ndim != 3 or teacher.ndim != 3:
        raise ValueError(
            f"logits must have the dimensions views, pictures, prototypes, but have shapes {list(student.shape)} "
            f"and {list(teacher.shape)}"
        )
    rows, width = student.shape[1:]
    if teacher.shape[1:] != student.shape[1:]:
        raise ValueError(
            f"student and teacher must have the same pictures and prototypes, but their logits have shapes "
            f"{list(student.shape)} and {list(teacher.shape)}"
        )
    wanted = {
        "log_marginal": (log_marginal, [[len(teacher), width]]),
        "log_prior": (log_prior, [[width], [len(teacher), width]]),
        "row_weights": (row_weights, [[rows]]),
    }
    for name, (given, shapes) in wanted.items():
        if given is not None and list(given.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(
                f"{name} must have shape {expected} to go with the teacher's logits, not {list(given.shape)}"
            )
    check_floats(**{"the student's logits": student, "the teacher's logits": teacher})
    check_floats(log_marginal=log_marginal, log_prior=log_prior, row_weights=row_weights)
    numbers = {"beta": beta, "temperature": temperature, "student_temperature": student_temperature}
    for name, given_number in numbers.items():
        check_number(name, given_number)
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be at least 0 and below 1, not {beta}")
    for name, number in {"temperature": temperature, "student_temperature": student_temperature}.items():
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} must be positive and finite, not {number}")
    if row_weights is not None and rows:
        check_row_weights(row_weights)
