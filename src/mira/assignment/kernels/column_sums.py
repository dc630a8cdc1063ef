"""Column sums of labels, from one reading of the logits where a row fits into a program, else from two."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from mira.assignment.kernels.rows import aligned_to, base_2_weights, device_of, power_of_2, row_statistics, unit_stride

# Fixed, so that the bits do not depend on how many multiprocessors a device has: each program sums some rows, and its
# sums are added to those of the others in their order.
_PROGRAMS = 256
_TILE = 4096  # logits that a program works on at a time
_WIDEST_ROW = 8192  # columns: beyond, a row and its sums do not fit into the registers of a program
_BLOCK_OF_COLUMNS = 1024

_LOWEST = tl.constexpr(-1e30)  # a logarithm below all, and finite


def column_sums(
    logits: Float[Tensor, "V N K"],
    scale: Float[Tensor, ""],
    log_weights: Float[Tensor, "V C K"],
    row_weights: Float[Tensor, "V N"] | None = None,
    *,
    widest_row: int = _WIDEST_ROW,
    block: int = _BLOCK_OF_COLUMNS,
    tile: int = _TILE,
    programs: int = _PROGRAMS,
) -> Float[Tensor, "V C K"]:
    """Weighted sums over rows of the labels at C weights per view, in float64.

    Exponentials and the sums of one program are float32 (float64 for float64 logits), the sum over programs is float64.
    Where a program's sum of a column is so small that underflow may have taken from it, the program does its rows again
    with a running peak per column, so that sums are right, to single precision, down to the smallest float64.

    Args:
        logits: any of float16, bfloat16, float32, float64; any strides of views and rows.
        scale: from `rows.base_2_scale`.
        log_weights: natural logarithms, float64; of 1 or 2 points, more do not fit into registers.
        row_weights: 0 to 1, float64.
        widest_row: columns of a row that a program takes as a whole.
        block: columns that it takes at a time beyond.
        tile: logits that it works on at a time.
        programs: so many at most, about.
    """
    views, rows, width = logits.shape
    points = log_weights.shape[1]
    if rows == 0:
        return torch.zeros_like(log_weights)
    logits = unit_stride(logits)
    weights = base_2_weights(log_weights, scale.dtype)
    statistics = None
    if width <= widest_row:
        block = max(16, power_of_2(width))
    else:
        statistics = logits.new_empty(3, views, points, rows, dtype=scale.dtype)
    blocks = triton.cdiv(width, block)
    tile_rows = max(1, min(tile // block, power_of_2(rows)))
    programs = max(1, min(triton.cdiv(rows, tile_rows), programs // (views * min(blocks, 64))))
    height = triton.cdiv(triton.cdiv(rows, programs), tile_rows) * tile_rows
    programs = triton.cdiv(rows, height)
    unit = aligned_to(width, logits.stride(0), logits.stride(1))
    sizes = width // unit, logits.stride(0) // unit, logits.stride(1) // unit
    partial = logits.new_empty(views, programs, points, width, dtype=torch.float64)
    with device_of(logits):
        if statistics is not None:
            _statistics_kernel[(points, triton.cdiv(rows, 4), views)](
                logits, weights, scale, statistics, rows, *sizes, ALIGNED=unit, ROWS=4, BLOCK=block, num_warps=8,
            )  # fmt: skip
        _column_sums_kernel[(programs, blocks, views)](
            logits, weights, row_weights, statistics, scale, partial, rows, height, *sizes,
            ALIGNED=unit, POINTS=points, ROWS=tile_rows, BLOCK=block, TINY=torch.finfo(scale.dtype).tiny,
            num_warps=max(4, min(32, tile_rows * block // 256)),
        )  # fmt: skip
    return partial.sum(1)


@triton.jit(do_not_specialize=["rows", "height"])
@no_type_check
def _column_sums_kernel(
    logits,
    weights,
    row_weights,
    statistics,
    scale,
    sums,
    rows,
    height,
    width,
    view_stride,
    row_stride,
    ALIGNED: tl.constexpr,
    POINTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TINY: tl.constexpr,
):
    """Sums [C, B] over `height` rows from the program's first on, for one block of columns.

    A tile holds ROWS rows once for every point, side by side, so that a row is fetched from memory once.
    """
    width, view_stride, row_stride = width * ALIGNED, view_stride * ALIGNED, row_stride * ALIGNED
    program, view = tl.program_id(0), tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    first = program * height
    last = tl.minimum(first + height, rows)
    step = tl.num_programs(2) * POINTS * tl.cast(rows, tl.int64)  # from a statistic to the next
    logits += view * view_stride + columns
    weights += view * POINTS * width + columns
    sums += (view * tl.num_programs(0) + program) * POINTS * width + columns
    if row_weights is not None:
        row_weights += view * rows
    if statistics is not None:
        statistics += view * POINTS * rows
    scale = tl.load(scale)

    points = tl.arange(0, POINTS * ROWS) % POINTS
    slots = tl.arange(0, POINTS * ROWS) // POINTS
    own = statistics
    if statistics is not None:
        own = statistics + points * rows
    factors = tl.load(weights[None, :] + points[:, None] * width, mask=inside[None, :], other=0.0)
    found = tl.zeros([POINTS * ROWS, BLOCK], scale.dtype)
    ahead = _load_tile(logits, first + slots, last, row_stride, inside)
    for start in range(first, last, ROWS):
        index = start + slots
        tile = ahead.to(scale.dtype)
        ahead = _load_tile(logits, index + ROWS, last, row_stride, inside)  # arrives while this one is summed
        _, _, parts, total = _labels_in_tile(tile, factors, _places(own, index, last), step, scale)
        counts = tl.where(index < last, 1.0, 0.0).to(scale.dtype)
        if row_weights is not None:
            counts *= tl.load(row_weights + tl.minimum(index, last - 1)).to(scale.dtype)
        found += parts * (counts / total)[:, None]
    for point in tl.static_range(POINTS):
        point_sums = tl.sum(tl.where((points == point)[:, None], found, 0.0), 0)
        tl.store(sums + point * width, point_sums.to(tl.float64), mask=inside)

    tl.debug_barrier()  # what is read now was stored by other threads
    enough = height * (TINY * 1048576.0)  # 2^20 times what underflow can have taken
    for point in range(POINTS):
        if tl.min(tl.load(sums + point * width, mask=inside, other=float("inf"))) <= enough:
            where = statistics
            if statistics is not None:
                where = statistics + point * rows
            exact = _sums_by_logarithms(
                logits, weights + point * width, row_weights, where, step, scale, first, last, row_stride, inside, ROWS
            )
            tl.store(sums + point * width, exact, mask=inside)


@triton.jit
@no_type_check
def _sums_by_logarithms(
    logits, weights, row_weights, statistics, step, scale, first, last, row_stride, inside, ROWS: tl.constexpr
):
    """Sums [B] for one point, each relative to the largest label of its column so far."""
    factors = tl.load(weights, mask=inside, other=0.0)[None, :]
    peaks = tl.full([ROWS, inside.shape[0]], _LOWEST, scale.dtype)
    found = tl.zeros([ROWS, inside.shape[0]], scale.dtype)
    for start in range(first, last, ROWS):
        index = start + tl.arange(0, ROWS)
        tile = _load_tile(logits, index, last, row_stride, inside).to(scale.dtype)
        exponents, shift, _, total = _labels_in_tile(tile, factors, _places(statistics, index, last), step, scale)
        offsets = tl.where(index < last, 0.0, float("-inf")).to(scale.dtype) - shift - tl.log2(total)
        if row_weights is not None:
            offsets += tl.log2(tl.load(row_weights + tl.minimum(index, last - 1))).to(scale.dtype)
        logs = exponents + offsets[:, None]
        higher = tl.maximum(peaks, logs)
        found = found * tl.exp2(peaks - higher) + tl.exp2(logs - higher)
        peaks = higher
    return tl.sum(found.to(tl.float64) * tl.exp2(peaks.to(tl.float64)), 0)


@triton.jit
@no_type_check
def _load_tile(logits, index, last, row_stride, inside):
    """Rows of logits; beyond the last that one again."""
    index = tl.minimum(index, last - 1).to(tl.int64)
    return tl.load(logits[None, :] + index[:, None] * row_stride, mask=inside[None, :], other=float("-inf"))


@triton.jit
@no_type_check
def _places(statistics, index, last):
    """Where the rows' statistics are, if they have been made before."""
    if statistics is None:
        return None
    else:  # Triton compiles one branch or the other
        return statistics + tl.minimum(index, last - 1)


