"""Applying a crop's parameters to uint8 pictures [H, W, C], on the CPU.

Each operation is torchvision's to within one grey level on average, in the same order, several times as fast.
"""

import math

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from mira.data.crops import Box, Look

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as in Pillow's "L"


def cut(picture: UInt8[np.ndarray, "H W C"], box: Box, size: int) -> UInt8[np.ndarray, "S S C"]:
    """Cut a box out and resize it to size x size: bicubic with antialiasing, as Pillow does it."""
    piece = picture[box.top : box.top + box.height, box.left : box.left + box.width]
    # PyTorch resizes uint8 in channels-last order with vector instructions, eight times as fast as Pillow; it
    # recognises that order by the strides, the first axis's included, so that axis is added before the turn.
    batch = torch.from_numpy(np.require(piece, requirements="W"))[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(batch, size=(size, size), mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy()[0])


def apply(crop: UInt8[np.ndarray, "S S C"], look: Look, *, max_sigma: float) -> UInt8[np.ndarray, "S S C"]:
    """Flip, jitter, grey, blur and solarise a crop, in this order.

    Args:
        crop: the crop; it is not changed.
        look: what to do.
        max_sigma: the largest sigma of the settings, which limits the blur's kernel.
    """
    shape = crop.shape
    if look.flip:
        crop = cv2.flip(crop, 1)
    for operation, factor in look.jitter:
        crop = _JITTER[operation](crop, factor)
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
    luma = mean[0] if crop.ndim == 2 or crop.shape[2] == 1 else float(np.dot(_LUMA, mean[:3]))
    return cv2.addWeighted(crop, factor, crop, 0, (1 - factor) * luma)


def saturation(crop: UInt8[np.ndarray, "S S 3"], factor: float) -> UInt8[np.ndarray, "S S 3"]:
    """Scale the distances of the colours from their pixel's luma."""
    matrix = np.tile((1 - factor) * _LUMA, (3, 1)) + np.diag(np.full(3, factor, np.float32))
    return cv2.transform(crop, matrix.astype(np.float32))


def hue(crop: UInt8[np.ndarray, "S S 3"], factor: float) -> UInt8[np.ndarray, "S S 3"]:
    """Turn the hue in HSV by `factor` of the full circle."""
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


_JITTER = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
