"""Average precision on cases worked out by hand."""

import importlib.util

import numpy as np
import pytest

from mira.evaluation.detection.scoring import average_precision, encode_masks


def truth(*objects: dict) -> dict:
    return {
        "images": [{"id": 5, "width": 100, "height": 100}, {"id": 6, "width": 100, "height": 100}],
        "categories": [{"id": 3, "name": "disc"}, {"id": 4, "name": "never"}],
        "annotations": [
            {"id": number, "category_id": 3, "iscrowd": 0, "area": one["bbox"][2] * one["bbox"][3], **one}
            for number, one in enumerate(objects, start=1)
        ],
    }


def found(image: int, score: float, *box: float) -> dict:
    return {"image_id": image, "category_id": 3, "score": score, "bbox": list(box)}


THREE = (
    {"image_id": 5, "bbox": [0, 0, 10, 10]},
    {"image_id": 5, "bbox": [50, 50, 10, 16]},
    {"image_id": 6, "bbox": [20, 20, 30, 30]},
)


def test_ap_of_a_ranking_worked_out_by_hand() -> None:
    """Right, wrong, right at IoU 100/160, and one object not found.

    Precision is 1 up to a recall of 1/3, which are 34 of COCO's 101 points; at IoU 0.50, 0.55 and 0.60 it is 2/3 on
    to a recall of 2/3, 33 points more.
    """
    detections = [found(5, 0.9, 0, 0, 10, 10), found(6, 0.8, 70, 70, 10, 10), found(5, 0.7, 50, 50, 10, 10)]
    low, high = (34 + 33 * 2 / 3) / 101, 34 / 101
    values = average_precision(truth(*THREE), detections, "bbox")
    assert values == pytest.approx({"AP": 100 * (3 * low + 7 * high) / 10, "AP50": 100 * low, "AP75": 100 * high})


def test_what_is_found_on_a_difficult_object_or_a_crowd_does_not_count() -> None:
    for mark in ("difficult", "iscrowd"):
        objects = (*THREE[:1], {**THREE[2], mark: 1})
        detections = [found(6, 0.95, 20, 20, 30, 30), found(6, 0.93, 21, 20, 29, 30), found(5, 0.9, 0, 0, 10, 10)]
        assert average_precision(truth(*objects), detections, "bbox")["AP"] == pytest.approx(100)
    wrong = average_precision(truth(*THREE[:1]), detections, "bbox")["AP50"]
    assert wrong == pytest.approx(100 / 3)  # without the mark they are two mistakes before the hit


def test_masks_are_compared_as_masks() -> None:
    """Two triangles of one square share its bounding box and hardly a pixel."""
    upper = np.triu(np.ones((40, 40), np.uint8))
    lower = np.tril(np.ones((40, 40), np.uint8), -1)
    canvas = np.zeros((2, 100, 100), np.uint8)
    canvas[0, 10:50, 10:50], canvas[1, 10:50, 10:50] = upper, lower
    outlines = encode_masks(canvas)
    content = truth({"image_id": 5, "bbox": [10, 10, 40, 40], "segmentation": outlines[0]})
    for outline, expected in zip(outlines, (100, 0), strict=True):
        detection = {"image_id": 5, "category_id": 3, "score": 0.5, "segmentation": outline}
        assert average_precision(content, [detection], "segm")["AP"] == pytest.approx(expected)
        box = {**found(5, 0.5, 10, 10, 40, 40)}
        assert average_precision(content, [box], "bbox")["AP"] == pytest.approx(100)


def test_nothing_found_is_zero_and_nothing_to_find_is_no_value() -> None:
    assert average_precision(truth(*THREE), [], "bbox") == {"AP": 0, "AP50": 0, "AP75": 0}
    nothing = average_precision(truth(), [found(5, 0.9, 0, 0, 10, 10)], "bbox")
    assert nothing == {"AP": None, "AP50": None, "AP75": None}


def test_inputs_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    content, detections = truth(*THREE), [found(5, 0.9, 0, 0, 10, 10)]
    before = repr((content, detections))
    average_precision(content, detections, "bbox")
    assert repr((content, detections)) == before
    assert capsys.readouterr().out == ""


def test_pycocotools_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(ValueError, match=r"scored with pycocotools: .*mira-ssl\[detection\]"):
        average_precision(truth(*THREE), [], "bbox")
