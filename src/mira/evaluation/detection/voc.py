"""PASCAL VOC's files: lists of pictures, and for each picture one XML file with its objects."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mira.evaluation.detection.coco import Content

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclass(frozen=True)
class VocObject:
    """An object of a picture.

    Attributes:
        label: its place in `CLASSES`.
        difficult: too small or hidden to be asked for.
        box: x, y, width, height in pixels, the picture's corner being (0, 0).
    """

    label: int
    difficult: bool
    box: tuple[float, float, float, float]


def read_annotation(path: str | Path) -> tuple[int, int, list[VocObject]]:
    """Width, height and objects of one picture.

    Raises:
        ValueError: the file is missing, damaged or names a class that VOC has not.
    """
    try:
        root = ET.parse(path).getroot()
        width, height = (int(_text(root, f"size/{name}")) for name in ("width", "height"))
        return width, height, [_object(element) for element in root.iter("object")]
    except OSError as error:
        raise ValueError(f"the annotation '{path}' cannot be read: {error.strerror or error}") from error
    except (ET.ParseError, ValueError) as error:
        raise ValueError(f"the annotation '{path}' is damaged: {error}") from error


def read_parts(parts: Sequence[tuple[Path, str]]) -> tuple[list[Path], Content]:
    """The folder of every picture of some lists, and the pictures with their objects in COCO's format.

    Difficult objects are marked and otherwise like the others, as in detectron2's loader: they are learned from.

    Args:
        parts: of each the folder (`VOCdevkit/VOC2007`) and the list ("trainval").

    Raises:
        ValueError: a list or an annotation is missing or damaged.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    folders: list[Path] = []
    for folder, part in parts:
        names = folder / "ImageSets" / "Main" / f"{part}.txt"
        if not names.is_file():
            raise ValueError(f"'{folder}' has no list 'ImageSets/Main/{part}.txt': put VOC's {part} pictures there.")
        for name in names.read_text("utf-8").split():
            width, height, things = read_annotation(folder / "Annotations" / f"{name}.xml")
            images.append({"id": len(images) + 1, "file_name": f"{name}.jpg", "width": width, "height": height})
            folders.append(folder / "JPEGImages")
            annotations += [
                {"image_id": len(images), "category_id": one.label + 1, "bbox": one.box, "difficult": one.difficult}
                for one in things
            ]
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, start=1)]
    return folders, {"images": images, "categories": categories, "annotations": annotations}


def _object(element: ET.Element) -> VocObject:
    # VOC counts pixels from 1 and a box includes its last ones.
    left, top, right, bottom = (float(_text(element, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax"))
    name = _text(element, "name")
    if name not in CLASSES:
        raise ValueError(f"'{name}' is none of VOC's {len(CLASSES)} classes")
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return VocObject(CLASSES.index(name), difficult, (left - 1, top - 1, right - left + 1, bottom - top + 1))


def _text(element: ET.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"<{element.tag}> has no {path}")
    return text.strip()
