"""The iteration of the label marginal in one launch per step: residual, gap, Anderson mixing, the next points."""

import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from mira.assignment import anderson, marginals
from mira.assignment.kernels.rows import device_of, power_of_2

_BLOCK = 512
_WINDOW = tl.constexpr(anderson.WINDOW)
_RIDGE = tl.constexpr(anderson.RIDGE)
_SLOTS = tl.constexpr(triton.next_power_of_2(anderson.WINDOW))
_GROWTH = tl.constexpr(marginals.GROWTH)
_LOG_FLOOR = tl.constexpr(marginals.LOG_FLOOR)
_FLOOR = tl.constexpr(math.exp(marginals.LOG_FLOOR))
_TINY = tl.constexpr(torch.finfo(torch.float64).tiny)


class FusedMarginals:
    """What `marginals.Marginals` does, with one program per view: same attributes, same numbers up to rounding.

    A step of `Marginals` is some forty operations on K numbers, whose launches would take longer than reading the
    logits. One program has no more than one multiprocessor, which is slower from a few tens of thousands of prototypes
    on. `take` already finds the next points, and `advance` turns to them.
    """

    log_u: Float[Tensor, "V C K"]
    best: Float[Tensor, "V K"]
    gap: Float[Tensor, " V"]

    def __init__(self, start: Float[Tensor, "V K"], *, beta: float, accelerate: bool, block: int = _BLOCK) -> None:
        views, width = start.shape
        self.log_u = torch.log_softmax(start.unsqueeze(1), -1).clamp_(min=marginals.LOG_FLOOR)
        self.best = self.log_u[:, 0].contiguous()
        self.gap = start.new_full((views,), torch.inf)
        self._accelerate = accelerate
        self._block = block
        self._best_residual = torch.zeros_like(self.best)
        self._safe = torch.ones(views, dtype=torch.int8, device=start.device)
        self._beta = start.new_full((), beta)
        self._step = start.new_full((), 1 - beta)
        self._last = start.new_empty(views, 2, width)  # x and f
        self._changes = start.new_empty(views, 2, anderson.WINDOW, width)  # a ring: the oldest is overwritten
        self._taken = 0

    def take(self, sums: Float[Tensor, "V C K"], tolerance: float | None) -> None:
        """Learn the sums over all rows of the labels at `log_u`. A view within the tolerance keeps its best point."""
        views, points, width = self.log_u.shape
        following = 2 if self._accelerate and self._taken > 0 else 1
        # What is read is never written: threads of a program do not wait for each other.
        log_u = self.log_u.contiguous()
        best, best_residual, last = (torch.empty_like(old) for old in (self.best, self._best_residual, self._last))
        gap, safe = torch.empty_like(self.gap), torch.empty_like(self._safe)
        raw, proposed = (log_u.new_empty(views, following, width) for _ in range(2))
        with device_of(log_u):
            _step_kernel[(views,)](
                sums.contiguous(), log_u, self.best, self._best_residual, self.gap, self._safe, self._last,
                self._changes, self._beta, self._step,
                self.gap.new_full((), -1.0 if tolerance is None else tolerance),
                best, best_residual, gap, safe, last, raw, proposed, width,
                (self._taken - 1) % anderson.WINDOW, min(self._taken, anderson.WINDOW),
                ACCELERATE=self._accelerate, FIRST=self._accelerate and self._taken == 0,
                POINTS=points, FOLLOWING=following,
                BLOCK=min(self._block, max(16, power_of_2(width))), num_warps=8,
            )  # fmt: skip
        self.best, self._best_residual, self.gap, self._safe, self._last = best, best_residual, gap, safe, last
        self._proposed = proposed
        self._taken += 1

    def advance(self) -> None:
        """Move `log_u` on to the next points."""
        self.log_u = self._proposed


