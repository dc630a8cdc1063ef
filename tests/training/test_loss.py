import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mira.training.loss import swapped_prediction_loss


def by_definition(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Over targets, over other views, over pictures: cross-entropy, each a mean."""
    targets = []
    for g in range(len(labels)):
        crops = [torch.nn.functional.cross_entropy(logits[v], labels[g]) for v in range(len(logits)) if v != g]
        targets.append(torch.stack(crops).mean())
    return torch.stack(targets).mean()


@given(st.integers(1, 2), st.integers(2, 5), st.integers(1, 6), st.integers(1, 7), st.integers(0, 99))
def test_equals_the_definition_with_its_gradient(g: int, v: int, n: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.softmax(torch.randn(g, n, k, generator=generator, dtype=torch.float64), -1)
    logits = torch.randn(v, n, k, generator=generator, dtype=torch.float64, requires_grad=True)
    ours, theirs = swapped_prediction_loss(labels, logits), by_definition(labels, logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_at_least_the_entropy_of_the_labels() -> None:
    # Gibbs: predicting with anything but the labels themselves costs more than their entropy.
    generator = torch.Generator().manual_seed(0)
    probs = torch.softmax(torch.randn(1, 50, 8, generator=generator, dtype=torch.float64), -1)
    labels = probs.expand(2, -1, -1)
    entropy = -(probs * probs.log()).sum(-1).mean()
    exact = swapped_prediction_loss(labels, probs.log().expand(4, -1, -1))
    torch.testing.assert_close(exact, entropy)
    other = torch.randn(4, 50, 8, generator=generator, dtype=torch.float64)
    assert swapped_prediction_loss(labels, other) > entropy


def test_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two views"):
        swapped_prediction_loss(torch.full((1, 2, 3), 1 / 3), torch.zeros(1, 2, 3))
