import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn import metrics
from sklearn.cluster import KMeans as ScikitKMeans
from sklearn.datasets import make_blobs

from mira.assignment.information import mutual_information
from mira.evaluation import clusters
from mira.evaluation.health import alpha_req, prototype_health, rank_me
from mira.evaluation.kmeans import kmeans

numbers = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(-3, 9), min_size=n, max_size=n) for _ in range(2)))
)


@settings(max_examples=150, deadline=None)
@given(numbers)
def test_agreement_is_scikit_learns(pair: tuple[list[int], list[int]]) -> None:
    labels, groups = pair
    table = clusters.contingency(torch.tensor(labels), torch.tensor(groups))
    close = pytest.approx
    assert clusters.normalised_mutual_information(table) == close(
        metrics.normalized_mutual_info_score(labels, groups), abs=1e-9
    )
    # scikit-learn divides rounding by rounding where chance can do no worse than the truth.
    ami = clusters.adjusted_mutual_information(table)
    theirs = metrics.adjusted_mutual_info_score(labels, groups)
    assert ami == close(theirs, abs=1e-7) or (ami == 1.0 and len(set(labels)) == len(set(groups)) == len(labels))
    assert clusters.adjusted_rand_index(table) == close(metrics.adjusted_rand_score(labels, groups), abs=1e-9)
    rows, columns = linear_sum_assignment(table, maximize=True)
    assert clusters.hungarian_accuracy(table) == close(table[rows, columns].sum() / len(labels))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000), st.sampled_from([2, 50, 10**9]))
def test_matching_has_the_greatest_weight_there_is(rows: int, columns: int, seed: int, highest: int) -> None:
    weights = np.random.default_rng(seed).integers(0, highest, (rows, columns))
    pairs = clusters.maximum_matching(weights)
    assert len(pairs) == min(rows, columns)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    best = weights[linear_sum_assignment(weights, maximize=True)].sum()
    assert sum(weights[pair] for pair in pairs) == best


def test_matching_of_many_prototypes_to_a_thousand_classes_is_quick() -> None:
    weights = np.random.default_rng(0).poisson(0.4, (1000, 3000))
    pairs = clusters.maximum_matching(weights)
    assert sum(weights[pair] for pair in pairs) == weights[linear_sum_assignment(weights, maximize=True)].sum()


def test_purity_names_each_cluster_after_its_majority() -> None:
    table = clusters.contingency(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([5, 5, 5, 7, 8]))
    assert clusters.majority_accuracy(table) == pytest.approx(4 / 5)


@pytest.mark.parametrize(("labels", "groups"), [([0, 1], [0]), ([], [])])
def test_mistakes_get_a_sentence(labels: list[int], groups: list[int]) -> None:
    with pytest.raises(ValueError, match="2 labels and 1 cluster numbers|there are no pictures"):
        clusters.contingency(torch.tensor(labels, dtype=torch.int64), torch.tensor(groups, dtype=torch.int64))


class TestKMeans:
    points = torch.from_numpy(make_blobs(500, n_features=6, centers=5, cluster_std=1.5, random_state=0)[0]).float()

    def test_as_tight_as_scikit_learns(self) -> None:
        ours = kmeans(self.points, 5, seed=0, l2_normalise=False)
        theirs = ScikitKMeans(5, n_init=5, random_state=0).fit(self.points.numpy())
        assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-4)
        assert metrics.adjusted_rand_score(theirs.labels_, ours.assignments) == pytest.approx(1.0)

    def test_at_a_fixed_point(self) -> None:
        found = kmeans(self.points, 8, seed=1, l2_normalise=False)
        distances = torch.cdist(self.points.double(), found.centres.double())
        assert torch.equal(distances.argmin(dim=1), found.assignments)
        assert found.inertia == pytest.approx(distances.min(dim=1).values.square().sum().item(), rel=1e-4)
        for cluster in range(8):
            members = self.points[found.assignments == cluster]
            torch.testing.assert_close(members.mean(dim=0), found.centres[cluster])

    def test_the_seed_decides_everything(self) -> None:
        first, again = (kmeans(self.points, 20, seed=2, restarts=2) for _ in range(2))
        assert torch.equal(first.assignments, again.assignments)
        assert torch.equal(first.centres, again.centres)

    def test_lengths_do_not_matter_when_normalised(self) -> None:
        longer = self.points * torch.rand(500, 1, generator=torch.Generator().manual_seed(0)).add(0.5).mul(8)
        assert metrics.adjusted_rand_score(
            kmeans(self.points, 5).assignments, kmeans(longer, 5).assignments
        ) == pytest.approx(1.0)

    def test_fewer_distinct_points_than_clusters(self) -> None:
        found = kmeans(torch.eye(2).repeat(5, 1), 4)
        assert found.inertia == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize("k", [0, 501])
    def test_an_impossible_number_of_clusters_gets_a_sentence(self, k: int) -> None:
        with pytest.raises(ValueError, match=f"cannot make {k} clusters of 500 pictures"):
            kmeans(self.points, k)

    def test_damaged_features_get_a_sentence(self) -> None:
        with pytest.raises(ValueError, match="NaN or infinity"):
            kmeans(torch.full((3, 2), torch.nan), 2)


