"""Tar and Parquet files, mutated and crafted: what can be read is, the rest is named; never the end of a run."""

import io
import json
import struct
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign import mutated, sentence_or_nothing, tries
from PIL import Image

from mira.data import UnreadablePicture, open_source

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (9, 9), value).save(file, "PNG")
    return file.getvalue()


def tar(members: list[tuple[str, bytes]], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as file:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return out.getvalue()


def read_all(path: Path, labels: str = "auto") -> None:
    source = open_source(path, split="all", labels=labels)
    assert source.labels is None or (len(source.labels) == len(source) and source.labels.max() < len(source.classes))
    assert len(source.classes) <= max(100_001, len(source))
    for index in range(len(source)):
        source.key(index).encode("utf-8")
        try:
            source.read(index)
        except UnreadablePicture as error:
            assert error.reason


NUMBERS = [0, 1, 3, 10**5, 10**6, 3 * 10**7, 10**9, 2**62, 2**63, 2**64, 10**30, 10**4000, -1, -(2**70)]


def label(rng: np.random.Generator) -> bytes:
    kind = int(rng.integers(8))
    if kind < 4:
        return str(NUMBERS[int(rng.integers(len(NUMBERS)))]).encode()
    return [b"[" * 50_000, b'{"label":' * 20_000, b"\xff\xfe", b'{"label": "x"}'][kind - 4]


def test_tar_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for number, rng in tries("tar shards", 500):
        members = []
        for name in ("a", "b", "d/c"):
            members.append((f"{name}.png", picture(number % 256)))
            members.append((f"{name}.{'cls' if rng.random() < 0.5 else 'json'}", label(rng)))
        data = tar(members, format=int(rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])))
        if number % 3:
            data = mutated(data[: int(rng.integers(1, len(data)))] if number % 3 == 2 else data, rng)
        path.write_bytes(data)
        sentence_or_nothing(lambda: read_all(path), data[:2048].hex(), ValueError)
        sentence_or_nothing(lambda: read_all(path, "folder"), data[:2048].hex(), ValueError)


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A header with any size and a right checksum."""
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")
    block[100:108] = b"0000644\0"
    block[124:136] = size.ljust(12, b"\0")[:12]
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\00000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


SIZES = [
    *(b"77777777777", b"00000000000", b"-0000000001", b"\x80" + bytes(3) + struct.pack(">Q", 2**60)),
    *(b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\x80" + bytes(3) + struct.pack(">Q", 8 * 2**30), b"zzzzzzzzzzz"),
]


@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K", b"S", b"D", b"7"])
def test_tar_members_that_claim_any_size(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    good = tar([("good.png", picture(1)), ("good.cls", b"1")])[:2048]
    for size in SIZES:
        for name in (b"x.png", b"x.cls", b"x.json"):
            for data in (header(name, size, kind) + good, good + header(name, size, kind) + bytes(512)):
                path.write_bytes(data)
                sentence_or_nothing(lambda: read_all(path), (kind, size, name), ValueError)


def test_one_bad_shard_of_several_is_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("a.png", picture(1)), ("b.png", picture(2))]))
    (tmp_path / "b.tar").write_bytes(b"<html>404</html>" * 100)
    with pytest.warns(UserWarning, match=r"b.tar is not a tar file .* It is left out"):
        assert len(open_source(f"{tmp_path}/*.tar", split="all")) == 2


def test_large_class_numbers_are_names(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    members = [(f"{i}.png", picture(i)) for i in range(4)]
    for numbers in ([10**9, 5, 10**9, 2**70], [3 * 10**7] * 4):
        path.write_bytes(tar(members + [(f"{i}.cls", str(number).encode()) for i, number in enumerate(numbers)]))
        source = open_source(path, split="all")
        assert source.classes == tuple(str(number) for number in sorted(set(numbers)))
        assert source.labels is not None
        assert [source.classes[label] for label in source.labels] == list(map(str, numbers))
    path.write_bytes(tar([*members, ("0.cls", b"1"), ("1.cls", b"0"), ("2.cls", b"2")]))
    with pytest.warns(UserWarning, match="1 of 4 have no class"):
        assert open_source(path, split="all").labels is None


def test_parquet_files(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    columns: list[list[Any]] = [
        *([0, 1, 2], [10**9, 3 * 10**7, 2**62], [None, 1, 2], ["a", "b\n", "\x1b"], [0.5, 1.0, 2.0], [-1, 0, 1]),
        *([b"x", b"y", b"z"], [[1], [2], [3]], [True, False, True], [2**62, 2**62, 2**62]),
    ]
    metadata = [
        {},
        {"huggingface": "[" * 10_000},
        {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["a"]}}}})},
    ]
    rows = [[picture(1), None, b"no picture"], [picture(1), picture(2), picture(3)], ["text"] * 3, [1, 2, 3]]
    for number, rng in tries("parquet shards", 250):
        images = rows[int(rng.choice([0, 1, 1, 1, 2, 3]))]
        table = pa.table({"image": images, "label": columns[int(rng.integers(len(columns)))]})
        table = table.replace_schema_metadata(metadata[int(rng.integers(3))])
        pq.write_table(table, path, row_group_size=2)
        if number % 2:
            path.write_bytes(mutated(path.read_bytes(), rng))
        sentence_or_nothing(lambda: read_all(path), number, ValueError)


def test_one_bad_parquet_file_of_several_is_left_out_and_named(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [picture(1), picture(2)]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert len(open_source(f"{tmp_path}/*.parquet", split="all")) == 2
    assert any("b.parquet" in str(one.message) and "left out" in str(one.message) for one in said)