@triton.jit
@no_type_check
def _labels_in_tile(logits, factors, statistics, step, scale):
    """Exponents [R, B], their shift [R], labels but for a division [R, B], and by what [R].

    The statistics of the rows are read, `step` from one to the next, or, the rows being whole, made here.
    """
    if statistics is None:
        exponents = (logits - tl.max(logits, 1)[:, None]) * scale + factors
        shift = tl.max(exponents, 1)
        parts = tl.exp2(exponents - shift[:, None])
        return exponents, shift, parts, tl.sum(parts, 1)
    else:
        peak, shift, total = tl.load(statistics), tl.load(statistics + step), tl.load(statistics + 2 * step)
        exponents = (logits - peak[:, None]) * scale + factors
        return exponents, shift, tl.exp2(exponents - shift[:, None]), total


@triton.jit(do_not_specialize=["rows"])
@no_type_check
def _statistics_kernel(
    logits,
    weights,
    scale,
    statistics,
    rows,
    width,
    view_stride,
    row_stride,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Statistics [3, V, C, N] of rows too wide for one program; programs of one row's points run side by side."""
    width, view_stride, row_stride = width * ALIGNED, view_stride * ALIGNED, row_stride * ALIGNED
    point, view = tl.program_id(0), tl.program_id(2).to(tl.int64)
    own = view * tl.num_programs(0) + point
    index = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    real = index < rows
    places = logits + view * view_stride + tl.minimum(index, rows - 1) * row_stride
    factors = weights + own * width + tl.zeros([ROWS], tl.int64)
    peak, shift, total = row_statistics(places, factors, tl.load(scale), width, BLOCK)
    step = tl.num_programs(2) * tl.num_programs(0) * tl.cast(rows, tl.int64)
    statistics += own * rows + index
    tl.store(statistics, peak, mask=real)
    tl.store(statistics + step, shift, mask=real)
    tl.store(statistics + 2 * step, total, mask=real)