def test_chance_has_no_adjusted_information_however_many_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, groups = (torch.randint(most, (4000,), generator=generator) for most in (10, 300))
    table = clusters.contingency(labels, groups)
    assert clusters.normalised_mutual_information(table) > 0.05
    assert abs(clusters.adjusted_mutual_information(table)) < 0.01
    assert clusters.adjusted_mutual_information(table) == pytest.approx(
        metrics.adjusted_mutual_info_score(labels, groups), abs=1e-9
    )


class TestRankMe:
    @pytest.mark.parametrize("shape", [(300, 20), (20, 300), (64, 64), (1, 5)])
    def test_equals_a_direct_svd(self, shape: tuple[int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        spectrum = torch.logspace(0, -6, shape[1])
        features = torch.randn(shape, generator=generator) * spectrum
        singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
        shares = singular / singular.sum() + 1e-7
        assert rank_me(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)

    def test_orthogonal_features_have_full_rank_and_collapsed_ones_rank_one(self) -> None:
        assert rank_me(torch.eye(16)) == pytest.approx(16, rel=1e-4)
        assert rank_me(torch.ones(50, 1) * torch.randn(8)) == pytest.approx(1, abs=1e-3)
        assert rank_me(torch.zeros(4, 4)) == 1.0

    def test_mistakes_get_a_sentence(self) -> None:
        with pytest.raises(ValueError, match="there are none"):
            rank_me(torch.empty(0, 4))
        with pytest.raises(ValueError, match="NaN or infinity"):
            rank_me(torch.tensor([[1.0, torch.inf]]))


class TestAlphaReq:
    @pytest.mark.parametrize("shape", [(400, 120), (120, 400)])
    @pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
    def test_recovers_the_exponent_of_a_spectrum_made_for_it(self, shape: tuple[int, int], alpha: float) -> None:
        generator = torch.Generator().manual_seed(0)
        rank = min(shape) - 1
        noise = torch.randn(shape[0], rank, generator=generator, dtype=torch.float64)
        left, _ = torch.linalg.qr(noise - noise.mean(dim=0))  # centred and orthonormal
        right, _ = torch.linalg.qr(torch.randn(shape[1], rank, generator=generator, dtype=torch.float64))
        spectrum = torch.arange(1, rank + 1, dtype=torch.float64) ** (-alpha / 2)
        features = left * spectrum @ right.T + 5.0  # a common offset is no variance
        assert alpha_req(features) == pytest.approx(alpha, abs=1e-6)

    def test_is_the_slope_that_numpy_fits(self) -> None:
        features = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 64)
        eigenvalues = np.linalg.eigvalsh(np.cov(features.double().numpy().T))[::-1][4:40]
        slope, _ = np.polyfit(np.log(np.arange(5, 41)), np.log(eigenvalues), 1)
        assert alpha_req(features, first=5, last=40) == pytest.approx(-slope, rel=1e-6)

    def test_too_few_directions_have_no_exponent(self) -> None:
        assert alpha_req(torch.randn(50, 1) * torch.randn(8)) is None
        assert alpha_req(torch.ones(5, 3)) is None
        with pytest.raises(ValueError, match="alpha-ReQ needs features"):
            alpha_req(torch.empty(0, 4))


def test_prototype_health_is_information_of_the_softmax() -> None:
    logits = 5 * torch.randn(300, 7, generator=torch.Generator().manual_seed(0))
    logits[:, 6] = -50
    measured, count = prototype_health(logits, lambda part: part, batch_size=64)
    probs = logits.double().softmax(dim=1)
    assert count == 7
    assert measured["label information, nats"] == pytest.approx(float(mutual_information(probs)), abs=1e-9)
    marginal = probs.mean(dim=0)
    assert measured["marginal entropy, nats"] == pytest.approx(float(-(marginal * marginal.log()).sum()), abs=1e-9)
    assert measured["prototypes in use, %"] == pytest.approx(100 * 6 / 7)
