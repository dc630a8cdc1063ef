import contextlib
import io
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mira.data.decoding import MAX_PIXELS, UnreadablePicture, decode, read_file

CHINA = np.ascontiguousarray(load_sample_images().images[0][::4, ::4])
HEIGHT, WIDTH = CHINA.shape[:2]
LUMA = np.array([0.299, 0.587, 0.114])


def encode(image: Image.Image, suffix: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def off(ours: np.ndarray, expected: np.ndarray) -> float:
    assert ours.dtype == np.uint8
    assert ours.shape == expected.shape
    assert ours.flags.writeable
    return float(np.abs(ours.astype(int) - expected.astype(int)).mean())


def png(rows: np.ndarray, depth: int, kind: int, **chunks: bytes) -> bytes:
    """A PNG written by hand: `rows` uint8 [H, bytes per row]; `kind` 0 grey, 2 RGB, 3 palette, 6 RGBA."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    header = struct.pack(">IIBBBBB", rows.shape[1] * 8 // bits, rows.shape[0], depth, kind, 0, 0, 0)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    extra = b"".join(chunk(name.encode(), value) for name, value in chunks.items())
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_lossless_formats_give_the_same_pixels(suffix):
    options = {"lossless": True} if suffix == "WEBP" else {}
    assert off(decode(encode(Image.fromarray(CHINA), suffix, **options), key="x", channels=3), CHINA) == 0


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"optimize": True}])
def test_jpeg(options):
    data = encode(Image.fromarray(CHINA), "JPEG", quality=95, **options)
    assert off(decode(data, key="x", channels=3), CHINA) < 6


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"])
def test_grey_becomes_three_equal_channels_or_stays_one(suffix):
    grey = Image.fromarray(CHINA).convert("L")
    data = encode(grey, suffix, **({"lossless": True} if suffix == "WEBP" else {}))
    three, one = (decode(data, key="x", channels=channels) for channels in (3, 1))
    assert (three == three[..., :1]).all()
    assert off(one, np.asarray(grey)[..., None]) < (6 if suffix == "JPEG" else 0.5)


def test_colour_becomes_luma_when_one_channel_is_asked_for():
    data = encode(Image.fromarray(CHINA), "PNG")
    assert off(decode(data, key="x", channels=1), (CHINA @ LUMA).round()[..., None].astype(np.uint8)) < 0.6


def test_alpha_is_laid_on_white():
    alpha = np.linspace(0, 255, WIDTH).astype(np.uint8)[None, :].repeat(HEIGHT, 0)
    share = alpha[..., None] / 255
    expected = np.rint(CHINA * share + 255 * (1 - share)).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([CHINA, alpha]))
    for suffix, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert off(decode(encode(rgba, suffix, **options), key="x", channels=3), expected) <= 1
    grey = (CHINA @ LUMA).round().astype(np.uint8)
    expected = np.rint(grey * share[..., 0] + 255 * (1 - share[..., 0])).astype(np.uint8)[..., None]
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    assert off(decode(encode(la, "PNG"), key="x", channels=1), expected) <= 1


def test_palette_with_and_without_transparency():
    palette = np.array([[255, 0, 0], [0, 200, 0], [10, 20, 30], [0, 0, 255]], np.uint8)
    index = np.tile(np.array([[0, 1, 2, 3]], np.uint8), (3, 2))
    data = png(index, 8, 3, PLTE=palette.tobytes())
    assert np.array_equal(decode(data, key="x", channels=3), palette[index])
    clear = png(index, 8, 3, PLTE=palette.tobytes(), tRNS=bytes([255, 0, 255, 255]))
    palette[1] = 255
    assert np.array_equal(decode(clear, key="x", channels=3), palette[index])


def test_rgb_png_with_one_transparent_colour():
    rows = np.array([[9, 8, 7, 1, 2, 3]], np.uint8)
    data = png(rows, 8, 2, tRNS=struct.pack(">HHH", 9, 8, 7))
    assert decode(data, key="x", channels=3).tolist() == [[[255, 255, 255], [1, 2, 3]]]


def test_one_bit():
    data = png(np.array([[0b10110001]], np.uint8), 1, 0)
    assert decode(data, key="x", channels=1)[0, :, 0].tolist() == [255, 0, 255, 255, 0, 0, 0, 255]
    fax = encode(Image.fromarray(CHINA[..., 0] > 128), "TIFF", compression="group4")
    assert np.array_equal(decode(fax, key="x", channels=1)[..., 0] == 255, CHINA[..., 0] > 128)


SIXTEEN = np.linspace(0, 65535, 64 * 64).round().reshape(64, 64).astype(np.uint16)
EIGHT = np.rint(SIXTEEN / 257).astype(np.uint8)[..., None]


@pytest.mark.parametrize("suffix", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(suffix):
    data = encode(Image.fromarray(SIXTEEN), suffix)
    assert off(decode(data, key="x", channels=1), EIGHT) == 0
    assert off(decode(data, key="x", channels=3), EIGHT.repeat(3, 2)) == 0


def test_16_bit_grey_written_by_hand_in_both_byte_orders():
    assert off(decode(png(SIXTEEN.astype(">u2").view(np.uint8), 16, 0), key="x", channels=1), EIGHT) == 0
    for order in "<>":
        assert off(decode(tiff(SIXTEEN[..., None], order), key="x", channels=1), EIGHT) == 0


def test_16_bit_colour():
    rgb = np.dstack([SIXTEEN, SIXTEEN.T, SIXTEEN[::-1]])
    expected = np.rint(rgb / 257).astype(np.uint8)
    assert off(decode(png(rgb.astype(">u2").reshape(64, -1).view(np.uint8), 16, 2), key="x", channels=3), expected) <= 1
    for order in "<>":
        assert off(decode(tiff(rgb, order), key="x", channels=3), expected) <= 1


def tiff(pixels: np.ndarray, order: str) -> bytes:
    """A plain uncompressed 16-bit TIFF, written by hand in one of the two byte orders."""
    height, width, samples = pixels.shape
    body = pixels.astype(f"{order}u2").tobytes()
    bits_at = 8 + len(body)
    directory_at = bits_at + 6 + len(body) % 2
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, samples, bits_at if samples > 1 else 16),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if samples == 3 else 1),
        (273, 4, 1, 8),
        (277, 3, 1, samples),
        (278, 4, 1, height),
        (279, 4, 1, len(body)),
    ]
    entries = b""
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        entries += struct.pack(f"{order}HHI", tag, kind, count)
        entries += struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, directory_at)
    bits = struct.pack(f"{order}HHH", 16, 16, 16) + b"\0" * (len(body) % 2)
    return start + body + bits + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0"


def test_floating_point_and_32_bit_tiff():
    share = (np.arange(256, dtype=np.float32) / 255).reshape(16, 16)
    expected = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert off(decode(encode(Image.fromarray(share), "TIFF"), key="x", channels=1), expected) == 0
    stretched = Image.fromarray(share * 500 - 100)
    assert off(decode(encode(stretched, "TIFF"), key="x", channels=1), expected) == 0
    share[0, 0] = np.nan
    assert off(decode(encode(Image.fromarray(share), "TIFF"), key="x", channels=1), expected) == 0
    wide = Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16) * 100_000)
    assert off(decode(encode(wide, "TIFF"), key="x", channels=1), expected) == 0


def test_cmyk_jpeg_as_photoshop_writes_it():
    cmyk = Image.fromarray(CHINA).convert("CMYK")
    data = encode(cmyk, "JPEG", quality=95)
    assert b"Adobe" in data  # the marker that goes with inverted values
    assert off(decode(data, key="x", channels=3), CHINA) < 6
    assert off(decode(encode(cmyk, "TIFF"), key="x", channels=3), CHINA) == 0


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x, 1)),
        (7, lambda x: x.swapaxes(0, 1)[::-1, ::-1]),
        (8, lambda x: np.rot90(x, -1)),
    ],
)
def test_exif_orientation(suffix, orientation, stored):
    """`stored` is how a camera held that way writes the scene: decoding must bring it upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(CHINA)))
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(suffix, {})
    assert off(decode(encode(image, suffix, exif=exif, **options), key="x", channels=3), CHINA) < 6


