"""Pictures with the objects on them, in COCO's format or in VOC's."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mira.data.decoding import decode, read_file
from mira.evaluation.detection import voc

Content = Mapping[str, Sequence[Mapping[str, Any]]]
"""What a COCO annotation file holds: images, categories and annotations."""


class DetectionSet:
    """Pictures with their objects; a source of pictures without labels.

    Attributes:
        name: what to call it in a report.
        content: images, categories and annotations as COCO's format has them, each annotation with an id from 1 on,
            an area and `iscrowd`.
        classes: names of the categories, by rising id.
        category_ids: their ids in the file. A detector's class k, from 1 on, is the (k - 1)-th of them.
    """

    def __init__(self, name: str, folders: Sequence[Path], content: Content, *, channels: int) -> None:
        """Check the content; `folders` has the folder of each image.

        Raises:
            ValueError: no pictures or no categories, a picture that is not there, or an annotation of something
                unknown.
        """
        self.name, self.channels, self.content = name, channels, _completed(name, content)
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        self.classes = tuple(str(category["name"]) for category in categories)
        self.category_ids = [int(category["id"]) for category in categories]
        self.labels: Int64[np.ndarray, " N"] | None = None
        self._paths = [
            folder / str(image["file_name"]) for folder, image in zip(folders, content["images"], strict=True)
        ]
        missing = [path for path in self._paths if not path.is_file()]
        if missing:
            shown = ", ".join(f"'{path.name}'" for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise ValueError(
                f"{len(missing)} of the {len(self._paths)} pictures that {name} names are not in "
                f"'{missing[0].parent}' ({shown}): put them there, or take them out of the annotations."
            )
        objects = defaultdict(list)
        for one in self.content["annotations"]:
            objects[one["image_id"]].append(one)
        self._objects = [objects[image["id"]] for image in self.content["images"]]

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._paths)

    def key(self, index: int) -> str:
        """The picture's file name."""
        return str(self.content["images"][index]["file_name"])

    def identity(self) -> str:
        """The files with their sizes and times of change, and everything annotated."""
        files = [f"{path}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}" for path in self._paths]
        return "\n".join([str(self.channels), *files, json.dumps(self.content, sort_keys=True)])

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """One picture.

        Raises:
            UnreadablePicture: it cannot be decoded.
            ValueError: it is of another size than its annotations say.
        """
        key, image = self.key(index), self.content["images"][index]
        picture = decode(read_file(self._paths[index], key=key), key=key, channels=self.channels)
        if picture.shape[:2] != (image["height"], image["width"]):
            raise ValueError(
                f"'{key}' has {picture.shape[1]} x {picture.shape[0]} pixels and its annotations are for "
                f"{image['width']} x {image['height']}: annotate the picture as it is shown."
            )
        return picture

    def usable(self) -> Int64[np.ndarray, " M"]:
        """The pictures with at least one object to learn from."""
        return np.array([index for index in range(len(self)) if self._single(index)], np.int64)

    def boxes(self, index: int) -> tuple[Float32[np.ndarray, "M 4"], Int64[np.ndarray, " M"]]:
        """Boxes (x1, y1, x2, y2) and classes, from 1 on, of a picture's objects; crowds are left out."""
        things = self._single(index)
        boxes = np.array([one["bbox"] for one in things], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = [1 + self.category_ids.index(one["category_id"]) for one in things]
        return boxes, np.array(classes, np.int64)

    def masks(self, index: int) -> UInt8[np.ndarray, "M H W"]:
        """The masks of the same objects."""
        from pycocotools import mask

        image = self.content["images"][index]
        size = int(image["height"]), int(image["width"])
        things = self._single(index)
        masks = np.zeros((len(things), *size), np.uint8)
        for row, one in enumerate(things):
            outline = one["segmentation"]
            if isinstance(outline, list):  # polygons
                outline = mask.merge(mask.frPyObjects(outline, *size))
            elif isinstance(outline["counts"], list):  # runs that are not compressed
                outline = mask.frPyObjects(outline, *size)
            masks[row] = mask.decode(outline)
        return masks

    def _single(self, index: int) -> list[dict[str, Any]]:
        return [one for one in self._objects[index] if not one["iscrowd"] and min(one["bbox"][2:]) > 0]


def open_detection(folder: Path, *, channels: int, masks: bool = False) -> tuple[DetectionSet, DetectionSet]:
    """Training and test pictures in a folder.

    VOC: `folder/VOCdevkit/VOC2007`, and VOC2012 where it is there: trainval of both, tested on test of 2007.
    COCO's format: `folder/annotations/instances_train*.json` and `instances_val*.json`, the pictures in the folder of
    the same name (`train2017`), in the same below `images`, or in `images`.

    Args:
        channels: 3 for RGB, 1 for grey.
        masks: whether they are needed.

    Raises:
        ValueError: neither is there, or it is not whole.
    """
    if (folder / "VOCdevkit" / "VOC2007").is_dir():
        if masks:
            raise ValueError("VOC has boxes and no masks of its objects: evaluate 'detection', or give COCO's format.")
        root = folder / "VOCdevkit"
        parts = [(root / year, "trainval") for year in ("VOC2007", "VOC2012") if (root / year).is_dir()]
        return read_voc(parts, channels=channels), read_voc([(root / "VOC2007", "test")], channels=channels)
    train, test = (_find_coco(folder, part, channels, masks) for part in ("train", "val"))
    if train.classes != test.classes:
        raise ValueError(
            f"{train.name} and {test.name} have different categories ({len(train.classes)} and "
            f"{len(test.classes)}): use two parts of one data set."
        )
    return train, test


def read_coco(images: Path, annotations: Path, *, channels: int = 3, masks: bool = False) -> DetectionSet:
    """Pictures with objects in COCO's format.

    Args:
        images: the folder of the pictures.
        annotations: the JSON file.
        channels: 3 for RGB, 1 for grey.
        masks: whether every object must have one.

    Raises:
        ValueError: a file is missing or damaged, or see `DetectionSet`.
    """
    if not annotations.is_file():
        raise ValueError(
            f"there is no annotation file '{annotations}': COCO's format keeps all objects in one JSON file."
        )
    try:
        content = json.loads(annotations.read_bytes())
    except (ValueError, OSError) as error:
        raise ValueError(f"'{annotations}' is not a readable JSON file: {error}") from error
    lists = ("images", "categories", "annotations")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise ValueError(f"'{annotations}' is not in COCO's format, which has the lists {', '.join(lists)}.")
    if masks and (bare := [one for one in content["annotations"] if not one.get("segmentation")]):
        raise ValueError(
            f"{len(bare)} of the {len(content['annotations'])} objects in '{annotations}' have no mask: evaluate "
            "'detection', which needs none."
        )
    folders = [images] * len(content["images"])
    return DetectionSet(
        annotations.stem,
        folders,
        {name: content[name] for name in lists},
        channels=channels,
    )


def read_voc(parts: Sequence[tuple[Path, str]], *, channels: int = 3) -> DetectionSet:
    """Pictures of VOC: of each part a folder (`VOCdevkit/VOC2007`) and a list of it ("trainval").

    Difficult objects are learned from like the others, and what is found there counts neither for nor against.

    Raises:
        ValueError: a list or an annotation is missing or damaged, or see `DetectionSet`.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    folders: list[Path] = []
    for folder, part in parts:
        names = folder / "ImageSets" / "Main" / f"{part}.txt"
        if not names.is_file():
            raise ValueError(f"'{folder}' has no list 'ImageSets/Main/{part}.txt': put VOC's {part} pictures there.")
        for name in names.read_text("utf-8").split():
            width, height, things = voc.read_annotation(folder / "Annotations" / f"{name}.xml")
            images.append({"id": len(images) + 1, "file_name": f"{name}.jpg", "width": width, "height": height})
            folders.append(folder / "JPEGImages")
            annotations += [
                {"image_id": len(images), "category_id": one.label + 1, "bbox": one.box, "difficult": one.difficult}
                for one in things
            ]
    categories = [{"id": label, "name": name} for label, name in enumerate(voc.CLASSES, start=1)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    name = " + ".join(f"{folder.name} {part}" for folder, part in parts)
    return DetectionSet(name, folders, content, channels=channels)


def _find_coco(folder: Path, part: str, channels: int, masks: bool) -> DetectionSet:
    found = sorted((folder / "annotations").glob(f"instances_{part}*.json"))
    if len(found) != 1:
        what = "no file" if not found else f"{len(found)} files"
        raise ValueError(
            f"'{folder}' has {what} 'annotations/instances_{part}*.json' and no 'VOCdevkit/VOC2007': give a folder "
            "with one of it (COCO's format), or VOC's."
        )
    own = found[0].stem.removeprefix("instances_")
    places = [folder / own, folder / "images" / own, folder / "images"]
    images = next((place for place in places if place.is_dir()), places[0])
    return read_coco(images, found[0], channels=channels, masks=masks)


def _completed(name: str, content: Content) -> dict[str, list[dict[str, Any]]]:
    """A copy with what COCO's own files have and others often lack; raises ValueError for what cannot be mended."""
    for what, needed in (("images", "id file_name width height"), ("categories", "id name")):
        if not content[what]:
            raise ValueError(f"{name} has no {what}: there is nothing to detect.")
        for one in content[what]:
            if lacking := [key for key in needed.split() if key not in one]:
                raise ValueError(
                    f"an entry of {what} in {name} has no {', '.join(lacking)}: {json.dumps(dict(one))[:80]}"
                )
    known = {what: {one["id"] for one in content[what]} for what in ("images", "categories")}
    annotations = []
    for number, one in enumerate(content["annotations"], start=1):
        for key, what in (("image_id", "images"), ("category_id", "categories")):
            if one.get(key) not in known[what]:
                raise ValueError(
                    f"object {number} in {name} has the {key} {one.get(key)}, which is none of its {what}."
                )
        if len(one.get("bbox", ())) != 4:
            raise ValueError(f"object {number} in {name} has no bbox of x, y, width and height.")
        area = one["bbox"][2] * one["bbox"][3]
        # pycocotools takes an id of 0 for "not found".
        annotations.append({"area": area, "iscrowd": 0, **one, "id": number})
    images = [dict(image) for image in content["images"]]
    return {"images": images, "categories": [dict(one) for one in content["categories"]], "annotations": annotations}
