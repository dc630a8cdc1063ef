"""Small files that ask for much are refused before any pixel is decoded, and say so."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from mira.data import open_source
from mira.data.decoding import MAX_SCANS, UnreadablePicture, decode, read_file
from mira.data.remarks import remarks


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, *, depth: int = 8, kind: int = 2) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


GIF = b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + bytes(3) + b"," + struct.pack("<HHHH", 0, 0, 9, 9) + b"\0\2\0;"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(1, 2**27), "a side of more than 65535"),
        (png(2**20, 100), "a side of more than 65535"),
        (png(11_000, 12_000, depth=16, kind=6), None),  # 8 bits of it are kept: 4 + 3 bytes a pixel
        (GIF, "more than 134 million"),
    ],
)
def test_headers_alone_are_enough_to_refuse(data: bytes, words: str | None) -> None:
    with pytest.raises(UnreadablePicture, match=words or "damaged") as caught:
        decode(data, key="a.png", channels=3)
    assert caught.value.key == "a.png"


def test_the_limit_is_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    data = encode(Image.new("RGB", (1000, 1000)), "PNG")
    assert decode(data, key="x", channels=3).shape == (1000, 1000, 3)
    monkeypatch.setenv("MIRA_IMAGE_MEGABYTES", "4")
    with pytest.raises(UnreadablePicture, match=r"1000 x 1000 .*MB allowed for one image \(MIRA_IMAGE_MEGABYTES\)"):
        decode(data, key="x", channels=3)
    assert decode(encode(Image.new("RGB", (500, 500)), "PNG"), key="x", channels=3).shape == (500, 500, 3)
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(UnreadablePicture, match="a file of 1,048,576 MB"):
        read_file(large, key="large.jpg")
    monkeypatch.setenv("MIRA_IMAGE_MEGABYTES", "lots")
    with pytest.raises(ValueError, match="MIRA_IMAGE_MEGABYTES must be a number of megabytes, not 'lots'"):
        decode(data, key="x", channels=3)


def test_a_progressive_jpeg_of_many_scans_is_refused() -> None:
    data = encode(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    assert decode(data, key="x", channels=3).shape == (64, 64, 3)
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    with pytest.raises(UnreadablePicture, match=r"a JPEG of \d+ scans, more than 200"):
        decode(data[:-2] + scan * MAX_SCANS + data[-2:], key="x", channels=3)


def test_a_lack_of_memory_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (9, 9)), "BMP")

    def fail(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(MemoryError, match="a/b.png: the memory of this machine is too small"):
        decode(data, key="a/b.png", channels=3)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "F", "I"])
def test_pictures_are_the_same_in_bands(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 255, (57, 40, 3)).astype(np.uint8)
    image = Image.fromarray(values)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 200)
    elif mode in ("F", "I"):
        image = Image.fromarray(values[..., 0].astype({"F": np.float32, "I": np.int32}[mode]) * 300 - 70)
    elif mode == "RGBA":
        image = Image.fromarray(np.dstack([values, values[..., 0]]))
    else:
        image = image.convert(mode)
    data = encode(image, "TIFF")
    for channels in (1, 3):
        monkeypatch.setattr("mira.data.decoding._BAND", 2**20)
        whole = decode(data, key="x", channels=channels)
        monkeypatch.setattr("mira.data.decoding._BAND", 40 * 10)
        assert np.array_equal(decode(data, key="x", channels=channels), whole)


def test_12_bit_values_are_not_black() -> None:
    twelve = np.linspace(0, 4095, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    for kind in ("TIFF", "PNG"):
        picture = decode(encode(Image.fromarray(twelve), kind), key="x", channels=1)
        assert np.array_equal(picture[..., 0], np.rint(twelve / 4095 * 255).astype(np.uint8))


def test_remarks_on_what_a_person_should_know(tmp_path) -> None:
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
    for number in range(6):
        colour.save(tmp_path / f"plain{number}.png")
    assert remarks(open_source(tmp_path, split="all")) == []
    colour.save(tmp_path / "stack.tif", save_all=True, append_images=[colour])
    Image.fromarray(rng.integers(0, 255, (20, 20, 4), dtype=np.uint8)).save(tmp_path / "four.tif")
    Image.fromarray(rng.integers(0, 4000, (20, 20), dtype=np.uint16)).save(tmp_path / "twelve.tif")
    Image.fromarray(rng.integers(4000, 4200, (20, 20), dtype=np.uint16)).save(tmp_path / "narrow.tif")
    for name in ("a.heic", "b.heic", "c.CR2", "notes.txt", "nothing"):
        (tmp_path / name).write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = remarks(open_source(tmp_path, split="all"))
    assert "left out" in said[0]
    assert ".cr2 1" in said[0]
    assert "without a suffix 1" in said[0]
    text = "\n".join(said)
    for words in (
        "stack.tif is the first",
        "four.tif is the first",
        "twelve.tif is the first",
        "narrow.tif is the first",
    ):
        assert words in text
    assert "of several pages" in text
    assert "of four channels" in text


def test_files_of_other_suffixes_are_told_at_every_start(picture_folder, tiny_recipe, tmp_path, capsys) -> None:
    import shutil

    import mira

    folder = tmp_path / "pictures"
    shutil.copytree(picture_folder, folder)
    for number in range(3):
        (folder / f"{number}.CR2").write_bytes(b"raw")
    tiny_recipe["training"]["epochs"] = 1
    run = mira.pretrain(folder, out=tmp_path / "run", recipe=tiny_recipe)
    assert "3 files with other suffixes left out: .cr2 3" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"3 files with other suffixes left out: .cr2 3"):
        mira.embed(run, folder)
    assert "3 files with other suffixes left out: .cr2 3" in mira.write_report(run).read_text()


def test_heic_where_pillow_heif_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 10, 3), dtype=np.uint8)).resize((160, 128))
    picture = decode(encode(image, "HEIF", quality=95), key="x", channels=3)
    assert picture.shape == (128, 160, 3)
    assert np.abs(picture.astype(int) - np.asarray(image)).mean() < 8


def test_heic_without_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mira.data.decoding._HEIF", False)
    with pytest.raises(UnreadablePicture, match="a HEIC picture, which needs pillow-heif: pip install pillow-heif"):
        decode(b"\0\0\0\x18ftypheic" + bytes(100), key="x", channels=3)


def test_avif() -> None:
    from PIL import features

    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 10, 3), dtype=np.uint8)).resize((160, 128))
    picture = decode(encode(image, "AVIF", quality=95), key="x", channels=3)
    assert np.abs(picture.astype(int) - np.asarray(image)).mean() < 8
