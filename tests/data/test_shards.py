"""Tar and Parquet files and sets of Hugging Face, written as real files: all give the same pictures as the folder."""

import io
import json
import multiprocessing
import pickle
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mira.data import (
    CropDataset,
    CropSettings,
    GlobalCrops,
    PictureSource,
    UnreadablePicture,
    crop_loader,
    open_source,
    pretraining_split,
)
from mira.data.shards import shard_paths
from mira.data.sources import EncodedSource, Identified, absolute_spec

datasets = pytest.importorskip("datasets")
COUNT = 30


def picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20 + number, 24, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def pixels(number: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture(number))))


def add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, io.BytesIO(content))


def write_tar(path: Path, numbers, *, label: str | None = "cls", folder: str = "") -> Path:
    with tarfile.open(path, "w") as file:
        for number in numbers:
            add(file, f"{folder}{number:05}.png", picture(number))
            if label == "cls":
                add(file, f"{folder}{number:05}.cls", str(number % 3).encode())
            elif label == "json":
                add(file, f"{folder}{number:05}.json", json.dumps({"label": number % 3, "caption": "x"}).encode())
    return path


def write_parquet(path: Path, numbers) -> Path:
    content = [{"bytes": picture(number), "path": f"{number}.png"} for number in numbers]
    pq.write_table(pa.table({"image": content, "label": [n % 3 for n in numbers]}), path, row_group_size=4)
    return path


def write_hub(path: Path, *, splits: bool = True) -> Path:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["red", "green", "blue"]))

    def part(numbers):
        rows = {"image": [{"bytes": picture(n), "path": None} for n in numbers], "label": [n % 3 for n in numbers]}
        return datasets.Dataset.from_dict(rows, features=features)

    whole = part(range(COUNT))
    if splits:
        whole = datasets.DatasetDict(train=part(range(20)), validation=part(range(20, COUNT)))
    whole.save_to_disk(str(path))
    return path


def tar_set(tmp_path: Path) -> str:
    for shard in range(3):
        write_tar(tmp_path / f"part-{shard:03}.tar", range(10 * shard, 10 * shard + 10))
    return str(tmp_path / "part-{000..002}.tar")


def parquet_set(tmp_path: Path) -> str:
    for shard in range(3):
        write_parquet(tmp_path / f"part-{shard}.parquet", range(10 * shard, 10 * shard + 10))
    return f"parquet:{tmp_path}"


def hub_set(tmp_path: Path) -> str:
    return f"hf:{write_hub(tmp_path / 'saved', splits=False)}"


KINDS = [tar_set, parquet_set, hub_set]


@pytest.mark.parametrize("make", KINDS)
def test_every_picture_and_label_in_order(make, tmp_path):
    source = open_source(make(tmp_path), split="all")
    for kind in (PictureSource, EncodedSource, Identified):
        assert isinstance(source, kind)
    assert len(source) == COUNT
    assert len({source.key(index) for index in range(COUNT)}) == COUNT
    for index in (0, 29, 11, 10, 9):
        assert np.array_equal(source.read(index), pixels(index))
        assert source.encoded(index) == picture(index)
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [number % 3 for number in range(COUNT)]
    assert len(source.classes) == 3
    without = open_source(_spec(make, tmp_path), split="all", labels="none", channels=1)
    assert without.labels is None
    assert without.classes == ()
    assert without.read(3).shape == (23, 24, 1)


def _spec(make, folder: Path) -> str:
    """The set that `make` has written there already."""
    return {
        tar_set: str(folder / "part-*.tar"),
        parquet_set: str(folder / "part-{0,1,2}.parquet"),
        hub_set: f"hf:{folder / 'saved'}",
    }[make]


@pytest.mark.parametrize("make", KINDS)
def test_a_fifth_is_held_out_where_there_are_no_splits(make, tmp_path):
    spec = make(tmp_path)
    assert pretraining_split(spec) == "all"
    train, test = (open_source(spec, split=split) for split in ("train", "test"))
    assert len(train) + len(test) == COUNT
    assert 0 < len(test) < 15
    whole = open_source(spec, split="all")
    numbers = {whole.encoded(index): index for index in range(COUNT)}
    for part in (train, test):
        rows = [numbers[part.encoded(index)] for index in range(len(part))]
        assert part.labels.tolist() == [number % 3 for number in rows]


