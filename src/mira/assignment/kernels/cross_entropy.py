"""Cross-entropy of predictions against labels that are never written, and its gradient; one program per picture."""

from typing import no_type_check

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from mira.assignment.kernels.rows import (
    aligned_to,
    base_2_scale,
    base_2_weights,
    compute_dtype,
    device_of,
    power_of_2,
    row_statistics,
    unit_stride,
)

_TILE = 4096  # logits of all views that a program works on at a time
_LN_2 = tl.constexpr(0.6931471805599453)


def cross_entropy_rows(
    student: Float[Tensor, "V N K"],
    teacher: Float[Tensor, "G N K"],
    log_weights: Float[Tensor, "G K"],
    *,
    scale: float,
    student_scale: float,
    swap: bool,
    tile: int = _TILE,
) -> tuple[Float[Tensor, " N"], Float[Tensor, "G N"], Float[Tensor, "3 M N"]]:
    """Of each picture, what its predictions cost, and the entropy of its labels, in nats.

    Args:
        student: logits, of any floating dtype and any strides of views and rows.
        teacher: logits, likewise.
        log_weights: natural logarithms of the weights of the labels softmax(scale * teacher + log_weights), float64.
        scale: of the teacher's logits.
        student_scale: of the student's.
        swap: whether the first G views are spared their own label.
        tile: logits of all views that a program works on at a time.

    Returns:
        The sum of the cross-entropies over targets and views; the entropies of the labels; and the statistics of the
        rows (`rows.row_statistics`) of M = V + G matrices, students first, which the gradient wants.
    """
    student, teacher = unit_stride(student), unit_stride(teacher)
    views, rows, _ = student.shape
    dtype = compute_dtype(student, teacher)
    losses = student.new_empty(rows, dtype=dtype)
    entropies = student.new_empty(len(teacher), rows, dtype=dtype)
    statistics = student.new_empty(3, views + len(teacher), rows, dtype=dtype)
    if rows == 0:
        return losses, entropies, statistics
    like = losses
    shape = _shape(student, teacher, tile)
    with device_of(student):
        _rows_kernel[(rows,)](
            student, teacher, base_2_weights(log_weights, dtype),
            base_2_scale(student_scale, like), base_2_scale(scale, like),
            losses, entropies, statistics, rows,
            SWAP=swap, **shape,
        )  # fmt: skip
    return losses, entropies, statistics


def cross_entropy_gradient(
    student: Float[Tensor, "V N K"],
    teacher: Float[Tensor, "G N K"],
    log_weights: Float[Tensor, "G K"],
    statistics: Float[Tensor, "3 M N"],
    row_factors: Float[Tensor, " N"],
    *,
    scale: float,
    student_scale: float,
    swap: bool,
    tile: int = _TILE,
) -> Float[Tensor, "V N K"]:
    """The gradient with respect to the student's logits of the sum of losses times `row_factors`, in their dtype.

    Arguments as of `cross_entropy_rows`, and the statistics that it returned.
    """
    student, teacher = unit_stride(student), unit_stride(teacher)
    views, rows, width = student.shape
    gradient = student.new_empty(views, rows, width)
    if rows == 0:
        return gradient
    like = statistics
    shape = _shape(student, teacher, tile)
    with device_of(student):
        _gradient_kernel[(rows, triton.cdiv(width, shape["BLOCK"]))](
            student, teacher, base_2_weights(log_weights, like.dtype),
            base_2_scale(student_scale, like), base_2_scale(scale, like),
            statistics, (row_factors * student_scale).to(like.dtype), gradient, rows,
            SWAP=swap, **shape,
        )  # fmt: skip
    return gradient


