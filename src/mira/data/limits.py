"""How much one file may ask for: a few bytes can describe a picture that takes gigabytes.

The limit holds in every process that decodes, so a machine needs as much again for each worker. It is an environment
variable and no part of a recipe: it says what the machine can do, and workers inherit it.
"""

import os

from PIL import Image

_VARIABLE = "MIRA_IMAGE_MEGABYTES"
_USUAL = 1024.0

# Bytes that a decoder needs for a pixel beside Pillow's own picture, as measured.
_DECODER = {"WEBP": 12, "TIFF": 4, "GIF": 1, "PPM": 4, "HEIF": 8, "AVIF": 6}
_PROGRESSIVE = 8  # the coefficients of all components, two bytes each


def image_bytes() -> int:
    """Bytes that one picture may take while it is decoded, and a file at all.

    Raises:
        ValueError: $MIRA_IMAGE_MEGABYTES is no number of megabytes.
    """
    return int(megabytes_of(_VARIABLE, _USUAL) * 2**20)


def megabytes_of(variable: str, usual: float, unit: str = "megabytes") -> float:
    """A size that an environment variable gives, or the usual one.

    Raises:
        ValueError: it is no size.
    """
    text = os.environ.get(variable)
    if not text:
        return usual
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1e9:
        raise ValueError(f"the environment variable {variable} must be a number of {unit}, not {text[:40]!r}")
    return value


def working_bytes(image: Image.Image, *, channels: int, turned: bool) -> int:
    """Bytes that decoding takes, told by the header alone.

    Args:
        image: opened, not loaded.
        channels: of what it is decoded to.
        turned: whether it has to be turned upright, for which there are two of it.
    """
    mode = image.mode
    stored = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
    decoder = _DECODER.get(image.format or "", 0) + (_PROGRESSIVE if image.info.get("progressive") else 0)
    # Decoding, turning, converting: one after the other.
    return image.width * image.height * max(stored + decoder, stored * (1 + turned), stored + channels)