@triton.jit(do_not_specialize=["width", "slot", "history"])
@no_type_check
def _step_kernel(
    sums,
    log_u,
    best,
    best_residual,
    gap,
    safe,
    last,
    changes,
    beta,
    step,
    tolerance,
    new_best,
    new_best_residual,
    new_gap,
    new_safe,
    new_last,
    raw,
    proposed,
    width,
    slot,
    history,
    ACCELERATE: tl.constexpr,
    FIRST: tl.constexpr,
    POINTS: tl.constexpr,
    FOLLOWING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`Marginals.take` and `Marginals.advance` for one view; the latest change goes to ring slot `slot`."""
    view = tl.cast(tl.program_id(0), tl.int64)
    sums += view * POINTS * width
    log_u += view * POINTS * width
    best += view * width
    best_residual += view * width
    last += view * 2 * width
    changes += view * width * (2 * _WINDOW)
    new_best += view * width
    new_best_residual += view * width
    new_last += view * 2 * width
    raw += view * FOLLOWING * width
    proposed += view * FOLLOWING * width
    second = (POINTS - 1) * width  # the plain point, where there are two; else the only one
    beta, step, tolerance = tl.load(beta), tl.load(step), tl.load(tolerance)
    slots = tl.arange(0, _SLOTS)
    others = (slots < history) & (slots != slot)  # ring slots filled before

    # Each row of labels sums to its weight, so the weight of all rows on all ranks is in the sums already.
    total, second_total = beta * 0, beta * 0
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(sums + columns, mask=columns < width, other=0.0))
        second_total += tl.sum(tl.load(sums + second + columns, mask=columns < width, other=0.0))

    gaps, second_gaps = beta * 0, beta * 0
    gram = tl.zeros([_SLOTS, _SLOTS], tl.float64)
    target = tl.zeros([_SLOTS], tl.float64)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        marginal, x, residual = _point(sums, log_u, total, columns, inside)
        gaps += tl.sum(marginal * _excess(residual))
        if POINTS == 2:
            second_marginal, _, second_residual = _point(sums + second, log_u + second, second_total, columns, inside)
            second_gaps += tl.sum(second_marginal * _excess(second_residual))
        if ACCELERATE and not FIRST:
            f_changes = _ring(changes + width * _WINDOW, width, columns, inside, slots, others)
            newest = residual - tl.load(last + width + columns, mask=inside, other=0.0)
            f_changes = tl.where((slots == slot)[:, None], newest[None, :], f_changes)
            weighted = f_changes * marginal[None, :]
            target += tl.sum(weighted * residual[None, :], 1)
            for other in tl.static_range(_WINDOW):
                one = tl.sum(tl.where((slots == other)[:, None], f_changes, 0.0), 0)
                products = tl.sum(weighted * one[None, :], 1)
                gram += tl.where((slots == other)[None, :], products[:, None], 0.0)
    gaps *= beta
    second_gaps *= beta

    chosen = tl.full([], -1, tl.int32)  # the point that is the best so far: -1 for the one before
    if ACCELERATE:
        best_gap = tl.load(gap + view)
        better = (gaps <= best_gap) & (best_gap > tolerance)
        best_gap, chosen = tl.where(better, gaps, best_gap), tl.where(better, 0, chosen)
        if POINTS == 2:
            better = (second_gaps <= best_gap) & (best_gap > tolerance)
            best_gap, chosen = tl.where(better, second_gaps, best_gap), tl.where(better, 1, chosen)
        accepted = (tl.load(safe + view) != 0) | (gaps <= best_gap * _GROWTH)
        tl.store(new_safe + view, tl.where(accepted, 0, 1).to(tl.int8))
        tl.store(new_gap + view, best_gap)
    else:
        accepted = True
        tl.store(new_gap + view, gaps)
    coefficients = _solve(gram, target, slots)

    peak, spread = beta * 0 + float("-inf"), beta * 0
    second_peak, second_spread = peak, spread
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        _, x, residual = _point(sums, log_u, total, columns, inside)
        _, second_x, second_residual = _point(sums + second, log_u + second, second_total, columns, inside)
        plain = second_x + step * second_residual
        kept, kept_residual = x, residual
        if ACCELERATE:
            kept = tl.load(best + columns, mask=inside, other=0.0)
            kept_residual = tl.load(best_residual + columns, mask=inside, other=0.0)
            kept = tl.where(chosen == 0, x, tl.where(chosen == 1, second_x, kept))
            kept_residual = tl.where(chosen == 0, residual, tl.where(chosen == 1, second_residual, kept_residual))
            tl.store(new_best_residual + columns, kept_residual, mask=inside)
            tl.store(new_last + columns, x, mask=inside)
            tl.store(new_last + width + columns, residual, mask=inside)
        tl.store(new_best + columns, kept, mask=inside)
        if FOLLOWING == 2:
            x_changes = _ring(changes, width, columns, inside, slots, others)
            f_changes = _ring(changes + width * _WINDOW, width, columns, inside, slots, others)
            newest_x = x - tl.load(last + columns, mask=inside, other=0.0)
            newest_f = residual - tl.load(last + width + columns, mask=inside, other=0.0)
            tl.store(changes + slot * width + columns, newest_x, mask=inside)
            tl.store(changes + (slot + _WINDOW) * width + columns, newest_f, mask=inside)
            moves = tl.where(
                (slots == slot)[:, None], (newest_x + step * newest_f)[None, :], x_changes + step * f_changes
            )
            mixed = x + step * residual - tl.sum(coefficients[:, None] * moves, 0)
            mixed = tl.where(accepted, mixed, kept + step * kept_residual)
            tl.store(raw + columns, mixed, mask=inside)
            peak, spread = _log_sum(peak, spread, mixed, inside)
        tl.store(raw + (FOLLOWING - 1) * width + columns, plain, mask=inside)
        second_peak, second_spread = _log_sum(second_peak, second_spread, plain, inside)
    norm, second_norm = peak + tl.log(spread), second_peak + tl.log(second_spread)

    tl.debug_barrier()  # what is read now may have been stored by other threads
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        if FOLLOWING == 2:
            mixed = tl.load(raw + columns, mask=inside, other=0.0)
            tl.store(proposed + columns, _not_below(mixed - norm), mask=inside)
        places = (FOLLOWING - 1) * width + columns
        plain = tl.load(raw + places, mask=inside, other=0.0)
        tl.store(proposed + places, _not_below(plain - second_norm), mask=inside)


@triton.jit
@no_type_check
def _point(sums, log_u, total, columns, inside):
    """The marginal w_bar(u), log u, and their difference log w_bar - log u; zeros outside."""
    marginal = tl.load(sums + columns, mask=inside, other=0.0) / total
    # Not below the floor: of a share that has underflowed, m exp(-r) = u must still be there.
    marginal = tl.maximum(marginal, tl.full([], _FLOOR, tl.float64))
    x = tl.load(log_u + columns, mask=inside, other=0.0)
    residual = tl.log(marginal) - x
    return marginal, x, tl.where(inside, residual, 0.0)


@triton.jit
@no_type_check
def _not_below(log_u):
    # A number that stands by itself would have single precision.
    return tl.maximum(log_u, tl.full([], _LOG_FLOOR, tl.float64))


@triton.jit
@no_type_check
def _excess(r):
    """r - 1 + exp(-r), never negative; near 0 from its series, which does not cancel (to 1e-16 below 0.03)."""
    series = 1 / 5040 - r / 40320
    series = 1 / 720 - r * series
    series = 1 / 120 - r * series
    series = 1 / 24 - r * series
    series = 1 / 6 - r * series
    series = r * r * (0.5 - r * series)
    return tl.where(tl.abs(r) < 0.03, series, r - 1 + tl.exp(-r))


@triton.jit
@no_type_check
def _ring(changes, width, columns, inside, slots, others):
    """The earlier changes [slot, column], zeros in other slots."""
    places = changes + slots[:, None] * width + columns[None, :]
    return tl.load(places, mask=others[:, None] & inside[None, :], other=0.0)


@triton.jit
@no_type_check
def _solve(gram, target, slots):
    """Coefficients of the changes: the normal equations scaled to a unit diagonal, with a ridge (`AndersonMixing`).

    Gauss-Jordan elimination without pivoting is stable here: the matrix is positive definite, its condition below
    WINDOW / RIDGE.
    """
    diagonal = slots[:, None] == slots[None, :]
    down = 1 / tl.sqrt(tl.maximum(tl.sum(tl.where(diagonal, gram, 0.0), 1), _TINY))
    across = 1 / tl.sqrt(tl.maximum(tl.sum(tl.where(diagonal, gram, 0.0), 0), _TINY))
    matrix = tl.where(diagonal, 0.0, gram * down[:, None] * across[None, :])
    matrix += tl.where(diagonal, tl.full([], 1 + _RIDGE, tl.float64), 0.0)
    values = target * down
    for column in tl.static_range(_WINDOW):
        row = tl.sum(tl.where((slots == column)[:, None], matrix, 0.0), 0)
        value = tl.sum(tl.where(slots == column, values, 0.0), 0)
        pivot = tl.sum(tl.where(slots == column, row, 0.0), 0)
        factors = tl.sum(tl.where((slots == column)[None, :], matrix, 0.0), 1) / pivot
        factors = tl.where(slots == column, 0.0, factors)
        matrix -= factors[:, None] * row[None, :]
        values -= factors * value
    return values / tl.sum(tl.where(diagonal, matrix, 0.0), 1) * down


@triton.jit
@no_type_check
def _log_sum(peak, spread, values, inside):
    """Peak and sum of exp(values - peak) so far."""
    values = tl.where(inside, values, float("-inf"))
    higher = tl.maximum(peak, tl.max(values, 0))
    return higher, spread * tl.exp(peak - higher) + tl.sum(tl.exp(values - higher), 0)
