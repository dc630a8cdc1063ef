import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as scikit

import mira._torchvision  # noqa: F401  isort: skip
from torchmetrics.functional import classification as torchmetrics

from mira.evaluation.metrics import (
    average_precision,
    mean_average_precision,
    mean_per_class_accuracy,
    top_k_accuracy,
)


def drawn(count: int, classes: int, seed: int, *, ties: bool = False):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    scores = (3 * scores).round() if ties else scores
    return scores, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_top_k_is_scikit_learns_and_torchmetrics(k: int) -> None:
    scores, labels = drawn(300, 7, 0)
    ours = top_k_accuracy(scores, labels, k=k)
    # (With k equal to the number of classes scikit-learn warns that the answer is 1.)
    theirs = scikit.top_k_accuracy_score(labels, scores, k=k, labels=range(7)) if k < 7 else 1.0
    assert ours == pytest.approx(100 * theirs)
    assert ours == pytest.approx(
        100 * float(torchmetrics.multiclass_accuracy(scores, labels, num_classes=7, average="micro", top_k=k))
    )


def test_of_equal_scores_the_lower_class_is_first() -> None:
    scores = torch.zeros(3, 3)
    assert top_k_accuracy(scores, torch.tensor([0, 1, 2])) == pytest.approx(100 / 3)
    assert top_k_accuracy(scores, torch.tensor([2, 1, 2]), k=2) == pytest.approx(100 / 3)


def test_mean_per_class_is_balanced_accuracy_and_passes_over_absent_classes() -> None:
    scores, labels = drawn(400, 6, 1)
    labels[labels == 4] = 0  # unequal classes, and one without pictures
    predicted = scores.argmax(dim=1)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = scikit.balanced_accuracy_score(labels, predicted)
    assert mean_per_class_accuracy(scores, labels) == pytest.approx(100 * balanced)
    assert mean_per_class_accuracy(scores, labels) != pytest.approx(top_k_accuracy(scores, labels))
    assert mean_per_class_accuracy(torch.eye(4)[[0, 0, 1]], torch.tensor([0, 0, 2])) == 50.0


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10_000), st.booleans())
def test_area_under_the_steps_is_scikit_learns(count: int, seed: int, ties: bool) -> None:
    scores, labels = drawn(count, 3, seed, ties=ties)
    relevant = labels == 0
    relevant[0] = True
    ours = average_precision(scores[:, 0], relevant, points="all")
    assert ours == pytest.approx(100 * scikit.average_precision_score(relevant, scores[:, 0]))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10_000), st.booleans())
def test_eleven_points_from_scikit_learns_curve(count: int, seed: int, ties: bool) -> None:
    scores, labels = drawn(count, 3, seed, ties=ties)
    relevant = labels == 0
    relevant[0] = True
    precision, recall, _ = scikit.precision_recall_curve(relevant, scores[:, 0])
    # The curve's last point (recall 0, precision 1) is a convention, not a ranking of any picture.
    precision, recall = precision[:-1], recall[:-1]
    best = [precision[recall >= tenth / 10 - 1e-9].max() for tenth in range(11)]
    assert average_precision(scores[:, 0], relevant) == pytest.approx(100 * np.mean(best))


def test_average_precision_of_a_hand_made_ranking() -> None:
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    relevant = torch.tensor([True, False, True, False])
    # Precision 1 up to recall 0.5, then 2/3: five-tenths and zero make six points, the other five are 2/3.
    assert average_precision(scores, relevant) == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)
    assert average_precision(scores, relevant, points="all") == pytest.approx(100 * (1 / 2 + 1 / 2 * 2 / 3))
    assert average_precision(scores, ~relevant, points="all") == pytest.approx(100 * (1 / 2 * 1 / 2 + 1 / 2 * 2 / 4))


def test_mean_average_precision_is_torchmetrics_and_leaves_out_what_does_not_count() -> None:
    scores, labels = drawn(200, 5, 3)
    relevant = torch.nn.functional.one_hot(labels, 5).bool() | (scores > 1.5)
    ours = mean_average_precision(scores, relevant, points="all")
    theirs = torchmetrics.multilabel_average_precision(scores.sigmoid(), relevant.long(), num_labels=5)
    assert ours == pytest.approx(100 * float(theirs), abs=1e-4)
    counted = torch.ones_like(relevant)
    counted[50:, 2] = False
    alone = [average_precision(scores[:, k], relevant[:, k]) for k in (0, 1, 3, 4)]
    alone.append(average_precision(scores[:50, 2], relevant[:50, 2]))
    assert mean_average_precision(scores, relevant, counted=counted) == pytest.approx(np.mean(alone))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: top_k_accuracy(torch.eye(3), torch.tensor([0, 1])), "3 pictures with 2 labels"),
        (lambda: top_k_accuracy(torch.eye(3), torch.tensor([0, 1, 3])), "labels run from 0 to 3 and there are scores"),
        (lambda: top_k_accuracy(torch.eye(3), torch.arange(3), k=4), "top-4 needs at least 4 classes"),
        (lambda: top_k_accuracy(torch.eye(3) * torch.nan, torch.arange(3)), "scores hold NaN"),
        (lambda: mean_per_class_accuracy(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)), "0 pictures"),
        (lambda: average_precision(torch.ones(2), torch.zeros(2, dtype=torch.bool)), "at least one picture"),
        (lambda: mean_average_precision(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool)), "no picture shows any"),
        (lambda: mean_average_precision(torch.ones(2, 2), torch.ones(2, 3, dtype=torch.bool)), "they must agree"),
    ],
)
def test_mistakes_get_a_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
