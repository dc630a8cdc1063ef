"""What protocols are measured in; all values are percent."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor

Points = Literal["11", "all"]


def top_k_accuracy(scores: Float[Tensor, "N K"], labels: Int64[Tensor, " _"], *, k: int = 1) -> float:
    """How often the label is among the k classes of highest score; of equal scores the lower class number is first.

    Raises:
        ValueError: no pictures, not one label each, k outside 1..K, or a score that is NaN.
    """
    _check(scores, labels)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"top-{k} needs at least {k} classes and k from 1 on: there are {scores.shape[1]}.")
    own = scores.gather(1, labels[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    rank = (scores > own).sum(dim=1) + ((scores == own) & before).sum(dim=1)
    return 100 * float((rank < k).double().mean())


def mean_per_class_accuracy(scores: Float[Tensor, "N K"], labels: Int64[Tensor, " _"]) -> float:
    """The accuracy within each class, averaged over the classes that have pictures (balanced accuracy).

    Raises:
        ValueError: no pictures, not one label each, or a score that is NaN.
    """
    _check(scores, labels)
    hits = (scores.argmax(dim=1) == labels).double()
    classes = scores.shape[1]
    pictures = torch.bincount(labels, minlength=classes)
    found = torch.zeros(classes, dtype=torch.float64, device=scores.device).index_add_(0, labels, hits)
    return 100 * float((found / pictures)[pictures > 0].mean())


def average_precision(scores: Float[Tensor, " N"], relevant: Bool[Tensor, " _"], *, points: Points = "11") -> float:
    """Average precision of a ranking by score, highest first; pictures of equal score enter it together.

    Args:
        relevant: which pictures show the class.
        points: "11" averages the highest precision at a recall of at least 0, 0.1, ..., 1 (PASCAL VOC 2007,
            Everingham et al. 2010, section 4.2); "all" is the area under the precision-recall steps,
            sum (R_n - R_(n-1)) P_n, as scikit-learn's `average_precision_score`.

    Raises:
        ValueError: no relevant picture, not one value for each score, or a score that is NaN.
    """
    _check(scores, relevant)
    positives = int(relevant.sum())
    if positives == 0:
        raise ValueError("average precision needs at least one picture that shows the class: there is none.")
    ordered, order = scores.sort(descending=True, stable=True)
    hits = relevant[order].double().cumsum(dim=0)
    last = torch.ones_like(relevant)  # of the pictures that share a score
    last[:-1] = ordered[1:] != ordered[:-1]
    precision = (hits / torch.arange(1, len(hits) + 1, device=hits.device))[last]
    found = hits[last]
    if points == "all":
        steps = found.diff(prepend=found.new_zeros(1)) / positives
        return 100 * float((steps * precision).sum())
    # In whole numbers: a recall of 3/10 must count as 0.3.
    best = [precision[10 * found >= tenth * positives].max() for tenth in range(11)]
    return 100 * float(torch.stack(best).mean())


def mean_average_precision(
    scores: Float[Tensor, "N K"],
    relevant: Bool[Tensor, "_ _"],
    *,
    points: Points = "11",
    counted: Bool[Tensor, "_ _"] | None = None,
) -> float:
    """Average precision, averaged over the classes that some picture shows.

    Args:
        relevant: which picture shows which class.
        counted: which pictures count for which class; all by default. VOC leaves out those that show a class only in
            objects marked as difficult.

    Raises:
        ValueError: unequal shapes, no class that any counted picture shows, or a score that is NaN.
    """
    counted = torch.ones_like(relevant) if counted is None else counted
    for name, given in (("relevant", relevant), ("counted", counted)):
        if given.shape != scores.shape:
            raise ValueError(f"scores are {list(scores.shape)} and {name} is {list(given.shape)}: they must agree.")
    shown = [k for k in range(scores.shape[1]) if (relevant & counted)[:, k].any()]
    if not shown:
        raise ValueError("no picture shows any of the classes: mean average precision needs labelled pictures.")
    values = [average_precision(scores[counted[:, k], k], relevant[counted[:, k], k], points=points) for k in shown]
    return sum(values) / len(values)


def _check(scores: Float[Tensor, "N ..."], targets: Num[Tensor, " _"] | Bool[Tensor, " _"]) -> None:
    if len(scores) == 0 or len(targets) != len(scores):
        raise ValueError(f"there are {len(scores)} pictures with {len(targets)} labels: each needs one.")
    if scores.isnan().any():
        raise ValueError("the scores hold NaN: the training of the classifier diverged; lower its learning rate.")
    if targets.dtype is torch.int64 and not 0 <= int(targets.min()) <= int(targets.max()) < scores.shape[1]:
        raise ValueError(
            f"labels run from {int(targets.min())} to {int(targets.max())} and there are scores for "
            f"{scores.shape[1]} classes."
        )
