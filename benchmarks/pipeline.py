"""Pictures per second per core: decoding, crops and colour, against torchvision's transforms on PIL images.

    python -m benchmarks.pipeline [FOLDER]

Everything runs on the CPU, in one process with one thread, both ways in turn in the same run. A line gives the medians
over the rounds of the processor's time (so other processes count little) and the ratio of these medians. FOLDER holds
your own JPEGs; without it, some of about 500 x 375 pixels are cut from scikit-learn's two sample photographs. The large
ones of 1500 x 1000 are four such photographs side by side, enlarged by a sixth.

"cut only" is what workers do when the colour runs on a GPU: decode, cut, and draw the parameters of the rest.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import mira._torchvision  # noqa: F401  (must come before torchvision)
from mira.data import BatchRequest, CropDataset, CropSettings, GlobalCrops, Jitter, LocalCrops, open_source
from mira.data.decoding import decode
from mira.data.folder import FolderSource

from torchvision import transforms as tv  # isort: skip

ROUNDS = 5
BICUBIC = tv.InterpolationMode.BICUBIC


class Jpegs:
    """Encoded pictures in memory, so that the disk is not measured."""

    name = "jpegs"
    channels = 3
    labels = None
    classes: tuple[str, ...] = ()

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> np.ndarray:
        return decode(self.encoded(index), key=self.key(index), channels=3)

    def encoded(self, index: int) -> bytes:
        return self.files[index]


class Arrays:
    """Decoded pictures in memory."""

    name = "arrays"
    labels = None
    classes: tuple[str, ...] = ()

    def __init__(self, pictures: list[np.ndarray]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def key(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> np.ndarray:
        return self.pictures[index]


def made_jpegs(count: int = 64) -> list[bytes]:
    """Different parts of two photographs, 500 x 375, quality 90."""
    encoded = []
    rng = np.random.default_rng(0)
    for number in range(count):
        picture = load_sample_images().images[number % 2]
        top, left = rng.integers(0, 52), rng.integers(0, 140)
        file = io.BytesIO()
        Image.fromarray(picture[top : top + 375, left : left + 500]).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded


def large_jpegs(count: int = 16) -> list[bytes]:
    """Four photographs side by side, turned or not, 1500 x 1000 in all, quality 90."""
    rng = np.random.default_rng(0)
    photographs = [cv2.resize(x, (750, 500), interpolation=cv2.INTER_CUBIC) for x in load_sample_images().images]
    encoded = []
    for _ in range(count):
        four = [cv2.flip(photographs[rng.integers(2)], int(rng.integers(-1, 2))) for _ in range(4)]
        file = io.BytesIO()
        Image.fromarray(cv2.vconcat([cv2.hconcat(four[:2]), cv2.hconcat(four[2:])])).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded


def folder_jpegs(folder: Path, count: int = 64) -> list[bytes]:
    """JPEGs from a folder, evenly over it."""
    source = open_source(folder, split="all")
    assert isinstance(source, FolderSource)
    paths = [folder / source.key(index) for index in range(len(source))]
    jpegs = [path for path in paths if path.suffix.lower() in (".jpg", ".jpeg")]
    if not jpegs:
        raise SystemExit(f"no JPEGs in {folder}")
    return [path.read_bytes() for path in jpegs[:: max(1, len(jpegs) // count)][:count]]


def published(settings: CropSettings, channels: int) -> list[Callable[[Image.Image], torch.Tensor]]:
    """The same operations in torchvision's words, one chain per view."""
    jitter = settings.jitter
    colour = channels == 3
    strengths = (jitter.brightness, jitter.contrast, *((jitter.saturation, jitter.hue) if colour else ()))
    kernel = 2 * round(3 * settings.blur_sigma[1]) + 1
    chains = []
    for view in settings.views:
        steps: list[Any] = [
            tv.RandomResizedCrop(view.size, view.scale, interpolation=BICUBIC),
            tv.RandomHorizontalFlip(settings.flip),
            tv.RandomApply([tv.ColorJitter(*strengths)], jitter.probability),
            tv.RandomGrayscale(settings.grey) if colour else None,
            tv.RandomApply([tv.GaussianBlur(kernel, settings.blur_sigma)], view.blur),
            tv.RandomSolarize(128, view.solarise),
            tv.PILToTensor(),
        ]
        chains.append(tv.Compose([step for step in steps if step is not None]))
    return chains


