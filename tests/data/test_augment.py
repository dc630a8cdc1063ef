import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import mira._torchvision  # noqa: F401  (must come before torchvision)
from mira.data import augment
from mira.data.crops import Box, Look

from torchvision.transforms.v2 import functional as tv  # isort: skip

CHINA, FLOWER = (np.ascontiguousarray(picture) for picture in load_sample_images().images)
PICTURES = [CHINA[60:284, 200:424], FLOWER[100:324, 200:424]]


def through_tensor(operation, picture: np.ndarray, *arguments) -> np.ndarray:
    planes = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
    return operation(planes, *arguments).permute(1, 2, 0).numpy()


def difference(ours: np.ndarray, theirs) -> float:
    theirs = np.asarray(theirs)
    assert ours.dtype == theirs.dtype == np.uint8
    assert ours.shape == theirs.shape
    return float(np.abs(ours.astype(int) - theirs.astype(int)).mean())


@pytest.mark.parametrize("picture", [CHINA, FLOWER], ids=["china", "flower"])
@pytest.mark.parametrize("box", [Box(0, 0, 427, 640), Box(13, 57, 300, 401), Box(100, 200, 61, 47), Box(5, 6, 1, 1)])
@pytest.mark.parametrize("size", [224, 96, 28])
@pytest.mark.parametrize("channels", [3, 1])
def test_cut_is_pillows_crop_and_antialiased_bicubic_resize(picture, box, size, channels):
    picture = picture if channels == 3 else np.ascontiguousarray(picture[..., 1:2])
    image = Image.fromarray(picture if channels == 3 else picture[..., 0])
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    expected = np.asarray(image.crop(corners).resize((size, size), Image.Resampling.BICUBIC))
    ours = augment.cut(picture, box, size)
    assert ours.flags.c_contiguous
    assert difference(ours, expected.reshape(size, size, channels)) <= 0.1
    assert np.abs(ours.astype(int) - expected.reshape(ours.shape)).max() <= 2


def test_a_cut_of_the_right_size_copies():
    assert np.array_equal(augment.cut(CHINA, Box(10, 20, 96, 96), 96), CHINA[10:106, 20:116])


@pytest.mark.parametrize("picture", PICTURES, ids=["china", "flower"])
@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (augment.brightness, tv.adjust_brightness, (0.0, 0.6, 0.93, 1.4, 2.5)),
        (augment.contrast, tv.adjust_contrast, (0.0, 0.6, 0.93, 1.4, 2.5)),
        (augment.saturation, tv.adjust_saturation, (0.0, 0.8, 1.2, 2.0)),
        (augment.hue, tv.adjust_hue, (-0.5, -0.1, -0.004, 0.0, 0.03, 0.1, 0.5)),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_colour_is_torchvisions_to_one_grey_level(picture, ours, theirs, factors):
    for factor in factors:
        assert difference(ours(picture, factor), through_tensor(theirs, picture, factor)) <= 1


@pytest.mark.parametrize("picture", PICTURES, ids=["china", "flower"])
@pytest.mark.parametrize("channels", [3, 1])
def test_colour_is_pillows_to_one_grey_level_where_pillow_is_exact(picture, channels):
    """Pillow's own hue goes through 8-bit HSV with a truncated angle, so it is left to the test above."""
    picture = picture if channels == 3 else np.ascontiguousarray(picture[..., :1])
    image = Image.fromarray(picture if channels == 3 else picture[..., 0])
    for factor in (0.6, 1.4):
        shape = picture.shape
        assert difference(augment.brightness(picture, factor).reshape(shape), tv_pil("brightness", image, factor)) <= 1
        assert difference(augment.contrast(picture, factor).reshape(shape), tv_pil("contrast", image, factor)) <= 1
        if channels == 3:
            assert difference(augment.saturation(picture, factor), tv_pil("saturation", image, factor)) <= 1


def tv_pil(operation: str, image: Image.Image, factor: float) -> np.ndarray:
    result = np.asarray(getattr(tv, f"adjust_{operation}")(image, factor))
    return result if result.ndim == 3 else result[..., None]


@pytest.mark.parametrize("picture", PICTURES, ids=["china", "flower"])
@pytest.mark.parametrize("channels", [3, 1])
def test_blur_is_torchvisions_with_a_kernel_of_13(picture, channels):
    picture = np.ascontiguousarray(picture[..., :channels])
    for sigma in (0.1, 0.3, 0.5, 0.8, 1.2, 1.7, 2.0):
        ours = augment.blur(picture, sigma, max_sigma=2.0).reshape(picture.shape)
        assert difference(ours, through_tensor(tv.gaussian_blur, picture, [13, 13], [sigma, sigma])) <= 0.3


def test_blur_neither_darkens_nor_brightens():
    white = np.full((32, 32, 3), 255, np.uint8)
    for sigma in np.linspace(0.05, 4, 80):
        assert augment.blur(white, float(sigma), max_sigma=4.0).min() == 255


def test_blur_of_a_picture_smaller_than_its_kernel():
    assert augment.blur(PICTURES[0][:5, :5], 2.0, max_sigma=2.0).shape == (5, 5, 3)


@pytest.mark.parametrize("picture", PICTURES, ids=["china", "flower"])
def test_solarise_flip_and_grey_are_torchvisions(picture):
    plain = Look(flip=False, jitter=(), grey=False, sigma=0.0, solarise=False)

    def apply(**changes) -> np.ndarray:
        return augment.apply(picture, plain._replace(**changes), max_sigma=2.0)

    image = Image.fromarray(picture)
    assert np.array_equal(apply(), picture)
    assert np.array_equal(apply(solarise=True), np.asarray(tv.solarize(image, 128)))
    assert np.array_equal(apply(flip=True), np.asarray(tv.horizontal_flip(image)))
    assert difference(apply(grey=True), np.asarray(tv.rgb_to_grayscale(image, 3))) <= 0.1


@pytest.mark.parametrize("picture", PICTURES, ids=["china", "flower"])
def test_the_whole_chain_in_the_published_order(picture):
    """The same parameters through torchvision's tensor operations, one after the other: errors do not add up much."""
    jitter = (("hue", 0.06), ("contrast", 0.8), ("brightness", 1.25), ("saturation", 1.15))
    look = Look(flip=True, jitter=jitter, grey=False, sigma=1.3, solarise=True)
    expected = through_tensor(tv.horizontal_flip, picture)
    for operation, factor in jitter:
        expected = through_tensor(getattr(tv, f"adjust_{operation}"), expected, factor)
    expected = through_tensor(tv.gaussian_blur, expected, [13, 13], [1.3, 1.3])
    expected = through_tensor(tv.solarize, expected, 128)
    before = picture.copy()
    assert difference(augment.apply(picture, look, max_sigma=2.0), expected) <= 1.5
    assert np.array_equal(picture, before)


def test_order_of_the_jitter_matters():
    look = Look(False, (("brightness", 1.6), ("contrast", 0.5)), False, 0.0, False)
    turned = look._replace(jitter=look.jitter[::-1])
    one, other = (augment.apply(PICTURES[0], each, max_sigma=2.0) for each in (look, turned))
    assert difference(one, other) > 1


def test_one_channel_keeps_its_shape():
    grey = np.ascontiguousarray(PICTURES[0][..., :1])
    look = Look(True, (("contrast", 1.2), ("brightness", 0.8)), False, 1.0, True)
    assert augment.apply(grey, look, max_sigma=2.0).shape == grey.shape
