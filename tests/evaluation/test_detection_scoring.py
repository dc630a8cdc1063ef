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


def test_what_is_found_within_a_crowd_does_not_count() -> None:
    objects = (*THREE[:1], {**THREE[2], "iscrowd": 1})
    detections = [found(6, 0.95, 20, 20, 30, 30), found(6, 0.93, 21, 20, 9, 9), found(5, 0.9, 0, 0, 10, 10)]
    assert average_precision(truth(*objects), detections, "bbox")["AP"] == pytest.approx(100)
    wrong = average_precision(truth(*THREE[:1]), detections, "bbox")["AP50"]
    assert wrong == pytest.approx(100 / 3)  # without the crowd they are two mistakes before the hit


def test_what_is_found_on_a_difficult_object_does_not_count() -> None:
    """However often; but a detection that merely lies within it is a mistake, unlike one within a crowd."""
    objects = [{**one, "difficult": number == 2} for number, one in enumerate(THREE)]
    easy = [found(5, 0.5, *THREE[0]["bbox"]), found(5, 0.4, *THREE[1]["bbox"])]
    on_it = [found(6, 0.95, 20, 20, 30, 30), found(6, 0.93, 21, 20, 29, 30)]
    values = average_precision(truth(*objects), [*on_it, *easy], "bbox", rules="VOC2007")
    assert values == pytest.approx({"AP": 100, "AP50": 100, "AP75": 100})
    within = found(6, 0.95, 21, 20, 9, 9)
    values = average_precision(truth(*objects), [within, *easy], "bbox", rules="VOC2007")
    assert values["AP50"] == pytest.approx(100 * 2 / 3)
    only = [{**one, "difficult": True} for one in THREE]
    assert average_precision(truth(*only), on_it, "bbox", rules="VOC2007")["AP"] is None


def test_a_second_hit_is_a_mistake_by_the_rules_of_voc_though_another_object_is_near() -> None:
    """Two objects that share 80 of 120 pixels, both found by boxes nearest to the first."""
    objects = [{"image_id": 5, "bbox": [x, 0, 10, 10], "difficult": False} for x in (0, 2)]
    detections = [found(5, 0.9, 0, 0, 10, 10), found(5, 0.8, 0.5, 0, 10, 10)]
    assert average_precision(truth(*objects), detections, "bbox", rules="COCO")["AP50"] == pytest.approx(100)
    # A recall of a half, at a precision of 1: six of the points 0, 0.1, ..., 1.
    values = average_precision(truth(*objects), detections, "bbox", rules="VOC2007")
    assert values["AP50"] == pytest.approx(100 * 6 / 11)


def voc_ap(objects: list[dict], detections: list[dict], threshold: float) -> float:
    """As the text of VOC's development kit says it, object by object, for one class; no outside code."""
    free = [True] * len(objects)
    right, wrong, curve = 0, 0, []
    to_find = sum(not one["difficult"] for one in objects)
    for detection in sorted(detections, key=lambda one: -one["score"]):
        best, owner = 0.0, None
        for number, one in enumerate(objects):
            if one["image_id"] != detection["image_id"]:
                continue
            (x, y, w, h), (a, b, c, d) = one["bbox"], detection["bbox"]
            shared = max(0, min(x + w, a + c) - max(x, a)) * max(0, min(y + h, b + d) - max(y, b))
            if shared / (w * h + c * d - shared) > best:
                best, owner = shared / (w * h + c * d - shared), number
        if owner is not None and best >= threshold:
            if objects[owner]["difficult"]:
                continue
            right, wrong = (right + 1, wrong) if free[owner] else (right, wrong + 1)
            free[owner] = False
        else:
            wrong += 1
        curve.append((right / to_find, right / (right + wrong)))
    return sum(max([p for r, p in curve if r >= point / 10], default=0) for point in range(11)) / 11


@pytest.mark.parametrize("seed", range(6))
def test_the_rules_of_voc_are_those_of_its_development_kit(seed: int) -> None:
    """Crowded pictures, a third of the objects difficult, and boxes found several times, beside, or not at all."""
    rng = np.random.default_rng(seed)
    objects: list[dict] = []
    detections: list[dict] = []
    for image in (5, 6):
        for _ in range(12):
            box = [*rng.uniform(0, 30, 2), *rng.uniform(10, 30, 2)]
            objects.append({"image_id": image, "bbox": box, "difficult": bool(rng.random() < 1 / 3)})
            for _ in range(rng.integers(0, 4)):
                near = np.add(box, rng.normal(0, 2, 4)).tolist()
                detections.append(found(image, float(rng.random()), *near))
    values = average_precision(truth(*objects), detections, "bbox", rules="VOC2007")
    aps = [100 * voc_ap(objects, detections, threshold) for threshold in np.linspace(0.5, 0.95, 10)]
    assert values == pytest.approx({"AP": np.mean(aps), "AP50": aps[0], "AP75": aps[5]})
    assert average_precision(truth(*objects), detections, "bbox")["AP50"] != pytest.approx(values["AP50"])


def test_pictures_that_do_not_count_are_left_out() -> None:
    detections = [found(5, 0.9, 0, 0, 10, 10), found(5, 0.8, 50, 50, 10, 16), found(6, 0.95, 70, 70, 9, 9)]
    assert average_precision(truth(*THREE), detections, "bbox", pictures={5})["AP"] == pytest.approx(100)
    assert average_precision(truth(*THREE), detections, "bbox", pictures={6})["AP"] == 0
    assert average_precision(truth(*THREE), detections, "bbox", pictures=set())["AP"] is None


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
    with pytest.raises(ValueError, match=r"scored with pycocotools: .*`pip install pycocotools`"):
        average_precision(truth(*THREE), [], "bbox")
