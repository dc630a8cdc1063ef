"""Miniatures of the eleven transfer sets, each in the layout in which its authors publish it.

A picture's colour is its class: class k has colour k, in the left half, and in the right half too unless a second
class is shown. So labels can be checked against pictures, whatever way they took.
"""

import hashlib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import mira._torchvision  # noqa: F401  isort: skip
from torchvision.datasets import CIFAR10, CIFAR100, Flowers102

COLOURS = np.array([(220, 40, 40), (40, 200, 40), (50, 60, 220)], np.uint8)
CLASSES = len(COLOURS)
SIDE = 24


def picture(label: int, rng: np.random.Generator, *, right: int | None = None) -> Image.Image:
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    pixels[:, : SIDE // 2] = COLOURS[label]
    pixels[:, SIDE // 2 :] = COLOURS[label if right is None else right]
    grain = rng.integers(-30, 31, pixels.shape)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def colours_of(pixels: np.ndarray) -> tuple[int, int]:
    """The classes of the left and the right half."""
    halves = pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]
    distances = [np.abs(COLOURS.astype(float) - half.reshape(-1, 3).mean(axis=0)).sum(axis=1) for half in halves]
    return int(distances[0].argmin()), int(distances[1].argmin())


def save(path: Path, label: int, rng: np.random.Generator, *, right: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(label, rng, right=right).save(path, quality=95)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_aircraft(root: Path, rng: np.random.Generator) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    names = ["707-320", "A380", "Cessna 172"]
    write_lines(data / "variants.txt", names)
    for part, count in (("train", 9), ("val", 6), ("test", 12)):
        lines = []
        for number in range(count):
            key = f"{part}{number:04}"
            save(data / "images" / f"{key}.jpg", number % CLASSES, rng)
            lines.append(f"{key} {names[number % CLASSES]}")
        write_lines(data / f"images_variant_{part}.txt", lines)


def write_caltech101(root: Path, rng: np.random.Generator) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    save(folder / "BACKGROUND_Google" / "image_0001.jpg", 0, rng)
    for label, name in enumerate(("Faces", "accordion", "yin_yang")):
        for number in range(1, 34 + label):
            save(folder / name / f"image_{number:04}.jpg", label, rng)


def write_cars(root: Path, rng: np.random.Generator) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(["Audi", "BMW", "Fiat"], object)})
    for part, count, path in (
        ("train", 15, base / "devkit" / "cars_train_annos.mat"),
        ("test", 9, base / "cars_test_annos_withlabels.mat"),
    ):
        rows = np.empty((1, count), [("fname", object), ("class", object)])
        for number in range(count):
            save(base / f"cars_{part}" / f"{number:05}.jpg", number % CLASSES, rng)
            rows[0, number] = (f"{number:05}.jpg", np.uint8(number % CLASSES + 1))
        savemat(path, {"annotations": rows})


