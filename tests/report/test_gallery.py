import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from mira.report.gallery import largest_prototypes, prototype_use, random_neighbourhoods
from mira.report.thumbnails import SIDE, thumbnail

PROBS = torch.tensor([[0.6, 0.4, 0.0], [0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0], [0.7, 0.2, 0.1]])


def test_prototypes_by_size_with_their_most_confident_pictures_first() -> None:
    first, second = largest_prototypes(PROBS, torch.tensor([1, 1, 0, 2, 1]), examples=3)
    assert (first.prototype, first.share, first.members) == (0, 0.8, (1, 3, 4))
    assert (first.top_class, first.purity) == (1, 0.75)  # of all four pictures, not of the three shown
    assert (second.prototype, second.members, second.top_class, second.purity) == (1, (2,), 0, 1.0)


def test_empty_prototypes_are_not_shown_and_labels_not_needed() -> None:
    groups = largest_prototypes(PROBS)
    assert [group.prototype for group in groups] == [0, 1]
    assert {(group.top_class, group.purity) for group in groups} == {(None, None)}
    assert [group.prototype for group in largest_prototypes(PROBS, count=1)] == [0]
    use = prototype_use(PROBS)
    assert (use.prototypes, use.images, use.used, use.half, use.half_share) == (3, 5, 2, 1, pytest.approx(0.8))


def test_neighbours_are_the_nearest_without_the_picture_itself() -> None:
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    features[10] = features[20] * 3  # as near as the picture itself
    cosine = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=2).fill_diagonal_(-2)
    found = random_neighbourhoods(features, count=60, neighbours=4)
    assert sorted(one.query for one in found) == list(range(60))
    for one in found:
        highest = cosine[one.query].sort(descending=True).values[:4]
        assert len(set(one.neighbours)) == 4
        torch.testing.assert_close(cosine[one.query, list(one.neighbours)], highest)
        torch.testing.assert_close(torch.tensor(one.similarities), highest)


def test_queries_are_drawn_by_the_seed() -> None:
    features = torch.randn(50, 3)
    queries = lambda seed: [one.query for one in random_neighbourhoods(features, seed=seed)]  # noqa: E731
    assert queries(0) == queries(0) != queries(1)


def test_few_pictures_have_few_neighbours() -> None:
    assert random_neighbourhoods(torch.randn(1, 3)) == []
    assert [len(one.neighbours) for one in random_neighbourhoods(torch.randn(3, 3))] == [2, 2, 2]
    identical = random_neighbourhoods(torch.ones(5, 3), neighbours=2)
    assert all(one.query not in one.neighbours and len(one.neighbours) == 2 for one in identical)


def decode(address: str) -> tuple[str, np.ndarray]:
    head, _, data = address.partition(";base64,")
    return head, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_small_pictures_are_kept_to_the_bit() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    head, pixels = decode(thumbnail(picture))
    assert head == "data:image/png"
    np.testing.assert_array_equal(pixels, picture[:, :, 0])


@pytest.mark.parametrize("shape", [(300, 500, 3), (500, 300, 3), (90, 90, 1)])
def test_large_ones_are_cut_to_their_central_square_and_made_small(shape: tuple[int, int, int]) -> None:
    picture = np.zeros(shape, np.uint8)
    square = min(shape[:2])
    top, left = (shape[0] - square) // 2, (shape[1] - square) // 2
    picture[top : top + square, left : left + square] = 200
    address = thumbnail(picture)
    head, pixels = decode(address)
    assert head == "data:image/webp"
    assert pixels.shape == (SIDE, SIDE, 3)
    assert abs(pixels.astype(int) - 200).max() < 8  # nothing black from outside the square
    assert len(address) < 20_000
