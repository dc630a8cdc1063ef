"""Average precision by COCO's and by VOC's rules: pycocotools on objects in memory."""

import contextlib
import copy
import importlib.util
import io
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from mira.evaluation.detection.coco import Content
from mira.evaluation.detection.data import Rules


def average_precision(
    content: Content,
    detections: Sequence[dict[str, Any]],
    kind: Literal["bbox", "segm"],
    *,
    rules: Rules = "COCO",
    pictures: Collection[int] | None = None,
) -> dict[str, float | None]:
    """AP over IoU 0.50 to 0.95, AP at 0.50 and at 0.75, in percent, of all categories and sizes.

    By COCO's rules, what is found within a crowd counts neither for nor against. For VOC's see `voc_rules`.

    Args:
        content: the objects that there are, as `DetectionSet.content` has them.
        detections: of each its image_id, category_id, score, and bbox (x, y, width, height) or segmentation (RLE).
        kind: whether boxes or masks are compared.
        rules: whose.
        pictures: ids of the pictures that count; by default all.

    Returns:
        By "AP", "AP50" and "AP75"; None where there is no object to find.

    Raises:
        ValueError: pycocotools is missing.
    """
    require_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from mira.evaluation.detection.voc_rules import VocEval

    names = ("AP", "AP50", "AP75")
    ignored = "difficult" if rules == "VOC2007" else "iscrowd"
    counted = [one for one in content["annotations"] if pictures is None or one["image_id"] in pictures]
    if all(one[ignored] for one in counted):
        return dict.fromkeys(names)
    if not detections:
        return dict.fromkeys(names, 0.0)
    truth = COCO()
    truth.dataset = copy.deepcopy(dict(content))  # pycocotools writes into it
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(copy.deepcopy(list(detections)))
        judged = (VocEval if rules == "VOC2007" else COCOeval)(truth, found, kind)
        if pictures is not None:
            judged.params.imgIds = sorted(pictures)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {name: 100 * float(value) for name, value in zip(names, judged.stats, strict=False)}


def encode_masks(masks: UInt8[np.ndarray, "N H W"]) -> list[dict[str, Any]]:
    """Masks as COCO's compressed run lengths."""
    from pycocotools import mask

    encoded: list[dict[str, Any]] = mask.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
    return encoded


def require_pycocotools() -> None:
    """Raise ValueError, saying how to install it, where pycocotools is missing."""
    if importlib.util.find_spec("pycocotools") is None:
        raise ValueError("detections are scored with pycocotools: install it with `pip install pycocotools`.")