def test_broken_exif_does_not_spoil_the_picture():
    data = encode(Image.fromarray(CHINA), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert off(decode(data, key="x", channels=3), CHINA) < 6


@pytest.mark.parametrize("suffix", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_first_frame_of_many(suffix):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == "WEBP" else {}
    data = encode(frames[0], suffix, save_all=True, append_images=frames[1:], **options)
    assert off(decode(data, key="x", channels=3), np.full((10, 20, 3), (255, 0, 0), np.uint8)) <= 1


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_compressed_tiff(compression):
    data = encode(Image.fromarray(CHINA), "TIFF", compression=compression)
    assert off(decode(data, key="x", channels=3), CHINA) < 10


REASONS = {
    "empty": (b"", "the file is empty"),
    "text": (b"these are not the pixels you are looking for", "not a picture"),
    "html": (b"<!doctype html><html>404 not found</html>", "not a picture"),
    "zeros": (bytes(5000), "not a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
}


@pytest.mark.parametrize("case", REASONS)
def test_what_is_no_picture_says_so(case):
    data, words = REASONS[case]
    with pytest.raises(UnreadablePicture, match=words) as raised:
        decode(data, key="a/b.jpg", channels=3)
    assert raised.value.key == "a/b.jpg"
    assert "\n" not in raised.value.reason
    assert "\t" not in raised.value.reason


@pytest.mark.parametrize("side", [2**14, 2**16, 2**20])
def test_huge_dimensions_are_refused_before_decoding(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    data = b"\x89PNG\r\n\x1a\n" + chunk + encode(Image.fromarray(CHINA), "PNG")[33:]
    assert side * side > MAX_PIXELS
    with pytest.raises(UnreadablePicture, match="million"):
        decode(data, key="x", channels=3)


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated_files_are_unreadable(suffix, capfd):
    data = encode(Image.fromarray(CHINA), suffix)
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
        with pytest.raises(UnreadablePicture) as raised:
            decode(data[: int(share * len(data))], key="x", channels=3)
        assert raised.value.reason == " ".join(raised.value.reason.split())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "TIFF"])
def test_damage_in_the_middle_is_quiet(suffix, capfd, recwarn):
    """Unreadable or a picture, but nothing on stderr and no other exception."""
    options = {"compression": "tiff_lzw"} if suffix == "TIFF" else {}
    data = encode(Image.fromarray(CHINA), suffix, **options)
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(data)
        at = int(rng.integers(0, len(data) - 20))
        damaged[at : at + 20] = rng.bytes(20)
        with contextlib.suppress(UnreadablePicture):
            decode(bytes(damaged), key="x", channels=3)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadablePicture("a\tb.jpg", "line one\nline two\t.")))
    assert (error.key, error.reason) == ("a\tb.jpg", "line one line two .")


def test_files_that_are_no_files(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, words in {
        "folder": "an empty folder",
        "link": "a symbolic link to nothing",
        "loop": "too many levels",
        "pipe": "not a regular file",
        "missing": "no such file",
    }.items():
        with pytest.raises(UnreadablePicture, match=words) as raised:
            read_file(tmp_path / f"{name}.jpg", key=name)
        assert raised.value.key == name
