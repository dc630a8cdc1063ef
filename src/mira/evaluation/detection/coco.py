"""COCO's annotation format: one JSON file with the lists images, categories and annotations."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Content = Mapping[str, Sequence[Mapping[str, Any]]]
"""The lists of an annotation file."""

_LISTS = ("images", "categories", "annotations")


def read_content(path: Path, *, masks: bool) -> Content:
    """The lists of an annotation file.

    Args:
        masks: whether every object must have one.

    Raises:
        ValueError: the file is missing, damaged or not in the format, or an object has no mask.
    """
    if not path.is_file():
        raise ValueError(f"there is no annotation file '{path}': COCO's format keeps all objects in one JSON file.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ValueError(f"'{path}' is not a readable JSON file: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in _LISTS):
        raise ValueError(f"'{path}' is not in COCO's format, which has the lists {', '.join(_LISTS)}.")
    if masks and (bare := [one for one in content["annotations"] if not one.get("segmentation")]):
        raise ValueError(
            f"{len(bare)} of the {len(content['annotations'])} objects in '{path}' have no mask: evaluate "
            "'detection', which needs none."
        )
    return {name: content[name] for name in _LISTS}


def completed(content: Content, origin: str) -> Content:
    """A copy whose every object has what COCO's own files have and others often lack: an id, an area and `iscrowd`.

    Args:
        origin: what the sentences call the content.

    Raises:
        ValueError: no pictures or no categories, an entry that lacks what cannot be guessed, an id given twice, or
            an object of something unknown.
    """
    known: dict[str, set[int]] = {}
    for what, needed in (("images", "id file_name width height"), ("categories", "id name")):
        if not content[what]:
            raise ValueError(f"{origin} has no {what}: there is nothing to detect.")
        for one in content[what]:
            if lacking := [key for key in needed.split() if key not in one]:
                raise ValueError(
                    f"an entry of {what} in {origin} has no {', '.join(lacking)}: {json.dumps(dict(one))[:80]}"
                )
        known[what] = {one["id"] for one in content[what]}
        if len(known[what]) < len(content[what]):
            raise ValueError(f"some {what} in {origin} have the same id: give each its own.")
    annotations = []
    for number, one in enumerate(content["annotations"], start=1):
        for key, what in (("image_id", "images"), ("category_id", "categories")):
            if one.get(key) not in known[what]:
                raise ValueError(
                    f"object {number} in {origin} has the {key} {one.get(key)}, which is none of its {what}."
                )
        if len(one.get("bbox") or ()) != 4:
            raise ValueError(f"object {number} in {origin} has no bbox of x, y, width and height.")
        area = one["bbox"][2] * one["bbox"][3]
        # pycocotools takes an id of 0 for "not found".
        annotations.append({"area": area, "iscrowd": 0, **one, "id": number})
    images = [dict(image) for image in content["images"]]
    return {"images": images, "categories": [dict(one) for one in content["categories"]], "annotations": annotations}