def _shape(student: Float[Tensor, "V N K"], teacher: Float[Tensor, "G N K"], tile: int) -> dict[str, int]:
    """What the kernels want to know of the matrices, and how a program's tiles look: [view or target, column]."""
    (views, _, width), targets = student.shape, len(teacher)
    strides = (student.stride(0), student.stride(1), teacher.stride(0), teacher.stride(1))
    unit = aligned_to(width, *strides)
    names = ("student_view_stride", "student_row_stride", "teacher_view_stride", "teacher_row_stride")
    view_rows, target_rows = power_of_2(views), power_of_2(targets)
    higher = max(view_rows, target_rows)
    block = max(16, min(tile // higher, power_of_2(width)))
    return {
        "width": width // unit,
        **{name: stride // unit for name, stride in zip(names, strides, strict=True)},
        "ALIGNED": unit,
        "VIEWS": views,
        "TARGETS": targets,
        "VIEW_ROWS": view_rows,
        "TARGET_ROWS": target_rows,
        "BLOCK": block,
        "num_warps": max(1, min(8, higher * block // 256)),
    }


@triton.jit(do_not_specialize=["rows"])
@no_type_check
def _rows_kernel(
    student,
    teacher,
    weights,
    student_scale,
    scale,
    losses,
    entropies,
    statistics,
    rows,
    width,
    student_view_stride,
    student_row_stride,
    teacher_view_stride,
    teacher_row_stride,
    ALIGNED: tl.constexpr,
    SWAP: tl.constexpr,
    VIEWS: tl.constexpr,
    TARGETS: tl.constexpr,
    VIEW_ROWS: tl.constexpr,
    TARGET_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """First the statistics of all rows of one picture; then, of what is in the cache by now, the cross-entropies."""
    width = width * ALIGNED
    student_view_stride, student_row_stride = student_view_stride * ALIGNED, student_row_stride * ALIGNED
    teacher_view_stride, teacher_row_stride = teacher_view_stride * ALIGNED, teacher_row_stride * ALIGNED
    row = tl.program_id(0).to(tl.int64)
    views, targets = tl.arange(0, VIEW_ROWS), tl.arange(0, TARGET_ROWS)
    # Tiles have powers of two for sizes: rows beyond the last repeat it, and are not counted.
    student += row * student_row_stride
    student_rows = student + tl.minimum(views, VIEWS - 1).to(tl.int64) * student_view_stride
    teacher += row * teacher_row_stride
    teacher_rows = teacher + tl.minimum(targets, TARGETS - 1).to(tl.int64) * teacher_view_stride
    weight_rows = weights + tl.minimum(targets, TARGETS - 1).to(tl.int64) * width
    student_scale, scale = tl.load(student_scale), tl.load(scale)
    peak, shift, total = row_statistics(student_rows, None, student_scale, width, BLOCK)
    label_peak, label_shift, label_total = row_statistics(teacher_rows, weight_rows, scale, width, BLOCK)
    step = (VIEWS + TARGETS) * tl.cast(rows, tl.int64)
    places = statistics + views * rows + row
    tl.store(places, peak, mask=views < VIEWS)
    tl.store(places + step, shift, mask=views < VIEWS)
    tl.store(places + 2 * step, total, mask=views < VIEWS)
    places = statistics + (VIEWS + targets) * rows + row
    tl.store(places, label_peak, mask=targets < TARGETS)
    tl.store(places + step, label_shift, mask=targets < TARGETS)
    tl.store(places + 2 * step, label_total, mask=targets < TARGETS)

    norm = shift + tl.log2(total)
    label_log_total = tl.log2(label_total)
    cost = tl.zeros([BLOCK], student_scale.dtype)
    spread = tl.zeros([TARGET_ROWS, BLOCK], student_scale.dtype)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        logits = tl.load(student_rows[:, None] + columns[None, :], mask=inside[None, :], other=0.0).to(scale.dtype)
        # -log2 of predictions; where that is beyond what a float holds, labels of zero must still cost nothing.
        surprise = tl.minimum(norm[:, None] - (logits - peak[:, None]) * student_scale, 1e38)
        for target in tl.static_range(TARGETS):
            label = tl.load(
                teacher + tl.full([], target, tl.int64) * teacher_view_stride + columns, mask=inside, other=0.0
            ).to(scale.dtype)
            factors = tl.load(weights + target * width + columns, mask=inside, other=0.0)
            this = targets == target
            exponents = (label - _only(label_peak, this)) * scale + factors - _only(label_shift, this)
            label = tl.where(inside, tl.exp2(exponents) / _only(label_total, this), 0.0)
            counted = views < VIEWS
            if SWAP:
                counted = counted & (views != target)
            cost += tl.sum(tl.where(counted[:, None], surprise, 0.0), 0) * label
            own = tl.minimum(_only(label_log_total, this) - exponents, 1e38) * label
            spread += tl.where(this[:, None], own[None, :], 0.0)
    to_nats = tl.full([], _LN_2, student_scale.dtype)  # a number that stands by itself would have single precision
    tl.store(losses + row, tl.sum(cost) * to_nats)
    tl.store(entropies + targets * rows + row, tl.sum(spread, 1) * to_nats, mask=targets < TARGETS)


@triton.jit(do_not_specialize=["rows"])
@no_type_check
def _gradient_kernel(
    student,
    teacher,
    weights,
    student_scale,
    scale,
    statistics,
    row_factors,
    gradient,
    rows,
    width,
    student_view_stride,
    student_row_stride,
    teacher_view_stride,
    teacher_row_stride,
    ALIGNED: tl.constexpr,
    SWAP: tl.constexpr,
    VIEWS: tl.constexpr,
    TARGETS: tl.constexpr,
    VIEW_ROWS: tl.constexpr,
    TARGET_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum over a view's targets of prediction minus label, for all views of one picture and a block of columns."""
    width = width * ALIGNED
    student_view_stride, student_row_stride = student_view_stride * ALIGNED, student_row_stride * ALIGNED
    teacher_view_stride, teacher_row_stride = teacher_view_stride * ALIGNED, teacher_row_stride * ALIGNED
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    views = tl.arange(0, VIEW_ROWS)
    index = tl.minimum(views, VIEWS - 1).to(tl.int64)
    student += row * student_row_stride
    teacher += row * teacher_row_stride
    student_scale, scale = tl.load(student_scale), tl.load(scale)
    step = (VIEWS + TARGETS) * tl.cast(rows, tl.int64)
    statistics += row

    places = statistics + index * rows
    peak, shift, total = tl.load(places), tl.load(places + step), tl.load(places + 2 * step)
    logits = student + index[:, None] * student_view_stride + columns[None, :]
    logits = tl.load(logits, mask=inside[None, :], other=0.0).to(scale.dtype)
    prediction = tl.exp2((logits - peak[:, None]) * student_scale - shift[:, None]) / total[:, None]
    change = prediction * TARGETS
    if SWAP:
        change = prediction * tl.where(views < TARGETS, TARGETS - 1, TARGETS)[:, None]
    for target in tl.static_range(TARGETS):
        places = statistics + (VIEWS + target) * rows
        label_peak, label_shift, label_total = tl.load(places), tl.load(places + step), tl.load(places + 2 * step)
        label = tl.load(
            teacher + tl.full([], target, tl.int64) * teacher_view_stride + columns, mask=inside, other=0.0
        ).to(scale.dtype)
        factors = tl.load(weights + target * width + columns, mask=inside, other=0.0)
        label = tl.exp2((label - label_peak) * scale + factors - label_shift) / label_total
        if SWAP:
            change -= tl.where((views == target)[:, None], 0.0, label[None, :])
        else:
            change -= label[None, :]
    change *= tl.load(row_factors + row)
    places = gradient + (index[:, None] * rows + row) * width + columns[None, :]
    tl.store(places, change.to(gradient.dtype.element_ty), mask=(views < VIEWS)[:, None] & inside[None, :])


@triton.jit
@no_type_check
def _only(values, this):
    """The one value that is meant, as a scalar."""
    return tl.sum(tl.where(this, values, 0.0), 0)
