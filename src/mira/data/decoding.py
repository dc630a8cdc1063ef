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
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from mira.data.limits import image_bytes, working_bytes

OPTIONAL_SUFFIXES = {"pillow-heif": frozenset({".heic", ".heif", ".hif"}), "'pillow>=11.3'": frozenset({".avif"})}
"""What is read where a package is installed."""
_HEIF, _AVIF = find_spec("pillow_heif") is not None, bool(features.check("avif"))
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", *["HEIF"] * _HEIF, *["AVIF"] * _AVIF)
SUFFIXES = frozenset(
    f".{name}"
    for names in ("jpg jpeg jpe jfif", "png", "webp", "bmp dib", "tif tiff", "gif", "ppm pgm pbm pnm")
    for name in names.split()
).union(*(known for known, there in zip(OPTIONAL_SUFFIXES.values(), (_HEIF, _AVIF), strict=True) if there))
MAX_PIXELS = 2**27  # 134 million: the largest phone cameras fit
MAX_SIDE = 2**16 - 1  # pixels: a JPEG has no more, and rows cost memory of their own
MAX_SCANS = 200  # of a progressive JPEG, each of which goes over all pixels; cameras and browsers write about ten
_BAND = 2**20  # pixels that are converted at a time

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
        if (size := path.stat().st_size) > image_bytes():
            raise UnreadablePicture(key, _too_large(f"a file of {size / 2**20:,.0f} MB"))
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
        UnreadablePicture: empty, truncated, damaged, of an unknown format, or larger than `mira.data.limits` allows.
        MemoryError: there is less memory than these limits count on.
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
    _register()
    image_bytes()  # a limit that is none is no fault of the file's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if not width * height:
                raise UnreadablePicture(key, "a picture without pixels")
            _refuse_bombs(image, data, key, channels=channels)
            orientation = _orientation(image)  # of a PNG this decodes all pixels
            if orientation > 1:
                _refuse_bombs(image, data, key, channels=channels, turned=True)
            upright = (width, height) if orientation >= 5 else (height, width)
            shrink = _draft(image, orientation, allowed(*upright))
            with _silent_stderr() if image.format == "TIFF" else contextlib.nullcontext():
                image.load()
            _turn_upright(image)
            return Decoded(to_array(image, channels=channels), *upright, shrink)
    except UnreadablePicture:
        raise
    except UnidentifiedImageError as error:
        raise UnreadablePicture(key, _unknown(data)) from error
    except Image.DecompressionBombError as error:  # Pillow's own, higher limit comes first
        raise UnreadablePicture(key, f"more than {MAX_PIXELS // 10**6} million pixels") from error
    except MemoryError as error:  # no fault of the file's, which another machine may read
        raise MemoryError(
            f"{key}: the memory of this machine is too small to decode it. Use fewer workers, or set the environment "
            "variable MIRA_IMAGE_MEGABYTES to what one image may take: larger ones are then left out"
        ) from error
    except Exception as error:
        # Pillow raises almost anything on damaged input: OSError, SyntaxError, struct.error, IndexError, ...
        raise UnreadablePicture(key, f"damaged: {str(error) or type(error).__name__}") from error


def to_array(image: Image.Image, *, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """A picture of any Pillow mode as uint8 [H, W, channels].

    Transparency shows white. 16-bit grey is scaled by 255/65535, and by 255/4095 where no value needs more than 12
    bits. Floating point in [0, 1] is scaled by 255;
    any other 32-bit picture has no agreed range and is stretched from its own minimum to its own maximum.
    """
    pixels = np.empty((image.height, image.width, channels), np.uint8)
    extremes = _extremes(image) if image.mode[0] in "IF" else (0.0, 0.0)  # I;16 and its byte orders, I, F
    for rows, band in _bands(image):
        pixels[rows] = _band_to_array(band, channels, extremes)
    return pixels


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Some rows of a picture after the other: what they are turned into on the way takes little memory then."""
    rows = max(_BAND // image.width, 1)
    if rows >= image.height:
        yield slice(None), image
        return
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _band_to_array(image: Image.Image, channels: int, extremes: tuple[float, float]) -> UInt8[np.ndarray, "H W C"]:
    if image.mode[0] in "IF":
        image = Image.fromarray(_to_8_bits(np.asarray(image), *extremes))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        if image.mode not in ("1", "L"):
            image = image.convert("RGB")  # there is no direct way from some modes to grey
        image = image.convert(mode)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _extremes(image: Image.Image) -> tuple[float, float]:
    """The values that become black and white."""
    low, high = np.inf, -np.inf
    for _, band in _bands(image):
        values = _finite(np.asarray(band))
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if image.mode == "F":
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    if image.mode == "I" and low >= 0 and high <= 255:
        return 0.0, 255.0  # wide integers that hold an ordinary 8-bit picture
    if image.mode != "I" and high < 2**12:
        return 0.0, 4095.0  # what microscopes and detectors of 12 bits write, which would be nearly black
    return (0.0, 65535.0) if low >= 0 and high <= 65535 else (low, high)


def _to_8_bits(values: Num[np.ndarray, "H W"], low: float, high: float) -> UInt8[np.ndarray, "H W"]:
    scaled = (_finite(values).astype(np.float64) - low) * (255 / max(high - low, 1e-30))
    rounded: UInt8[np.ndarray, "H W"] = np.rint(scaled).astype(np.uint8)
    return rounded


def _finite(values: Num[np.ndarray, "H W"]) -> Num[np.ndarray, "H W"]:
    if np.issubdtype(values.dtype, np.integer):
        return values
    finite: Num[np.ndarray, "H W"] = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    return finite


@cache
def _register() -> None:
    """Make Pillow know formats of other packages."""
    if _HEIF:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _refuse_bombs(image: Image.Image, data: bytes, key: str, *, channels: int, turned: bool = False) -> None:
    """Refuse a small file that takes much memory or time, before any pixel is decoded; raises `UnreadablePicture`."""
    width, height = image.size
    size = f"{width} x {height} pixels ({width * height / 10**6:.0f} million)"
    if width * height > MAX_PIXELS:
        raise UnreadablePicture(key, f"{size}, more than {MAX_PIXELS // 10**6} million")
    if max(width, height) > MAX_SIDE:
        raise UnreadablePicture(key, f"{size}, a side of more than {MAX_SIDE}")
    needed = working_bytes(image, channels=channels, turned=turned) + len(data)
    if needed > image_bytes():
        raise UnreadablePicture(key, _too_large(f"{size}, which take {needed / 2**20:,.0f} MB to decode"))
    if image.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise UnreadablePicture(key, f"a JPEG of {scans} scans, more than {MAX_SCANS}")


def _too_large(what: str) -> str:
    return f"{what}, more than the {image_bytes() / 2**20:,.0f} MB allowed for one image (MIRA_IMAGE_MEGABYTES)"


def _unknown(data: bytes) -> str:
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1") and not _HEIF:
        return "a HEIC picture, which needs pillow-heif: pip install pillow-heif"
    if brand in (b"avif", b"avis") and not _AVIF:
        return "an AVIF picture, which needs a newer Pillow: pip install 'pillow>=11.3'"
    return "not a picture (JPEG, PNG, WebP, BMP, TIFF, GIF, PNM)"


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