def test_files_called_after_splits_are_the_splits(tmp_path):
    write_tar(tmp_path / "train-0.tar", range(20))
    write_tar(tmp_path / "val-0.tar", range(20, 30))
    write_parquet(tmp_path / "train-00000-of-00001.parquet", range(20))
    write_parquet(tmp_path / "test-00000-of-00001.parquet", range(20, 30))
    for spec in (f"{tmp_path}/*.tar", f"parquet:{tmp_path}", f"hf:{write_hub(tmp_path / 'saved')}"):
        assert pretraining_split(spec) == "train"
        parts = {split: open_source(spec, split=split) for split in ("train", "test", "all")}
        assert {split: len(part) for split, part in parts.items()} == {"train": 20, "test": 10, "all": 30}
        assert np.array_equal(parts["test"].read(4), pixels(24))
    (tmp_path / "only").mkdir()
    write_tar(tmp_path / "only" / "train-1.tar", [0])
    with pytest.raises(ValueError, match="no files called test, val"):
        open_source(f"{tmp_path}/only/*.tar", split="test")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("make", KINDS)
def test_same_bits_with_workers_and_from_another_process(make, tmp_path):
    settings = CropSettings(global_crops=GlobalCrops(size=16))
    source = open_source(make(tmp_path), split="all")
    source.read(7)  # whatever is open now must not be shared with the workers
    source = pickle.loads(pickle.dumps(source))
    source.read(8)
    data = CropDataset(source, settings, seed=0, max_unreadable=0.0)
    runs = [list(crop_loader(data, batch_size=6, first_step=2, last_step=9, seed=0, workers=n)) for n in (0, 2)]
    for alone, together in zip(*runs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(alone.views, together.views, strict=True))


@pytest.mark.slow
def test_opened_sources_go_to_spawned_processes(tmp_path):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for make in KINDS:
            source = open_source(make(tmp_path), split="all")
            here = [source.read(index) for index in range(3)]  # its files are open now
            there = [pool.submit(source.read, index).result(timeout=120) for index in range(3)]
            assert all(np.array_equal(one, other) for one, other in zip(here, there, strict=True))


def test_webdataset_labels(tmp_path):
    write_tar(tmp_path / "json.tar", range(6), label="json")
    assert open_source(tmp_path / "json.tar", split="all").labels.tolist() == [0, 1, 2, 0, 1, 2]
    write_tar(tmp_path / "none.tar", range(6), label=None)
    assert open_source(tmp_path / "none.tar", split="all").labels is None
    with tarfile.open(tmp_path / "folders.tar", "w") as file:
        for number, name in enumerate(("train/cat/a.png", "train/dog/b.png", "./train/cat/c.x.png", "train/cat/d.png")):
            add(file, name, picture(number))
        add(file, "train/cat/.hidden.png", picture(9))
    source = open_source(tmp_path / "folders.tar", split="all", labels="folder")
    assert source.classes == ("cat", "dog")
    assert [source.key(index) for index in range(3)] == [
        f"folders.tar/train/{name}" for name in ("cat/a.png", "dog/b.png", "cat/d.png")
    ]  # "c.x.png" is another part of the sample "c"
    assert source.labels.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="lies in no folder of its tar file"):
        open_source(tmp_path / "none.tar", split="all", labels="folder")


