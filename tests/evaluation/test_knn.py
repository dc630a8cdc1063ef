import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mira.evaluation.knn import knn_accuracy, knn_predict
from mira.evaluation.subsets import labelled_subset


def blobs(count: int, width: int, classes: int, *, seed: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99), dtype=dtype)
    return centres[labels] + 2 * torch.randn(count, width, generator=generator, dtype=dtype), labels


@pytest.mark.parametrize("temperature", [0.07, 0.001, 10.0])
def test_agrees_with_scikit_learn_to_the_vote(temperature: float) -> None:
    bank, labels = blobs(600, 16, 7, seed=0)
    queries, _ = blobs(250, 16, 7, seed=1)
    predicted = knn_predict(bank, labels, queries, k=(1, 10, 20, 100), temperature=temperature, num_classes=7)
    unit = lambda x: (x / x.norm(dim=1, keepdim=True)).numpy()  # noqa: E731
    for k, ours in predicted.items():
        # scikit-learn gives cosine distance 1 - s; the constant exp(1 / T) is common to all votes.
        theirs = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((d.min(1, keepdims=True) - d) / temperature)
        )
        theirs.fit(unit(bank), labels.numpy())
        np.testing.assert_array_equal(ours.numpy(), theirs.predict(unit(queries)))


def test_one_pass_for_several_k_equals_one_pass_for_each() -> None:
    bank, labels = blobs(300, 8, 4, seed=0, dtype=torch.float32)
    queries, _ = blobs(90, 8, 4, seed=1, dtype=torch.float32)
    together = knn_predict(bank, labels, queries, k=(50, 5, 20), temperature=0.07, num_classes=4)
    assert list(together) == [50, 5, 20]
    for k, predicted in together.items():
        alone = knn_predict(bank, labels, queries, k=[k], temperature=0.07, num_classes=4)[k]
        assert torch.equal(predicted, alone)


def test_equal_votes_go_to_the_lower_class() -> None:
    bank = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    predicted = knn_predict(
        bank, torch.tensor([2, 1, 0]), torch.tensor([[3.0, 0]]), k=[1, 2, 3], temperature=0.07, num_classes=3
    )
    assert {k: int(value) for k, value in predicted.items()} == {1: 2, 2: 1, 3: 1}


def test_accuracy_counts_hits() -> None:
    bank = torch.eye(4)
    accuracy = knn_accuracy(bank, torch.arange(4), bank, torch.tensor([0, 1, 2, 0]), k=[1, 4])
    assert accuracy == {1: 75.0, 4: 75.0}
    assert knn_accuracy(bank, torch.arange(4), bank, torch.tensor([9, 9, 9, 9]), k=[1]) == {1: 0.0}


BANK, LABELS = torch.eye(5), torch.tensor([0, 1, 0, 1, 0])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": [6]}, "k is 6 and the bank has 5 pictures: choose k from 1 to 5"),
        ({"k": [0]}, "k must be at least 1, not 0"),
        ({"k": []}, "k names no number of neighbours"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"bank_labels": None}, "needs labels and the bank pictures have none"),
        ({"query_labels": None}, "needs labels and the query pictures have none"),
        ({"bank_labels": torch.zeros(5, dtype=torch.int64)}, "all 5 labelled pictures are of one class"),
        ({"bank_labels": LABELS[:4]}, "the bank has 5 pictures and 4 labels"),
        ({"bank_labels": LABELS - 1}, "labels run from -1 to 0"),
        ({"query_labels": LABELS[:4]}, "5 query pictures with 4 labels"),
        ({"queries": torch.eye(5)[:, :3]}, "bank features are 5 wide and query features 3"),
        ({"queries": torch.eye(5)[:0], "query_labels": LABELS[:0]}, "0 query pictures"),
        ({"bank": torch.eye(5)[:0], "bank_labels": LABELS[:0]}, "the bank is empty"),
        ({"bank": torch.eye(5) * torch.nan}, "the bank features hold NaN or infinity"),
        ({"queries": torch.eye(5) / 0.0}, "the query features hold NaN or infinity"),
    ],
)
def test_mistakes_get_a_sentence(change, sentence: str) -> None:
    good = {"bank": BANK, "bank_labels": LABELS, "queries": BANK, "query_labels": LABELS, "k": [3], "temperature": 1.0}
    assert knn_accuracy(**good)
    with pytest.raises(ValueError, match=sentence):
        knn_accuracy(**(good | change))


class TestLabelledSubset:
    labels = torch.tensor([0] * 300 + [1] * 50 + [2] * 3 + [-1] * 20)

    def test_every_class_keeps_its_share_and_at_least_one(self) -> None:
        kept = self.labels[labelled_subset(self.labels, 0.1, seed=0)].tolist()
        assert [kept.count(label) for label in (0, 1, 2, -1)] == [30, 5, 1, 2]

    def test_nested_ascending_and_decided_by_the_seed(self) -> None:
        few, more = (labelled_subset(self.labels, fraction, seed=3) for fraction in (0.01, 0.1))
        assert set(few.tolist()) < set(more.tolist())
        assert torch.equal(more, more.unique())
        assert torch.equal(more, labelled_subset(self.labels, 0.1, seed=3))
        assert not torch.equal(more, labelled_subset(self.labels, 0.1, seed=4))

    def test_everything_is_everything(self) -> None:
        assert torch.equal(labelled_subset(self.labels, 1.0, seed=0), torch.arange(len(self.labels)))

    @pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
    def test_a_fraction_out_of_range_gets_a_sentence(self, fraction: float) -> None:
        with pytest.raises(ValueError, match="fraction must be above 0 and at most 1"):
            labelled_subset(self.labels, fraction, seed=0)