def compare(theirs: Callable[[], object], candidates: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """Time all in turn, print a line for each candidate, and return how many times as fast as `theirs` they are."""
    everyone = {"theirs": theirs, **candidates}
    seconds: dict[str, list[float]] = {name: [] for name in everyone}
    for round_ in range(ROUNDS + 1):
        for name, run in everyone.items():
            start = time.process_time()
            run()
            if round_:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    slow = median(seconds["theirs"])
    ratios = {name: slow / median(seconds[name]) for name in candidates}
    for name, ratio in ratios.items():
        print(f"{name:<58} {count / slow:>10,.0f} {ratio * count / slow:>10,.0f} {ratio:>7.1f} x")
    return ratios


def photographs(what: str, files: list[bytes]) -> dict[str, float]:
    """Decode, two crops of 224 and six of 96, colour: the published recipe."""
    settings = CropSettings(local_crops=LocalCrops(count=6))
    chains = published(settings, 3)
    request = BatchRequest(0, np.arange(len(files)))

    def theirs() -> None:
        rows = []
        for file in files:
            image = Image.open(io.BytesIO(file)).convert("RGB")
            rows.append([chain(image) for chain in chains])
        for view in zip(*rows, strict=True):
            torch.stack(view)

    candidates = {}
    for augment, work in (("workers", "all on the CPU"), ("device", "cut only")):
        for decoding in ("exact", "scaled"):
            data = CropDataset(Jpegs(files), settings, seed=0, max_unreadable=0.0, augment=augment, decode=decoding)
            candidates[f"{what}: {work}, {decoding} decoding"] = lambda data=data: data[request]
    return compare(theirs, candidates, len(files))


def small(what: str, pictures: list[np.ndarray], settings: CropSettings) -> dict[str, float]:
    """Two crops of small decoded pictures, as one batch."""
    channels = pictures[0].shape[2]
    chains = published(settings, channels)
    images = [Image.fromarray(picture[..., 0] if channels == 1 else picture) for picture in pictures]
    data = CropDataset(Arrays(pictures), settings, seed=0, max_unreadable=0.0)
    request = BatchRequest(0, np.arange(len(pictures)))

    def theirs() -> None:
        for view in zip(*([chain(image) for chain in chains] for image in images), strict=True):
            torch.stack(view)

    return compare(theirs, {what: lambda: data[request]}, len(pictures))


def main(folder: Path | None = None) -> dict[str, float]:
    """Print the table; returns the ratios."""
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        print(f"{'pictures per second per core':<58} {'PIL':>10} {'MIRA':>10}   ratio")
        ratios = photographs(
            "own photographs" if folder else "500 x 375", folder_jpegs(folder) if folder else made_jpegs()
        )
        ratios |= photographs("1500 x 1000", large_jpegs())
        garments = open_source("builtin:fashion", split="test", channels=1)
        grey = CropSettings(global_crops=GlobalCrops(size=28, scale=(0.3, 1.0), blur=(0.5, 0.5)), blur_sigma=(0.1, 1.0))
        pictures = [garments.read(index) for index in range(512)]
        ratios |= small("28 x 28 grey, batch of 512: 2 x 28, jitter, blur", pictures, grey)
        colour = CropSettings(
            global_crops=GlobalCrops(size=32, scale=(0.2, 1.0), blur=(0.0, 0.0)), jitter=Jitter(saturation=0.4)
        )
        tiles = [
            cv2.resize(decode(x, key="", channels=3), (32, 32), interpolation=cv2.INTER_AREA) for x in made_jpegs()
        ]
        ratios |= small("32 x 32 colour, batch of 512: 2 x 32, jitter, grey", tiles * 8, colour)
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv_threads)
    return ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder of JPEGs (default: made ones)")
    main(parser.parse_args().folder)
