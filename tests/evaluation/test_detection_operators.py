"""torchvision's operators in plain PyTorch, against their definitions taken literally."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mira._torchvision as operators


def overlap(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    total = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / total


def greedy(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(overlap(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


@given(st.integers(0, 60), st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.integers(0, 10_000), st.booleans())
@settings(deadline=None, max_examples=60)
def test_nms_is_the_greedy_one(count: int, threshold: float, seed: int, equal_scores: bool) -> None:
    rng = np.random.default_rng(seed)
    # Corners on a grid of quarters, where areas and shares are exact and boxes often coincide.
    corners = rng.integers(0, 24, (count, 2)) / 4
    boxes = torch.from_numpy(np.concatenate([corners, corners + rng.integers(1, 24, (count, 2)) / 4], 1)).float()
    scores = torch.from_numpy(rng.integers(0, 4, count) / 4 if equal_scores else rng.random(count)).float()
    kept = operators.nms(boxes, scores, threshold)
    assert kept.tolist() == greedy(boxes.double().tolist(), scores.tolist(), threshold)


def test_nms_follows_a_chain_to_its_end() -> None:
    """Each box suppresses the next one alone, so that what stays is every other box, however long the chain."""
    left = torch.arange(50.0) * 4
    boxes = torch.stack([left, torch.zeros(50), left + 10, torch.ones(50)], dim=1)
    assert operators.nms(boxes, torch.linspace(1, 0, 50), 0.4).tolist() == list(range(0, 50, 2))


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """As in the operator's definition: nothing beyond one pixel outside, the border's value up to there."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = math.floor(y), math.floor(x)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = plane[top, left] * (1 - across) + plane[top, right] * across
    lower = plane[below, left] * (1 - across) + plane[below, right] * across
    return float(upper * (1 - down) + lower * down)


def literal_roi_align(
    planes: np.ndarray, rois: np.ndarray, scale: float, size: tuple[int, int], ratio: int, aligned: bool
) -> np.ndarray:
    pooled = np.zeros((len(rois), planes.shape[1], *size))
    offset = 0.5 if aligned else 0.0
    for k, (picture, *edges) in enumerate(rois):
        x1, y1, x2, y2 = (edge * scale - offset for edge in edges)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        down, across = (ratio, ratio) if ratio > 0 else (math.ceil(height / size[0]), math.ceil(width / size[1]))
        for c, i, j in np.ndindex(pooled.shape[1:]):
            samples = [
                bilinear(
                    planes[int(picture), c],
                    y1 + height / size[0] * (i + (a + 0.5) / down),
                    x1 + width / size[1] * (j + (b + 0.5) / across),
                )
                for a in range(down)
                for b in range(across)
            ]
            pooled[k, c, i, j] = np.mean(samples)
    return pooled


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    ("size", "ratio", "scale"), [((2, 3), 2, 1.0), ((3, 2), 1, 0.25), ((1, 1), 3, 0.5), ((2, 3), -1, 1.0)]
)
def test_roi_align_is_its_definition(aligned: bool, size: tuple[int, int], ratio: int, scale: float) -> None:
    rng = np.random.default_rng(0)
    planes = rng.normal(size=(3, 2, 7, 9))
    rois = np.concatenate([rng.integers(0, 3, (20, 1)), rng.uniform(-4, 12, (20, 4)) / scale], axis=1)
    rois[:, 3:] = rois[:, 1:3] + rng.uniform(0.1, 8, (20, 2)) / scale  # some tiny, some far outside
    found = operators.roi_align(torch.from_numpy(planes), torch.from_numpy(rois), scale, *size, ratio, aligned)
    np.testing.assert_allclose(found, literal_roi_align(planes, rois, scale, size, ratio, aligned), atol=1e-12)


def test_roi_align_has_the_right_gradient() -> None:
    planes = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 0.3, 0.4, 3.1, 2.9], [1, 1.2, 0.1, 4.6, 3.7], [1, 0, 0, 1, 1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda given: operators.roi_align(given, rois, 1.0, 2, 2, 2, False), planes)


def test_no_boxes_are_no_trouble() -> None:
    assert operators.nms(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)
    assert operators.roi_align(torch.zeros(1, 3, 4, 4), torch.zeros(0, 5), 1.0, 2, 2, 2, False).shape == (0, 3, 2, 2)


def test_torchvision_uses_them_or_its_own() -> None:
    """Through torchvision's front doors: here or on any machine, compiled or not."""
    operators.complete_operators()
    operators.complete_operators()  # twice does no harm
    from torchvision.ops import MultiScaleRoIAlign, batched_nms, roi_align

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10]])
    kept = batched_nms(boxes, torch.tensor([0.5, 0.9, 0.7]), torch.tensor([0, 0, 1]), 0.5)
    assert kept.tolist() == [1, 2]
    planes = torch.randn(1, 2, 8, 8)
    rois = torch.tensor([[0.0, 1.5, 2, 6, 7]])
    np.testing.assert_allclose(
        roi_align(planes, rois, (2, 2), 1.0, 2),
        literal_roi_align(planes.double().numpy(), rois.double().numpy(), 1.0, (2, 2), 2, False),
        atol=1e-5,
    )
    pool = MultiScaleRoIAlign(["0"], 2, 2)
    assert pool({"0": planes}, [boxes[:2]], [(8, 8)]).shape == (2, 2, 2, 2)
