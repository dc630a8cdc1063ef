"""Pictures with the objects on them, in COCO's format or in VOC's."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mira.data.decoding import decode, read_file
from mira.evaluation.detection import voc
from mira.evaluation.detection.coco import Content, completed, read_content

Rules = Literal["COCO", "VOC2007"]
"""By whose rules detections are counted: see `mira.evaluation.detection.scoring`."""


class DetectionSet:
    """Pictures with their objects; a source of pictures without labels.

    Attributes:
        name: what to call it in a report.
        origin: what errors call it: where its annotations are.
        content: images, categories and annotations as COCO's format has them, each annotation with an id from 1 on,
            an area and `iscrowd`.
        classes: names of the categories, by rising id.
        category_ids: their ids in the file. A detector's class k, from 1 on, is the (k - 1)-th of them.
        rules: by which detections on it are counted.
    """

    def __init__(
        self, name: str, origin: str, folders: Sequence[Path], content: Content, *, channels: int, rules: Rules
    ) -> None:
        """Complete and check the content; `folders` has the folder of each image.

        Raises:
            ValueError: no pictures or no categories, a picture that is not there, or an annotation of something
                unknown.
        """
        self.name, self.origin, self.channels, self.rules = name, origin, channels, rules
        self.content = completed(content, origin)
        categories = sorted(self.content["categories"], key=lambda category: int(category["id"]))
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
                f"{len(missing)} of the {len(self._paths)} pictures that {origin} names are not in "
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

    def _single(self, index: int) -> list[Mapping[str, Any]]:
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
    if not (folder / "VOCdevkit" / "VOC2007").is_dir():
        train, test = (_find_coco(folder, part, channels, masks) for part in ("train", "val"))
        return train, test
    if masks:
        raise ValueError("VOC has boxes and no masks of its objects: evaluate 'detection', or give COCO's format.")
    root = folder / "VOCdevkit"
    parts = [(root / year, "trainval") for year in ("VOC2007", "VOC2012") if (root / year).is_dir()]
    return read_voc(parts, channels=channels), read_voc([(root / "VOC2007", "test")], channels=channels)


def read_coco(images: Path, annotations: Path, *, channels: int = 3, masks: bool = False) -> DetectionSet:
    """Pictures with objects in COCO's format.

    Its name has the folder's and the file's: "shapes val" of `shapes/annotations/instances_val.json`.

    Args:
        images: the folder of the pictures.
        annotations: the JSON file.
        channels: 3 for RGB, 1 for grey.
        masks: whether every object must have one.

    Raises:
        ValueError: a file is missing or damaged, or see `DetectionSet`.
    """
    content = read_content(annotations, masks=masks)
    folder = annotations.resolve().parent
    folder = folder.parent if folder.name == "annotations" else folder
    name = f"{folder.name} {annotations.stem.removeprefix('instances_')}"
    folders = [images] * len(content["images"])
    return DetectionSet(name, f"'{annotations}'", folders, content, channels=channels, rules="COCO")


def read_voc(parts: Sequence[tuple[Path, str]], *, channels: int = 3) -> DetectionSet:
    """Pictures of VOC: of each part a folder (`VOCdevkit/VOC2007`) and a list of it ("trainval").

    Raises:
        ValueError: a list or an annotation is missing or damaged, or see `DetectionSet`.
    """
    folders, content = voc.read_parts(parts)
    name = " + ".join(f"{folder.name} {part}" for folder, part in parts)
    origin = " and ".join(f"'{folder}' ({part})" for folder, part in parts)
    return DetectionSet(name, origin, folders, content, channels=channels, rules="VOC2007")


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
