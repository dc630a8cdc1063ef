"""Logistic regression, solved: L-BFGS along the principal axes of the features.

    minimise   sum_i loss(W x_i + b, y_i)  +  l2/2 ||W||^2,        the bias b unpenalised

`loss` is the cross-entropy of the softmax for one label per picture, or the sum of one logistic loss per class where
a picture may have several. This is scikit-learn's objective with C = 1/l2; but of two exclusive classes
scikit-learn keeps one weight vector, the difference of the two here, so that there C = 2/l2.

Three things make it fast, and none of them moves the minimum:

- Features are centred and turned to their principal axes once. The penalty does not notice; the curvature becomes
  nearly diagonal, so a diagonal matrix is a good preconditioner however ill-conditioned the features are. Where it is
  not good enough, under weak penalties, each class gets a matrix (`logistic_curvature`).
- Logits are linear in the length of a step, so a line search costs no product with the features. An iteration has
  two: the direction's logits and the gradient.
- Matrices have classes in rows: products with few classes are then several times as fast on a CPU.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mira.evaluation.logistic_curvature import ROWS, ClassBlocks, Divide, Weights, along_axes

Targets = Int64[Tensor, " _"] | Bool[Tensor, "_ _"]
"""The class of every picture, or for every picture and class whether it shows it."""

_MEMORY = 10  # steps that L-BFGS remembers
_TRIALS = 30  # of a line search


@dataclass(frozen=True)
class LogisticFit:
    """A solution, and how good it is.

    Attributes:
        weight, bias: of the logits. With exclusive classes the biases sum to zero, which the objective leaves open.
        gradient_norm: where the solver stopped; see `LogisticProblem.fit`.
        iterations: how many it took.
        converged: whether `gradient_norm` came down to the tolerance.
    """

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    gradient_norm: float
    iterations: int
    converged: bool

    def logits(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """The score of every class."""
        return torch.addmm(self.bias, features, self.weight.T)


def fit_logistic(
    features: Float[Tensor, "N D"],
    targets: Targets,
    *,
    l2: float,
    num_classes: int | None = None,
    start: LogisticFit | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> LogisticFit:
    """Logistic regression with one penalty; see the head of this file for the objective.

    Args:
        features: float32 or float64, on any device; the arithmetic is in that type and there.
        targets: classes 0..K-1 for the softmax, or a truth value for each class for one logistic loss per class.
        l2: above 0.
        num_classes: K; by default the highest class and one.
        start: an earlier solution to start from.
        tolerance, max_iterations: see `LogisticProblem.fit`.

    Raises:
        ValueError: no pictures, features with NaN or infinity, not one target per picture, only one class, or a
            number out of range.
    """
    problem = LogisticProblem(features, targets, num_classes=num_classes)
    return problem.fit(l2, start=start, tolerance=tolerance, max_iterations=max_iterations)


class LogisticProblem:
    """Features and targets, prepared once for any number of penalties (arguments as in `fit_logistic`).

    Memory beside the features: a copy of them, a few matrices [K, N] and [K, D], and twice K matrices [D, D] for the
    hard fits where K of them take no more than the features. What a hard fit has learned of the curvature serves those
    after it.
    """

    def __init__(self, features: Float[Tensor, "N D"], targets: Targets, *, num_classes: int | None = None) -> None:
        _check(features, targets, num_classes)
        self._exclusive = targets.ndim == 1
        if self._exclusive:
            classes = num_classes or int(targets.max()) + 1
            self._targets = features.new_zeros(classes, len(features)).scatter_(0, targets[None], 1.0)
        else:
            self._targets = targets.T.to(features.dtype).contiguous()
        self._mean = features.mean(dim=0)
        powers, axes = _principal_axes(features, self._mean)
        self._axes = axes.to(features.dtype)
        # A column of ones carries the bias; to centred features it is orthogonal.
        self._inputs = features.new_ones(len(features), axes.shape[1] + 1)
        for rows, inputs in zip(torch.split(features, ROWS), torch.split(self._inputs, ROWS), strict=True):
            torch.mm(rows - self._mean, self._axes, out=inputs[:, :-1])
        self._powers = torch.cat([powers.clamp(min=0), powers.new_tensor([len(features)])]).to(features.dtype)
        self._blocks: ClassBlocks | None = None
        self._patience = max(50, self._inputs.shape[1] // 10)

    def fit(
        self, l2: float, *, start: LogisticFit | None = None, tolerance: float = 1e-4, max_iterations: int = 1000
    ) -> LogisticFit:
        """The minimum for one penalty (L-BFGS: Nocedal 1980, Liu and Nocedal 1989).

        It is found when sqrt(g' M^-1 g / F) <= tolerance, with F the objective, g its gradient and M the diagonal of
        its curvature along the principal axes: a gradient norm that depends neither on the scale of the features nor
        on how small the objective becomes where classes are separable. Half its square estimates by what share the
        objective can still fall.

        Raises:
            ValueError: l2 or the tolerance is not above 0, or max_iterations is negative.
        """
        if not (l2 > 0 and tolerance > 0 and max_iterations >= 0):
            raise ValueError(
                f"l2 and tolerance must be above 0 and max_iterations at least 0, not {l2}, {tolerance} and "
                f"{max_iterations}."
            )
        penalty = torch.full_like(self._powers, l2)
        penalty[-1] = 0
        weights = self._along_axes(start)
        logits = weights @ self._inputs.T
        residual = self._residual(logits)
        gradient = residual @ self._inputs + penalty * weights
        memory: list[tuple[Weights, Weights]] = []
        by_blocks = None if self._blocks is None else self._blocks.divide(penalty)
        iterations = 0
        while True:
            spread = residual.abs() * (1 - residual.abs())
            diagonal = along_axes(spread.mean(dim=1), self._powers, penalty)
            objective = self._loss(residual) + float((penalty * weights.square()).sum()) / 2
            norm = (max(0.0, float((gradient * self._fixed(diagonal(gradient))).sum())) / objective) ** 0.5
            if norm <= tolerance or iterations == max_iterations:
                break
            if iterations and iterations % self._patience == 0 and ClassBlocks.fit_into(self._inputs, len(spread)):
                self._blocks = by_blocks = None  # their memory, before new ones take theirs
                self._blocks = ClassBlocks(self._inputs, spread)
                by_blocks, memory = self._blocks.divide(penalty), []
            direction = -self._fixed(_inverse_hessian_times(gradient, memory, by_blocks or diagonal))
            along = direction @ self._inputs.T
            found = self._search(logits, along, weights, direction, gradient, penalty)
            if found is None:
                if not memory:
                    break  # as far as the arithmetic's precision goes
                memory = []
                continue
            length, residual = found
            step = length * direction
            weights, logits = weights + step, logits + length * along
            before, gradient = gradient, residual @ self._inputs + penalty * weights
            change = gradient - before
            if (step * change).sum() > 0:
                memory = [*memory[1 - _MEMORY :], (step, change)]
            iterations += 1
        return self._solution(weights, norm, iterations, norm <= tolerance)

    def _fixed(self, step: Weights) -> Weights:
        """A vector added to all classes changes no softmax: keeping it out leaves the penalty nothing to undo."""
        return step - step.mean(dim=0) if self._exclusive else step

    def _search(
        self,
        logits: Float[Tensor, "K N"],
        along: Float[Tensor, "K N"],
        weights: Weights,
        direction: Weights,
        gradient: Weights,
        penalty: Float[Tensor, " D1"],
    ) -> tuple[float, Float[Tensor, "K N"]] | None:
        """A step's length and the residuals there; None where the direction does not lead down.

        The objective along a line is convex, so Newton's method inside a bracket finds its minimum. The length is
        good when it satisfies the approximate Wolfe conditions (Hager and Zhang 2005), which look at slopes alone:
        differences of objectives drown in rounding near the minimum.
        """
        first = float((gradient * direction).sum())
        if not first < 0:
            return None
        pulled = float((penalty * weights * direction).sum())
        stiffness = float((penalty * direction.square()).sum())
        low, high, length = 0.0, float("inf"), 1.0
        for _ in range(_TRIALS):
            residual = self._residual(logits + length * along)
            here = float((residual * along).sum()) + pulled + length * stiffness
            if 0.9 * first <= here <= -0.8 * first:
                return length, residual
            low, high = (low, length) if here > 0 else (length, high)
            newton = length - here / max(self._bend(residual, along) + stiffness, 1e-300)
            between = (low + high) / 2 if high < float("inf") else 2 * length
            length = newton if low < newton < min(high, 8 * length) else between
        return None

    def _residual(self, logits: Float[Tensor, "K N"]) -> Float[Tensor, "K N"]:
        """Probabilities less targets, to full relative precision however sure the probabilities are."""
        if self._exclusive:
            wrong = logits.softmax(dim=0) * (1 - self._targets)
            return wrong - self._targets * wrong.sum(dim=0)
        sign = 1 - 2 * self._targets
        return sign * (sign * logits).sigmoid()

    def _loss(self, residual: Float[Tensor, "K N"]) -> float:
        """The sum of losses; one of more than 15 nats counts as about 15."""
        missed = -(self._targets * residual).sum(dim=0) if self._exclusive else residual.abs()
        return -float(missed.clamp(max=1 - 2**-22).neg().log1p().sum())

    def _bend(self, residual: Float[Tensor, "K N"], along: Float[Tensor, "K N"]) -> float:
        """The second derivative of the loss along a line."""
        probs = residual + self._targets
        mean = (probs * along).sum(dim=0) if self._exclusive else probs * along
        return float((probs * along.square()).sum() - mean.square().sum())

    def _along_axes(self, fit: LogisticFit | None) -> Weights:
        if fit is None:
            return self._inputs.new_zeros(len(self._targets), self._inputs.shape[1])
        bias = fit.bias + fit.weight @ self._mean
        return torch.cat([fit.weight @ self._axes, bias[:, None]], dim=1)

    def _solution(self, weights: Weights, norm: float, iterations: int, converged: bool) -> LogisticFit:
        weight = weights[:, :-1] @ self._axes.T
        bias = weights[:, -1] - weight @ self._mean
        if self._exclusive:
            bias = bias - bias.mean()
        return LogisticFit(weight, bias, norm, iterations, converged)


def _principal_axes(
    features: Float[Tensor, "N D"], mean: Float[Tensor, " D"]
) -> tuple[Float[Tensor, " R"], Float[Tensor, "D R"]]:
    """Sums of squares along the principal axes, and these; at most N of them: no solution leaves their span.

    In float64: eigenvalues are the squares of what matters.
    """
    count, width = features.shape
    if count >= width:
        squares = features.new_zeros(width, width, dtype=torch.float64)
        for rows in torch.split(features, ROWS):
            centred = rows - mean
            squares += centred.T @ centred
        powers, axes = torch.linalg.eigh(squares)
        return powers, axes
    span, triangle = torch.linalg.qr((features - mean).T.double())
    powers, inner = torch.linalg.eigh(triangle @ triangle.T)
    return powers, span @ inner


def _inverse_hessian_times(gradient: Weights, memory: list[tuple[Weights, Weights]], precondition: Divide) -> Weights:
    """L-BFGS's estimate of the inverse Hessian times the gradient: the two-loop recursion (Nocedal 1980)."""
    vector = gradient
    shares = []
    for step, change in reversed(memory):
        share = (step * vector).sum() / (step * change).sum()
        vector = vector - share * change
        shares.append(share)
    vector = precondition(vector)
    if memory:
        step, change = memory[-1]
        vector = vector * ((step * change).sum() / (change * precondition(change)).sum())
    for (step, change), share in zip(memory, reversed(shares), strict=True):
        vector = vector + step * (share - (change * vector).sum() / (step * change).sum())
    return vector


def _check(features: Float[Tensor, "N D"], targets: Targets, num_classes: int | None) -> None:
    if len(features) == 0:
        raise ValueError("there are no pictures to fit a logistic regression to.")
    if len(targets) != len(features):
        raise ValueError(f"there are {len(features)} pictures and labels for {len(targets)}: each picture needs one.")
    if not features.isfinite().all():
        raise ValueError("the features hold NaN or infinity: the backbone's weights are damaged.")
    if targets.ndim == 2:
        if targets.shape[1] == 0:
            raise ValueError("there are no classes to tell apart: targets must have a column for each.")
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        allowed = "from 0 on" if num_classes is None else f"in 0..{num_classes - 1}"
        raise ValueError(f"labels run from {low} to {high}: they must be class numbers {allowed}.")
    if low == high:
        raise ValueError(
            f"all {len(features)} labelled pictures are of one class (number {low}), so there is nothing to tell "
            "apart: logistic regression needs two or more."
        )
