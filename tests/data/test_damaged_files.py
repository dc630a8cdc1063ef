"""A thousand damaged and odd files among good ones: every good one arrives, every bad one is named, once."""

import io
import os
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import mira
from mira.data import CropDataset, CropSettings, GlobalCrops, LocalCrops, crop_loader, eval_loader, open_source

CHINA = load_sample_images().images[0]
FORMATS = {
    "jpg": ("JPEG", {}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "tif": ("TIFF", {}),
    "lzw.tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "gif": ("GIF", {}),
    "ppm": ("PPM", {}),
}


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photograph(number: int) -> Image.Image:
    top, left = number * 7 % 300, number * 13 % 500
    return Image.fromarray(np.ascontiguousarray(CHINA[top : top + 60, left : left + 80]))


def good_files() -> dict[str, bytes]:
    """Every mode and format, under right and wrong suffixes."""
    files = {}
    for number in range(20):
        for suffix, (kind, options) in FORMATS.items():
            files[f"plain/{number}.{suffix}"] = encode(photograph(number), kind, **options)
    image = photograph(3)
    alpha = Image.linear_gradient("L").resize(image.size)
    sixteen = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    modes = {
        "L": image.convert("L"),
        "1": image.convert("1"),
        "LA": Image.merge("LA", [image.convert("L"), alpha]),
        "RGBA": Image.merge("RGBA", [*image.split(), alpha]),
        "P": image.quantize(64),
        "CMYK": image.convert("CMYK"),
        "I;16": sixteen,
        "F": image.convert("F"),
        "YCbCr": image.convert("YCbCr"),
    }
    able = {
        "jpg": ("L", "CMYK", "1", "YCbCr"),
        "png": ("L", "1", "LA", "RGBA", "P", "I;16"),
        "webp": ("L", "RGBA", "P"),
        "tif": ("L", "1", "LA", "RGBA", "P", "CMYK", "I;16", "F", "YCbCr"),
        "gif": ("L", "1", "P", "RGBA"),
        "bmp": ("L", "1", "P", "RGBA"),
    }
    for suffix, names in able.items():
        for name in names:
            files[f"modes/{name}.{suffix}"] = encode(modes[name], FORMATS[suffix][0])
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        files[f"exif/{orientation}.jpg"] = encode(image, "JPEG", exif=exif)
    for number, suffix in enumerate(FORMATS):  # the content decides, not the suffix
        files[f"wrong/{number}.{'png' if suffix.endswith('jpg') else 'jpg'}"] = files[f"plain/0.{suffix}"]
    files["frames/film.gif"] = encode(image, "GIF", save_all=True, append_images=[photograph(9)])
    files["frames/film.tif"] = encode(image, "TIFF", save_all=True, append_images=[photograph(9)])
    files["odd/trailing.jpg"] = files["plain/0.jpg"] + b"appended by a camera" * 50
    files["odd/one pixel.png"] = encode(Image.new("RGB", (1, 1), "red"), "PNG")
    files["odd/thread.png"] = encode(Image.new("RGB", (2000, 1), "red"), "PNG")
    return files


def bad_files() -> dict[str, bytes]:
    """Truncated at many points, empty, not pictures, too large."""
    files = {}
    for suffix, (kind, options) in FORMATS.items():
        for number in range(8):
            data = encode(photograph(number), kind, **options)
            for percent in (1, 5, 12, 25, 40, 55, 70, 80, 88):
                files[f"cut/{number}-{percent}.{suffix}"] = data[: len(data) * percent // 100]
    rng = np.random.default_rng(0)
    for number in range(60):
        files[f"empty/{number}.jpg"] = b""
        files[f"noise/{number}.png"] = rng.bytes(500)
        files[f"text/{number}.JPG"] = b"<html><body>404: no such picture\n\tat all</body></html>"
        files[f"zeros/{number}.tif"] = bytes(4000)
    for number, side in enumerate((12_000, 30_000, 2**20, 2**31 - 1)):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        files[f"huge/{number}.png"] = b"\x89PNG\r\n\x1a\n" + chunk + encode(photograph(0), "PNG")[33:]
    files["huge/true.png"] = encode(Image.new("1", (12_000, 12_000)), "PNG")  # small on disk, and otherwise sound
    bmp = bytearray(encode(photograph(0), "BMP"))
    bmp[18:26] = struct.pack("<ii", 50_000, 50_000)
    files["huge/header.bmp"] = bytes(bmp)
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[Path, set[str], set[str]]:
    root = tmp_path_factory.mktemp("pictures")
    good, bad = good_files(), bad_files()
    for name, data in (good | bad).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    names = set(bad)
    (root / "folder.jpg").mkdir()
    (root / "broken link.jpg").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe.png")
    return root, set(good), names | {"folder.jpg", "broken link.jpg", "pipe.png"}


@pytest.mark.slow
def test_every_good_picture_arrives_and_every_bad_one_is_named_once(folder, capfd, recwarn):
    root, good, bad = folder
    assert len(bad) > 950
    source = open_source(root, split="all")
    keys = [source.key(index) for index in range(len(source))]
    assert set(keys) == good | bad
    reports: Counter[int] = Counter()
    arrived = []
    for batch in eval_loader(source, size=32, resize=32, batch_size=50, workers=2):
        assert len(batch.pictures) == len(batch.indices)
        arrived += batch.indices.tolist()
        for index, line in batch.unreadable:
            reports[index] += 1
            key, tab, reason = line.partition("\t")
            assert (key, tab) == (keys[index], "\t")
            assert reason
            assert not set("\t\r\n") & set(reason)
    assert {keys[index] for index in arrived} == good
    assert len(arrived) == len(good)
    assert {keys[index] for index in reports} == bad
    assert set(reports.values()) == {1}

    settings = CropSettings(global_crops=GlobalCrops(size=32), local_crops=LocalCrops(count=1, size=16))
    data = CropDataset(source, settings, seed=0, max_unreadable=1.0)
    steps = len(source) // 50
    named, shown = set(), set()
    for batch in crop_loader(data, batch_size=50, first_step=0, last_step=steps, seed=0, workers=2):
        assert [tuple(view.shape) for view in batch.views] == [(50, 3, 32, 32)] * 2 + [(50, 3, 16, 16)]
        shown |= {keys[index] for index in batch.indices.tolist()}
        indices = [index for index, _ in batch.unreadable]
        assert len(indices) == len(set(indices))
        named |= {keys[index] for index in indices}
    assert shown <= good
    assert named <= bad
    # One epoch drops at most 49 pictures, and replacements name some of those that it drops.
    assert len(bad - named) < 50
    assert len(good - shown) < 50
    assert capfd.readouterr() == ("", "")
    assert not [str(warning.message) for warning in recwarn.list]


@pytest.mark.slow
def test_a_run_survives_them_and_names_every_one_in_skipped_txt(folder, tiny_recipe, tmp_path):
    everything, _, bad = folder
    root = tmp_path / "some"
    for number, path in enumerate(sorted(path for path in everything.rglob("*") if path.is_file())):
        if number % 5 == 0:
            link = root / path.relative_to(everything)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(path)
    bad = {name for name in bad if (root / name).exists()}
    assert len(bad) > 150
    # Three epochs: what one of them drops as an incomplete batch is in another.
    tiny_recipe["training"] |= {"batch_size": 50, "workers": 1}
    tiny_recipe["crops"] = {"global_crops": {"size": 16}, "local_crops": {"count": 0}}
    tiny_recipe["data"] = {"max_unreadable": 1.0}
    run = mira.pretrain(root, out=tmp_path / "run", recipe=tiny_recipe, quiet=True)
    lines = (run / "skipped.txt").read_text("utf-8").splitlines()
    assert {line.partition("\t")[0] for line in lines} == bad
    assert len(lines) == len(bad)
    assert all(line.partition("\t")[2] for line in lines)


def test_a_link_to_a_file_that_never_ends_is_an_unreadable_picture(tmp_path: Path, monkeypatch) -> None:
    """As /proc/kmsg, which says that it is regular: here a pipe that is taken for one."""
    from mira.data.decoding import UnreadablePicture, read_file

    os.mkfifo(tmp_path / "x.png")
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    writer = os.open(tmp_path / "x.png", os.O_RDWR)
    try:
        with pytest.raises(UnreadablePicture, match=r"x\.png: it has nothing to give yet"):
            read_file(tmp_path / "x.png", key="x.png")
    finally:
        os.close(writer)