def write_cifar(root: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 and CIFAR-100; torchvision then expects the sums of these files."""
    for dataset, key, meta in ((CIFAR10, "labels", "label_names"), (CIFAR100, "fine_labels", "fine_label_names")):
        folder = root / dataset.base_folder
        folder.mkdir(parents=True)
        for name in ("train_list", "test_list"):
            entries = []
            for file, _ in getattr(dataset, name):
                labels = [number % CLASSES for number in range(15)]
                rows = [np.asarray(picture(label, rng).resize((32, 32))).transpose(2, 0, 1).ravel() for label in labels]
                content = pickle.dumps({"data": np.stack(rows), key: labels})
                (folder / file).write_bytes(content)
                entries.append([file, hashlib.md5(content).hexdigest()])
            monkeypatch.setattr(dataset, name, entries)
        content = pickle.dumps({meta: ["red", "green", "blue"]})
        (folder / dataset.meta["filename"]).write_bytes(content)
        monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": hashlib.md5(content).hexdigest()})


def write_dtd(root: Path, rng: np.random.Generator) -> None:
    folder = root / "dtd" / "dtd"
    for part, count in (("train", 9), ("val", 6), ("test", 6)):
        lines = []
        for number in range(count):
            name = ("banded", "dotted", "woven")[number % CLASSES]
            save(folder / "images" / name / f"{name}_{part}{number}.jpg", number % CLASSES, rng)
            lines.append(f"{name}/{name}_{part}{number}.jpg")
        write_lines(folder / "labels" / f"{part}1.txt", lines)


def write_flowers(root: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "flowers-102"
    labels = rng.permutation(np.arange(24) % CLASSES)
    for number, label in enumerate(labels, start=1):
        save(folder / "jpg" / f"image_{number:05}.jpg", int(label), rng)
    order = np.argsort(labels, kind="stable") + 1
    savemat(folder / "imagelabels.mat", {"labels": labels[None] + 1})
    savemat(folder / "setid.mat", {"trnid": order[None, 0::3], "valid": order[None, 1::3], "tstid": order[None, 2::3]})
    sums = {
        key: (name, md5 if key == "image" else hashlib.md5((folder / name).read_bytes()).hexdigest())
        for key, (name, md5) in Flowers102._file_dict.items()
    }
    monkeypatch.setattr(Flowers102, "_file_dict", sums)


def write_food101(root: Path, rng: np.random.Generator) -> None:
    folder = root / "food-101"
    names = ("apple_pie", "pho", "waffles")
    for part, count in (("train", 5), ("test", 3)):
        content = {}
        for label, name in reversed(list(enumerate(names))):
            content[name] = [f"{name}/{part}{number}" for number in range(count)]
            for key in content[name]:
                save(folder / "images" / f"{key}.jpg", label, rng)
        (folder / "meta").mkdir(exist_ok=True)
        (folder / "meta" / f"{part}.json").write_text(json.dumps(content))


def write_pets(root: Path, rng: np.random.Generator) -> None:
    folder = root / "oxford-iiit-pet"
    for part, count in (("trainval", 15), ("test", 6)):
        lines = []
        for number in range(count):
            key = f"{('Abyssinian', 'Bengal', 'pug')[number % CLASSES]}_{part}{number}"
            save(folder / "images" / f"{key}.jpg", number % CLASSES, rng)
            lines.append(f"{key} {number % CLASSES + 1} 1 1")
        write_lines(folder / "annotations" / f"{part}.txt", lines)


def write_sun397(root: Path, rng: np.random.Generator, *, per_class: int = 8, partition: bool = True) -> None:
    folder = root / "SUN397"
    names = ("/a/abbey", "/c/church/indoor", "/c/church/outdoor")
    write_lines(folder / "ClassName.txt", names)
    lines: dict[str, list[str]] = {"Training": [], "Testing": []}
    for label, name in enumerate(names):
        for number in range(per_class):
            key = f"{name}/sun_{label}{number}.jpg"
            save(folder / key[1:], label, rng)
            if number < 7:  # one in none of the two parts
                lines["Training" if number < 4 else "Testing"].append(key)
    if partition:
        for part, keys in lines.items():
            write_lines(folder / f"{part}_01.txt", keys)


def write_voc(root: Path, rng: np.random.Generator, *, year: str = "2007") -> None:
    """Each picture shows one or two of the first three classes; the right half's is difficult in every fourth."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    names = ("aeroplane", "bicycle", "bird")
    number, of_part = 0, {}
    for part, count in (("train", 12), ("val", 9), ("test", 12)):
        of_part[part] = []
        for _ in range(count):
            left, right = number % CLASSES, int(rng.integers(CLASSES))
            save(folder / "JPEGImages" / f"{number:06}.jpg", left, rng, right=right)
            half = SIDE // 2
            objects = [(left, 1, half, False), (right, half + 1, SIDE, number % 4 == 3)]
            things = "".join(
                f"<object><name>{names[label]}</name><difficult>{int(difficult)}</difficult><bndbox><xmin>{x1}</xmin>"
                f"<ymin>1</ymin><xmax>{x2}</xmax><ymax>{SIDE}</ymax></bndbox><part><name>wing</name></part></object>"
                for label, x1, x2, difficult in objects
            )
            size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
            write_lines(folder / "Annotations" / f"{number:06}.xml", [f"<annotation>{size}{things}</annotation>"])
            of_part[part].append(f"{number:06}")
            number += 1
    of_part["trainval"] = [*of_part["train"], *of_part["val"]]
    for part, keys in of_part.items():
        write_lines(folder / "ImageSets" / "Main" / f"{part}.txt", keys)


def write_all(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for write in (
        write_aircraft,
        write_caltech101,
        write_cars,
        write_dtd,
        write_food101,
        write_pets,
        write_sun397,
        write_voc,
    ):
        write(root, rng)
    write_cifar(root, rng, monkeypatch)
    write_flowers(root, rng, monkeypatch)