def test_a_tar_file_that_is_cut_off_gives_what_it_has(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", range(COUNT), label=None)
    with tarfile.open(whole) as file:
        places = [member.offset_data for member in file]
    content = whole.read_bytes()
    for end, readable, listed in ((places[9] + 100, 9, 10), (places[9] - 300, 9, 9)):
        cut = tmp_path / "cut.tar"
        cut.write_bytes(content[:end])
        with pytest.warns(UserWarning, match="damaged or cut off after"):
            source = open_source(cut, split="all")
        assert len(source) == listed
        for index in range(readable):
            assert np.array_equal(source.read(index), pixels(index))
        for index in range(readable, listed):
            with pytest.raises(UnreadablePicture, match="cut off"):
                source.read(index)


def test_damaged_members_are_unreadable_pictures(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        add(file, "good.png", picture(0))
        add(file, "bad.jpg", b"nothing of a picture")
        add(file, "empty.jpg", b"")
    content = [picture(0), b"nothing of a picture", None]
    pq.write_table(pa.table({"img": pa.array(content, pa.binary())}), tmp_path / "a.parquet")
    for name in ("a.tar", "a.parquet"):
        source = open_source(tmp_path / name, split="all")
        assert np.array_equal(source.read(0), pixels(0))
        for index in (1, 2):
            with pytest.raises(UnreadablePicture) as raised:
                source.read(index)
            assert raised.value.key == source.key(index)


def test_a_parquet_file_that_shrinks_under_a_run_is_unreadable_not_a_crash(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", range(COUNT))
    source = pickle.loads(pickle.dumps(open_source(path, split="all")))
    content = path.read_bytes()
    path.write_bytes(content[:200])
    with pytest.raises(UnreadablePicture, match="cannot be read here"):
        source.read(20)


def test_text_labels_and_names_of_classes(tmp_path):
    table = pa.table({"image": [picture(n) for n in range(4)], "label": ["dog", "cat", "dog", "ant"]})
    pq.write_table(table, tmp_path / "text.parquet")
    source = open_source(tmp_path / "text.parquet", split="all")
    assert source.classes == ("ant", "cat", "dog")
    assert source.labels.tolist() == [2, 1, 2, 0]
    saved = open_source(f"hf:{write_hub(tmp_path / 'saved')}", split="all")
    assert saved.classes == ("red", "green", "blue")
    whole = datasets.load_from_disk(str(tmp_path / "saved"))["train"]
    whole.to_parquet(str(tmp_path / "train-0.parquet"))
    assert open_source(tmp_path / "train-0.parquet").classes == ("red", "green", "blue")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{00..02}.tar", ["a-00.tar", "a-01.tar", "a-02.tar"]),
        ("a-{00,02}.tar", ["a-00.tar", "a-02.tar"]),
        ("{a,b}-0{0..1}.tar", ["a-00.tar", "a-01.tar", "b-00.tar", "b-01.tar"]),
        ("b-*.tar", ["b-00.tar", "b-01.tar"]),
        ("a-0[12].tar", ["a-01.tar", "a-02.tar"]),
        (".", ["a-00.tar", "a-01.tar", "a-02.tar", "b-00.tar", "b-01.tar"]),
    ],
)
def test_patterns(pattern, names, tmp_path):
    for name in ("a-00", "a-01", "a-02", "b-00", "b-01"):
        (tmp_path / f"{name}.tar").touch()
    assert [path.name for path in shard_paths(str(tmp_path / pattern), ".tar")] == names


def write_wrong(folder: Path) -> None:
    (folder / "text.tar").write_text("no tar file at all, but long enough to look at " * 20)
    with tarfile.open(folder / "packed.tar", "w:gz") as file:
        add(file, "a.png", picture(0))
    with tarfile.open(folder / "texts.tar", "w") as file:
        add(file, "a.txt", b"words")
    (folder / "text.parquet").write_text("no Parquet file")
    pq.write_table(pa.table({"a": [1, 2]}), folder / "numbers.parquet")
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"]}), folder / "two.parquet")
    datasets.Dataset.from_dict({"a": [1, 2]}).save_to_disk(str(folder / "saved"))
    (folder / "nothing").mkdir()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("missing.tar", "there is no file .*missing.tar"),
        ("x-{0..3}.tar", "there is no file .*x-0.tar"),
        ("x-*.tar", "no .tar files match"),
        ("text.tar", "text.tar is not a tar file"),
        ("packed.tar", "unpack compressed files first"),
        ("texts.tar", "no pictures in .*texts.tar"),
        ("parquet:nothing", "no .parquet files match"),
        ("text.parquet", "not a readable Parquet file"),
        ("numbers.parquet", "no column of bytes .all columns: a."),
        ("two.parquet", r"several columns of bytes \(a, b\)"),
        ("hf:saved", "no column of pictures; its columns are a"),
        ("hf:nothing", "cannot be opened"),
    ],
)
def test_wrong_files_are_sentences(spec, words, tmp_path, monkeypatch):
    write_wrong(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words) as raised:
        open_source(spec, split="all")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("make", "package"), [(parquet_set, "pyarrow.parquet"), (hub_set, "datasets")])
def test_a_missing_package_is_named(make, package, tmp_path, monkeypatch):
    spec = make(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"pip install "):
        open_source(spec, split="all")


def test_sources_that_can_be_opened_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "saved").mkdir()
    monkeypatch.chdir(tmp_path)
    for spec, expected in (
        ("pictures", f"{tmp_path}/pictures"),
        ("a:b", f"{tmp_path}/a:b"),
        ("x-{0..3}.tar", f"{tmp_path}/x-{{0..3}}.tar"),
        ("parquet:files", f"parquet:{tmp_path}/files"),
        ("hf:saved", f"hf:{tmp_path}/saved"),
        ("hf:someone/pictures", "hf:someone/pictures"),
        ("torchvision:CIFAR10", "torchvision:CIFAR10"),
    ):
        assert absolute_spec(spec) == expected
