"""Coloured shapes on photographs, written in COCO's format."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from sklearn.datasets import load_sample_images

SHAPES = ("disc", "square", "triangle")
PHOTOGRAPHS = load_sample_images().images  # that scikit-learn brings: a temple before the sky, a flower before leaves


def background(rng: np.random.Generator, side: int, part: str) -> Image.Image:
    """A random window of one of two photographs: of their left three fifths for training, else of the rest."""
    photograph = PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))]
    border = photograph.shape[1] * 3 // 5
    region = Image.fromarray(photograph[:, :border] if part == "train" else photograph[:, border:])
    window = int(rng.integers(side, min(region.size), endpoint=True))
    x, y = (int(rng.integers(length - window, endpoint=True)) for length in region.size)
    picture = region.crop((x, y, x + window, y + window)).resize((side, side), Image.Resampling.LANCZOS)
    return ImageOps.mirror(picture) if rng.random() < 0.5 else picture


def outline(shape: str, x: float, y: float, size: float) -> list[float]:
    """The polygon of a shape in the square at (x, y), as x, y, x, y, ..."""
    angles = {"disc": np.arange(24) / 24, "square": np.arange(4) / 4 + 1 / 8, "triangle": np.arange(3) / 3 + 1 / 12}
    radius = size / 2 * (np.sqrt(2) if shape == "square" else 1)
    turns = 2 * np.pi * (angles[shape] + 0.5)
    points = np.stack([x + size / 2 + radius * np.cos(turns), y + size / 2 + radius * np.sin(turns)], axis=1)
    return [float(value) for value in points.round(1).ravel()]


def draw_scene(rng: np.random.Generator, side: int, part: str) -> tuple[Image.Image, list[tuple[int, list[float]]]]:
    """A picture, and the class and outline of each of its one to three shapes, which do not touch."""
    picture = background(rng, side, part)
    pen = ImageDraw.Draw(picture)
    objects: list[tuple[int, list[float]]] = []
    taken: list[tuple[float, float, float]] = []
    for _ in range(int(rng.integers(1, 4))):
        size = float(rng.uniform(0.25, 0.5) * side)
        x, y = rng.uniform(2, side - size - 2, 2)
        if any(abs(x - a) < max(size, s) + 3 and abs(y - b) < max(size, s) + 3 for a, b, s in taken):
            continue
        taken.append((x, y, size))
        label = int(rng.integers(len(SHAPES)))
        polygon = outline(SHAPES[label], x, y, size)
        colour = rng.integers(0, 60, 3)
        colour[rng.integers(3)] += 180
        pen.polygon(polygon, fill=tuple(int(value) for value in colour))
        objects.append((label, polygon))
    return picture, objects


def write_coco(folder: Path, part: str, count: int, *, side: int = 96, seed: int = 0) -> None:
    """`folder/part/*.png` and `folder/annotations/instances_part.json`."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    (folder / part).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for number in range(count):
        picture, objects = draw_scene(rng, side, part)
        picture.save(folder / part / f"{number:03}.png")
        images.append({"id": 100 + number, "file_name": f"{number:03}.png", "width": side, "height": side})
        for label, polygon in objects:
            x, y = polygon[::2], polygon[1::2]
            box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": 100 + number,
                    "category_id": 10 * (label + 1),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
    categories = [{"id": 10 * (label + 1), "name": name} for label, name in enumerate(SHAPES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
