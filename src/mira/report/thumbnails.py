"""Pictures inside the page: small, and as text."""

import base64
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SIDE = 112
"""Thumbnails' side in pixels: twice what the page shows at most, for dense screens."""


def thumbnail(picture: UInt8[np.ndarray, "H W C"], *, side: int = SIDE) -> str:
    """A square `data:` address of the picture's centre.

    Pictures that are small already stay as they are, without loss (PNG); others are cut, scaled to `side` and
    compressed (WebP).
    """
    height, width, channels = picture.shape
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    cut = np.ascontiguousarray(picture[top : top + square, left : left + square])
    image = Image.fromarray(cut[:, :, 0] if channels == 1 else cut)
    buffer = io.BytesIO()
    if square <= side // 2:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.resize((side, side), Image.Resampling.LANCZOS).convert("RGB").save(buffer, "WEBP", quality=78, method=4)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
