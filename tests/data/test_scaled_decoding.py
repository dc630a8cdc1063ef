"""Decoding only the scale that is needed: the same box of the picture, within a grey level of whole decoding."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from mira.data import BatchRequest, CropDataset, CropSettings, GlobalCrops, LocalCrops, UnreadablePicture, crop_loader
from mira.data.augment import cut
from mira.data.crops import Box
from mira.data.decoding import decode, decode_shrunk

PHOTOGRAPHS = load_sample_images().images


def encode(picture: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def gradient() -> np.ndarray:
    """Red grows evenly from left to right, green from top to bottom: a crop shows where it was taken."""
    x, y = np.meshgrid(np.arange(640) * (255 / 640), np.arange(480) * (255 / 480))
    return np.stack([x, y, np.full_like(x, 128)], -1).round().astype(np.uint8)


@settings(max_examples=150, deadline=None)
@given(
    shrink=st.sampled_from([2, 4, 8]),
    top=st.integers(0, 200),
    left=st.integers(0, 300),
    height=st.integers(200, 280),
    width=st.integers(200, 340),
    size=st.sampled_from([24, 25]),
)
def test_a_box_covers_the_same_part_of_a_picture_decoded_smaller(shrink, top, left, height, width, size):
    """On a gradient the crop's values are places: the box is the same to an eighth of a pixel of the small picture."""
    box = Box(top, left, height, width)
    picture = gradient().astype(np.float64)
    small = picture.reshape(480 // shrink, shrink, 640 // shrink, shrink, 3).mean((1, 3)).round().astype(np.uint8)
    whole, ours = cut(gradient(), box, size).astype(float), cut(small, box, size, shrink=shrink).astype(float)
    assert ours.shape == whole.shape
    inner = slice(2, -2)  # the rim sees beyond the box
    shift = (ours - whole)[inner, inner].mean((0, 1))
    for channel, full in enumerate((640, 480)):
        assert abs(shift[channel]) <= shrink / 8 * 255 / full + 0.3  # and the rounding to levels


@dataclass
class Encoded:
    files: list[bytes]
    channels: int = 3
    name = "encoded"
    labels = None
    classes = ()

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        return str(index)

    def encoded(self, index: int) -> bytes:
        return self.files[index]

    def read(self, index: int) -> np.ndarray:
        return decode(self.files[index], key=self.key(index), channels=self.channels)


SMALL = CropSettings(
    global_crops=GlobalCrops(size=64, scale=(0.14, 1.0)), local_crops=LocalCrops(count=4, size=28), grey=0
)


def batches(source: Encoded, count: int = 60) -> list:
    request = BatchRequest(0, np.arange(count) % len(source))
    return [
        CropDataset(source, SMALL, seed=0, max_unreadable=0.0, augment="device", decode=how)[request]
        for how in ("exact", "scaled")
    ]


@pytest.mark.parametrize("subsampling", [0, 2], ids=["4:4:4", "4:2:0"])
def test_crops_differ_by_less_than_a_grey_level_on_average(subsampling):
    source = Encoded([encode(picture, quality=92, subsampling=subsampling) for picture in PHOTOGRAPHS])
    exact, scaled = batches(source)
    differences = [
        (one.float() - other.float()).abs().mean().item() for one, other in zip(exact.views, scaled.views, strict=True)
    ]
    assert 0 < np.mean(differences) < 1
    assert all(torch.equal(one, other) for one, other in zip(exact.looks, scaled.looks, strict=True))


def test_what_is_not_large_enough_is_decoded_whole():
    source = Encoded([encode(np.ascontiguousarray(picture[:120, :120])) for picture in PHOTOGRAPHS])
    for one, other in zip(batches(source)[0].views, batches(source)[1].views, strict=True):
        assert torch.equal(one, other)


def test_other_formats_are_decoded_whole():
    source = Encoded([encode(picture, "PNG") for picture in PHOTOGRAPHS])
    exact, scaled = batches(source, count=6)
    assert all(torch.equal(one, other) for one, other in zip(exact.views, scaled.views, strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(400, 600), (403, 599)], ids=["whole blocks", "blocks cut short"])
def test_turned_photographs(orientation, shape):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = PHOTOGRAPHS[0][: shape[0], : shape[1]]
    data = encode(np.ascontiguousarray(picture), quality=95, exif=exif)
    whole = decode(data, key="", channels=3)
    asked = []
    small = decode_shrunk(data, key="", channels=3, allowed=lambda *size: asked.append(size) or 4)
    assert asked == [whole.shape[:2]] == [(small.height, small.width)]
    assert small.shrink == (4 if orientation == 1 or shape == (400, 600) else 1)
    box = Box(40, 60, 300, 280)
    ours = cut(small.picture, box, 32, shrink=small.shrink)
    assert np.abs(ours.astype(int) - cut(whole, box, 32)).mean() < 2


def test_grey_and_damaged_files():
    data = encode(PHOTOGRAPHS[1], quality=90)
    small = decode_shrunk(data, key="", channels=1, allowed=lambda height, width: 2)
    assert small.picture.shape == (214, 320, 1)
    assert cut(small.picture, Box(3, 5, 301, 333), 64, shrink=2).shape == (64, 64, 1)
    for broken in (data[: len(data) // 2], b"", b"words"):
        with pytest.raises(UnreadablePicture):
            decode_shrunk(broken, key="broken", channels=3, allowed=lambda height, width: 8)


@pytest.mark.parametrize("workers", [1, 2])
def test_same_bits_for_any_number_of_workers(workers):
    source = Encoded([encode(picture) for picture in PHOTOGRAPHS] * 4)
    data = CropDataset(source, SMALL, seed=0, max_unreadable=0.0, decode="scaled")
    runs = [list(crop_loader(data, batch_size=4, first_step=0, last_step=3, seed=0, workers=n)) for n in (0, workers)]
    for alone, together in zip(*runs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(alone.views, together.views, strict=True))
