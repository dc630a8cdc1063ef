"""Applying a crop's parameters to uint8 pictures [H, W, C], on the CPU.

Each operation is torchvision's to within one grey level on average, in the same order, several times as fast.
"""

import math

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from mira.data.crops import LUMA, YIQ_QUARTER_TURN, Box, HueSpace, Look

_UNIT = np.eye(3, dtype=np.float32)
_GREY = np.tile(LUMA, (3, 1))


def cut(picture: UInt8[np.ndarray, "H W C"], box: Box, size: int, *, shrink: int = 1) -> UInt8[np.ndarray, "S S C"]:
    """Cut a box out and resize it to size x size: bicubic with antialiasing, as Pillow does it.

    Args:
        picture: decoded at 1/shrink of its size.
        box: in pixels of the full size.
        size: of the crop.
        shrink: the box's edges may then lie between the picture's pixels.
    """
    if shrink == 1:
        piece = picture[box.top : box.top + box.height, box.left : box.left + box.width]
        return resize(piece, (size, size))
    (top, bottom), (left, right) = (
        (start / shrink, (start + length) / shrink) for start, length in zip(box[:2], box[2:], strict=True)
    )
    vertical, horizontal = _whole_start(top, (bottom - top) / size), _whole_start(left, (right - left) / size)
    if vertical is None or horizontal is None:  # Pillow begins anywhere, but is slow
        image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
        # The last pixel of a picture may be the rest of one.
        edges = (left, top, min(right, image.width), min(bottom, image.height))
        resized = image.resize((size, size), Image.Resampling.BICUBIC, box=edges)
        return np.asarray(resized).reshape(size, size, -1)
    (y, rows), (x, columns) = vertical, horizontal
    piece = picture[y : math.ceil(bottom), x : math.ceil(right)]
    scale = (size / (bottom - top), size / (right - left))
    return np.ascontiguousarray(resize(piece, (rows + size, columns + size), scale)[rows:, columns:])


def _whole_start(start: float, step: float) -> tuple[int, int] | None:
    """Where resizing can begin for a crop that starts between two pixels, or None.

    PyTorch resizes from a whole pixel on. So it begins some pixels of the result early, where that is within an
    eighth of a whole pixel of the picture; these pixels are dropped again.

    Args:
        start: of the crop, in the picture's pixels.
        step: the distance of the result's pixels.

    Returns:
        The pixel to begin at, and how many pixels of the result that is early.
    """
    for early in range(1 + min(16, int(start / step))):
        place = start - early * step
        if abs(place - round(place)) <= 1 / 8:
            return round(place), early
    return None


def resize(
    piece: UInt8[np.ndarray, "H W C"],
    size: tuple[int, int],
    scale: tuple[float, float] | tuple[None, None] = (None, None),
) -> UInt8[np.ndarray, "Y X C"]:
    """Resize to (height, width), bicubic with antialiasing; `scale` times as large if that is not exactly the size."""
    # PyTorch resizes uint8 in channels-last order with vector instructions, eight times as fast as Pillow; it
    # recognises that order by the strides, the first axis's included, so that axis is added before the turn.
    batch = torch.from_numpy(np.require(piece[None], requirements="W")).permute(0, 3, 1, 2)
    # What interpolate(mode="bicubic", antialias=True) calls; that takes a size or a scale, but not both.
    resized = torch.ops.aten._upsample_bicubic2d_aa.default(batch, size, False, *scale)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy()[0])


def apply(
    crop: UInt8[np.ndarray, "S S C"], look: Look, *, max_sigma: float, hue_space: HueSpace = "hsv"
) -> UInt8[np.ndarray, "S S C"]:
    """Flip, jitter, grey, blur and solarise a crop, in this order.

    Args:
        crop: the crop; it is not changed.
        look: what to do.
        max_sigma: the largest sigma of the settings, which limits the blur's kernel.
        hue_space: in which the hue turns.
    """
    shape = crop.shape
    if look.flip:
        crop = cv2.flip(crop, 1)
    for operation, factor in look.jitter:
        crop = hue(crop, factor, hue_space) if operation == "hue" else _JITTER[operation](crop, factor)
    if look.grey:
        crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if look.sigma:
        crop = blur(crop, look.sigma, max_sigma=max_sigma)
    if look.solarise:
        crop = solarise(crop)
    return crop.reshape(shape)  # OpenCV drops an axis of length one


def brightness(crop: UInt8[np.ndarray, "S S ..."], factor: float) -> UInt8[np.ndarray, "S S ..."]:
    """Scale all values."""
    return cv2.convertScaleAbs(crop, alpha=factor)


def contrast(crop: UInt8[np.ndarray, "S S ..."], factor: float) -> UInt8[np.ndarray, "S S ..."]:
    """Scale the distances from the crop's mean luma."""
    mean = cv2.mean(crop)
    luma = mean[0] if crop.ndim == 2 or crop.shape[2] == 1 else float(np.dot(LUMA, mean[:3]))
    return cv2.addWeighted(crop, factor, crop, 0, (1 - factor) * luma)


def saturation(crop: UInt8[np.ndarray, "S S 3"], factor: float) -> UInt8[np.ndarray, "S S 3"]:
    """Scale the distances of the colours from their pixel's luma."""
    return cv2.transform(crop, factor * _UNIT + (1 - factor) * _GREY)


def hue(crop: UInt8[np.ndarray, "S S 3"], factor: float, space: HueSpace = "hsv") -> UInt8[np.ndarray, "S S 3"]:
    """Turn the hue by `factor` of the full circle, in HSV or in the plane of I and Q."""
    if space == "yiq":
        cos, sin = math.cos(2 * math.pi * factor), math.sin(2 * math.pi * factor)
        return cv2.transform(crop, _GREY + cos * (_UNIT - _GREY) + sin * YIQ_QUARTER_TURN)
    hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(factor * 256) % 256)  # wraps around, as the circle does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def blur(crop: UInt8[np.ndarray, "S S ..."], sigma: float, *, max_sigma: float) -> UInt8[np.ndarray, "S S ..."]:
    """Gaussian blur with reflected borders and a kernel of radius 3 max_sigma (13 x 13 for sigma up to 2)."""
    radius = min(round(3 * max_sigma), math.ceil(4 * sigma))  # beyond four sigma the kernel is below 1/255
    kernel = cv2.getGaussianKernel(2 * radius + 1, sigma)
    # OpenCV rounds the kernel of uint8 pictures to 1/256; its sum must stay 1 or the picture darkens.
    rounded = np.rint(kernel * 256)
    rounded[radius] += 256 - rounded.sum()
    kernel = rounded / 256
    return cv2.sepFilter2D(crop, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)


def solarise(crop: UInt8[np.ndarray, "S S ..."]) -> UInt8[np.ndarray, "S S ..."]:
    """Invert all values from 128 on, which is the smaller of a value and its inverse."""
    return cv2.min(crop, cv2.bitwise_not(crop))


_JITTER = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
