"""Pictures per second per core: decoding, crops and colour, against torchvision's transforms on PIL images.

    python -m benchmarks.pipeline [FOLDER]

Everything runs on the CPU, in one process with one thread, both ways in turn in the same run; the ratio is that of
the medians. FOLDER holds your own photographs; without it, JPEGs of about 500 x 375 pixels are made from
scikit-learn's sample pictures.
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
    labels = None
    classes: tuple[str, ...] = ()

    def __init__(self, encoded: list[bytes]) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def key(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> np.ndarray:
        return decode(self.encoded[index], key=self.key(index), channels=3)


class Arrays(Jpegs):
    """Decoded pictures in memory."""

    def __init__(self, pictures: list[np.ndarray]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

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


def compare(what: str, theirs: Callable[[], object], ours: Callable[[], object], count: int) -> float:
    """Time both in turn, print a line, and return how many times as fast ours is."""
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    for round_ in range(ROUNDS + 1):
        for name, run in (("theirs", theirs), ("ours", ours)):
            start = time.perf_counter()
            run()
            if round_:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    slow, fast = median(seconds["theirs"]), median(seconds["ours"])
    print(f"{what:<58} {count / slow:>10,.0f} {count / fast:>10,.0f} {slow / fast:>7.1f} x")
    return slow / fast


def photographs(encoded: list[bytes]) -> float:
    """Decode, two crops of 224 and six of 96, colour: the published recipe."""
    settings = CropSettings(local_crops=LocalCrops(count=6))
    chains = published(settings, 3)
    data = CropDataset(Jpegs(encoded), settings, seed=0, max_unreadable=0.0)
    request = BatchRequest(0, np.arange(len(encoded)))

    def theirs() -> None:
        rows = []
        for jpeg in encoded:
            image = Image.open(io.BytesIO(jpeg)).convert("RGB")
            rows.append([chain(image) for chain in chains])
        for view in zip(*rows, strict=True):
            torch.stack(view)

    return compare("photographs: decode, 2 x 224 + 6 x 96, colour", theirs, lambda: data[request], len(encoded))


def small(what: str, pictures: list[np.ndarray], settings: CropSettings) -> float:
    """Two crops of small decoded pictures, as one batch."""
    channels = pictures[0].shape[2]
    chains = published(settings, channels)
    images = [Image.fromarray(picture[..., 0] if channels == 1 else picture) for picture in pictures]
    data = CropDataset(Arrays(pictures), settings, seed=0, max_unreadable=0.0)
    request = BatchRequest(0, np.arange(len(pictures)))

    def theirs() -> None:
        for view in zip(*([chain(image) for chain in chains] for image in images), strict=True):
            torch.stack(view)

    return compare(what, theirs, lambda: data[request], len(pictures))


def main(folder: Path | None = None) -> dict[str, float]:
    """Print the table; returns the ratios."""
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        print(f"{'pictures per second per core':<58} {'PIL':>10} {'MIRA':>10}   ratio")
        ratios = {"photographs": photographs(folder_jpegs(folder) if folder else made_jpegs())}
        garments = open_source("builtin:fashion", split="test", channels=1)
        grey = CropSettings(global_crops=GlobalCrops(size=28, scale=(0.3, 1.0), blur=(0.5, 0.5)), blur_sigma=(0.1, 1.0))
        pictures = [garments.read(index) for index in range(512)]
        ratios["28 x 28"] = small("garments: batch of 512, 2 x 28, grey, jitter, blur", pictures, grey)
        colour = CropSettings(
            global_crops=GlobalCrops(size=32, scale=(0.2, 1.0), blur=(0.0, 0.0)), jitter=Jitter(saturation=0.4)
        )
        tiles = [
            cv2.resize(decode(x, key="", channels=3), (32, 32), interpolation=cv2.INTER_AREA) for x in made_jpegs()
        ]
        ratios["32 x 32"] = small("small photographs: batch of 512, 2 x 32, colour", tiles * 8, colour)
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv_threads)
    return ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder of JPEGs (default: made ones)")
    main(parser.parse_args().folder)
