"""From the bytes of a picture file to uint8 [H, W, C], whatever its format, or one sentence saying why not.

Pillow decodes everything. OpenCV decodes JPEG somewhat faster, but depending on its version it returns a half
grey picture for a truncated file and lets its libraries write to stderr; neither may happen here.
"""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")
SUFFIXES = frozenset(
    f".{name}"
    for names in ("jpg jpeg jpe jfif", "png", "webp", "bmp dib", "tif tiff", "gif", "ppm pgm pbm pnm")
    for name in names.split()
)
MAX_PIXELS = 2**27  # 134 million: the largest phone cameras fit; decoded, such a picture takes 400 MB

# Pillow's remarks about odd files would reach stderr through logging's handler of last resort.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class UnreadablePicture(Exception):
    """A picture that cannot be read: `key` names it, `reason` says why, in one line without tabs."""

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        self.reason = " ".join(reason.split())
        super().__init__(key, self.reason)  # the arguments, so that it can be pickled

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # the latter: Windows


def read_file(path: Path, *, key: str) -> bytes:
    """The bytes of a regular file; raises `UnreadablePicture`."""
    try:
        if path.is_dir():
            with_entries = next(path.iterdir(), None)  # a folder that may not be listed raises here
            raise UnreadablePicture(key, "a folder" if with_entries else "an empty folder")
        if path.exists() and not path.is_file():  # opening a named pipe would wait for ever
            raise UnreadablePicture(key, "not a regular file")
        # Without waiting: some files of /proc look regular, have nothing to give and never end.
        with os.fdopen(os.open(path, os.O_RDONLY | _NO_WAIT), "rb", buffering=0) as file:
            content = file.read()
        if content is None:
            raise UnreadablePicture(key, "it has nothing to give yet")
        return bytes(content)
    except OSError as error:
        broken_link = isinstance(error, FileNotFoundError) and path.is_symlink()
        reason = "a symbolic link to nothing" if broken_link else (error.strerror or str(error))
        raise UnreadablePicture(key, reason[:1].lower() + reason[1:]) from error


class Decoded(NamedTuple):
    """A picture and the size of its original, beside which it is `shrink` times smaller."""

    picture: UInt8[np.ndarray, "H W C"]
    height: int
    width: int
    shrink: int


def decode(data: bytes, *, key: str, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """Decode a picture by its content, upright (EXIF orientation), the first frame where there are several.

    Args:
        data: the bytes of the file.
        key: its name, for the error.
        channels: 3 (RGB) or 1 (grey, ITU-R 601 luma).

    Returns:
        A writable uint8 array [H, W, channels].

    Raises:
        UnreadablePicture: empty, truncated, damaged, of an unknown format, or more than `MAX_PIXELS`.
    """
    return decode_shrunk(data, key=key, channels=channels, allowed=lambda height, width: 1).picture


def decode_shrunk(data: bytes, *, key: str, channels: int, allowed: Callable[[int, int], int]) -> Decoded:
    """Decode a picture as `decode` does, a JPEG at 1/2, 1/4 or 1/8 of its size where that is enough.

    A JPEG's blocks of 8 x 8 pixels are then computed from their lower frequencies only, which saves most of the work
    but the reading of the bits.

    Args:
        data: the bytes of the file.
        key: its name, for the error.
        channels: 3 (RGB) or 1 (grey, ITU-R 601 luma).
        allowed: from the upright picture's height and width to how many times smaller it may be: 1, 2, 4 or 8.

    Raises:
        UnreadablePicture: as `decode`.
    """
    if not data:
        raise UnreadablePicture(key, "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if not width * height:
                raise UnreadablePicture(key, "a picture without pixels")
            if width * height > MAX_PIXELS:
                reason = f"{width} x {height} pixels, more than {MAX_PIXELS // 10**6} million"
                raise UnreadablePicture(key, reason)
            orientation = _orientation(image)
            upright = (width, height) if orientation >= 5 else (height, width)
            shrink = _draft(image, orientation, allowed(*upright))
            with _silent_stderr() if image.format == "TIFF" else contextlib.nullcontext():
                image.load()
            _turn_upright(image)
            return Decoded(to_array(image, channels=channels), *upright, shrink)
    except UnreadablePicture:
        raise
    except UnidentifiedImageError as error:
        raise UnreadablePicture(key, "not a picture (JPEG, PNG, WebP, BMP, TIFF, GIF, PNM)") from error
    except Image.DecompressionBombError as error:  # Pillow's own, higher limit comes first
        raise UnreadablePicture(key, f"more than {MAX_PIXELS // 10**6} million pixels") from error
    except Exception as error:
        # Pillow raises almost anything on damaged input: OSError, SyntaxError, struct.error, IndexError, ...
        raise UnreadablePicture(key, f"damaged: {str(error) or type(error).__name__}") from error


def to_array(image: Image.Image, *, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """A picture of any Pillow mode as uint8 [H, W, channels].

    Transparency shows white. 16-bit grey is scaled by 255/65535. Floating point in [0, 1] is scaled by 255;
    any other 32-bit picture has no agreed range and is stretched from its own minimum to its own maximum.
    """
    if image.mode[0] in "IF":  # I;16 and its byte orders, I, F
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        if image.mode not in ("1", "L"):
            image = image.convert("RGB")  # there is no direct way from some modes to grey
        image = image.convert(mode)
    return np.array(image).reshape(image.height, image.width, channels)


def _to_8_bits(values: Num[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    if not np.issubdtype(values.dtype, np.integer):
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if values.dtype == np.int32 and low >= 0 and high <= 255:
        low, high = 0.0, 255.0  # wide integers that hold an ordinary 8-bit picture
    elif np.issubdtype(values.dtype, np.integer) and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (values.astype(np.float64) - low) * (255 / max(high - low, 1e-30))
    return np.rint(scaled).astype(np.uint8)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Silence libtiff, which writes about damaged files to the process's own stderr."""
    try:
        saved = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _orientation(image: Image.Image) -> int:
    """EXIF's number for how the picture is turned; 1 is upright, from 5 on height and width are exchanged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1  # EXIF data that nobody can read does not spoil the picture


def _turn_upright(image: Image.Image) -> None:
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _draft(image: Image.Image, orientation: int, shrink: int) -> int:
    """Have a JPEG decoded at 1/shrink of its size where nothing else changes; returns how many times smaller."""
    width, height = image.size
    # A block cut short at the right or the bottom would shift all pixels when it comes to lie at the other side.
    whole = width % shrink == height % shrink == 0
    if image.format != "JPEG" or shrink == 1 or not (orientation == 1 or whole):
        return 1
    image.draft(None, (width // shrink, height // shrink))
    return shrink
