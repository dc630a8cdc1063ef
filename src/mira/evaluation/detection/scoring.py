"""Average precision, as COCO counts it: pycocotools on objects in memory."""

import contextlib
import copy
import importlib.util
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from mira.evaluation.detection.data import Content


def average_precision(
    content: Content, detections: Sequence[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> dict[str, float | None]:
    """AP over IoU 0.50 to 0.95, AP at 0.50 and at 0.75, in percent, of all categories and sizes.

    What is found where a crowd or a difficult object is counts neither for nor against.

    Args:
        content: the objects that there are, as `DetectionSet.content` has them.
        detections: of each its image_id, category_id, score, and bbox (x, y, width, height) or segmentation (RLE).
        kind: whether boxes or masks are compared.

    Returns:
        By "AP", "AP50" and "AP75"; None where there is no object to find.

    Raises:
        ValueError: pycocotools is missing.
    """
    require_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = copy.deepcopy(dict(content))  # pycocotools writes into it
    for one in truth.dataset["annotations"]:
        one["iscrowd"] = int(one["iscrowd"] or one.get("difficult", False))
    names = ("AP", "AP50", "AP75")
    if all(one["iscrowd"] for one in truth.dataset["annotations"]):
        return dict.fromkeys(names)
    if not detections:
        return dict.fromkeys(names, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(copy.deepcopy(list(detections))), kind)
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
        raise ValueError("detections are scored with pycocotools: install it with `pip install 'mira-ssl[detection]'`.")
