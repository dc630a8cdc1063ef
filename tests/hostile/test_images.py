"""Files of every kind, mutated and crafted: a picture, or `UnreadablePicture` with a reason; bounded memory."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
from campaign import mutated, sentence_or_nothing, tries
from PIL import Image, features

from mira.data.decoding import UnreadablePicture, decode, decode_shrunk

pytestmark = pytest.mark.slow


def files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).resize((60, 45))
    sixteen = Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x112] = 6
    kinds: list[tuple[str, Image.Image, dict]] = [
        ("JPEG", colour, {}),
        ("JPEG", colour, {"progressive": True, "exif": exif}),
        ("JPEG", colour.convert("CMYK"), {}),
        ("JPEG", colour.convert("L"), {"restart_marker_blocks": 2}),
        *[("PNG", colour.convert(mode), {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")],
        ("PNG", sixteen, {}),
        ("PNG", colour, {"save_all": True, "append_images": [colour]}),
        ("WEBP", colour, {"lossless": True}),
        ("WEBP", colour.convert("RGBA"), {"quality": 50}),
        *[
            ("TIFF", colour, {"compression": name})
            for name in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ],
        ("TIFF", colour.convert("1"), {"compression": "group4"}),
        ("TIFF", colour.convert("F"), {}),
        ("TIFF", sixteen, {"save_all": True, "append_images": [sixteen]}),
        ("TIFF", colour.convert("LAB"), {}),
        ("GIF", colour.convert("P"), {"transparency": 3, "save_all": True, "append_images": [colour.convert("P")]}),
        ("BMP", colour, {}),
        ("BMP", colour.convert("P"), {}),
        ("PPM", colour, {}),
        ("PPM", sixteen, {}),
    ]
    if features.check("avif"):
        kinds.append(("AVIF", colour, {"speed": 10}))
    found = {}
    for number, (kind, image, options) in enumerate(kinds):
        file = io.BytesIO()
        image.save(file, kind, **options)
        found[f"{number}.{kind}"] = file.getvalue()
    return found


def test_mutated_files_are_pictures_or_named(capfd: pytest.CaptureFixture) -> None:
    whole = files()
    names = list(whole)
    for number, rng in tries("mutated images", 1500):
        name = names[number % len(names)]
        data = mutated(whole[name], rng)
        channels = 1 if number % 3 else 3

        def read(data: bytes = data, name: str = name, channels: int = channels) -> None:
            if channels == 3:
                picture = decode_shrunk(data, key=name, channels=3, allowed=lambda height, width: 8).picture
            else:
                picture = decode(data, key=name, channels=1)
            assert picture.dtype == np.uint8
            assert picture.shape[2] == channels

        sentence_or_nothing(read, (name, data.hex()), UnreadablePicture)
    assert not capfd.readouterr().err


def bomb(rng: np.random.Generator) -> bytes:
    """A small file whose header describes a large picture."""
    width, height = (int(2 ** rng.uniform(0, 31)) for _ in range(2))
    if rng.random() < 0.3:
        width = min(width, 4)
    kind = int(rng.integers(5))
    if kind == 0:
        depth, colour = [(8, 2), (16, 6), (1, 0), (8, 3), (16, 0), (8, 4)][int(rng.integers(6))]

        def chunk(name: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

        header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(rng.integers(2)))
        body = zlib.compress(bytes(int(rng.integers(1, 2**20))))
        palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    if kind == 1:
        size = struct.pack("<HH", width % 65536, height % 65536)
        return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"," + bytes(4) + size + b"\0\2\2\x44\1\0;"
    if kind == 2:
        return b"P5 %d %d 255\n" % (width, height) + bytes(100)
    if kind == 3:
        return b"BM" + struct.pack(
            "<IIIIiiHHIIIIII", 100, 0, 54, 40, width % 2**31, height % 2**31, 1, 24, 0, 0, 0, 0, 0, 0
        )
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, min(value, 2**32 - 1)) for tag, kind, value in tags)
    return b"II" + struct.pack("<HI", 42, 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_headers_that_describe_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRA_IMAGE_MEGABYTES", "64")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _, rng in tries("image bombs", 300):
        data = bomb(rng)
        sentence_or_nothing(lambda: decode(data, key="bomb", channels=3), data[:200].hex(), UnreadablePicture)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 200 * 1024, f"{taken / 1024:.0f} MB beside the 64 that one image may take"
