"""The cache on the disk: the same pictures as the source, made once, for all processes."""

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import mira
from mira.data import CropDataset, CropSettings, GlobalCrops, UnreadablePicture, crop_loader, open_source
from mira.data.cache import CachedSource
from mira.training.checkpoint import checkpoint_paths, read_checkpoint

GIGABYTE = 2**30
SMALL = CropSettings(global_crops=GlobalCrops(size=32))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Eleven photographs in different sizes and one that cannot be read."""
    path = tmp_path / "pictures"
    path.mkdir()
    for number in range(11):
        picture = load_sample_images().images[number % 2][: 120 + 7 * number, : 160 + number]
        Image.fromarray(np.ascontiguousarray(picture)).save(path / f"{number:02}.png")
    (path / "05b.jpg").write_bytes(b"nothing of a picture")
    return path


def cached(folder: Path, channels: int = 3, **options) -> CachedSource:
    options = {"short_side": None, "limit": GIGABYTE, **options}
    return CachedSource(open_source(folder, split="all", channels=channels), folder.parent / "cache", **options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("channels", [3, 1])
def test_whole_pictures_are_the_same_to_the_last_bit(folder, channels, workers):
    source, cache = open_source(folder, split="all", channels=channels), cached(folder, channels, workers=workers)
    assert len(cache) == len(source) == 12
    for index in range(12):
        assert cache.key(index) == source.key(index)
        if source.key(index) == "05b.jpg":
            with pytest.raises(UnreadablePicture, match="not a picture"):
                cache.read(index)
        else:
            assert np.array_equal(cache.read(index), source.read(index))
            assert cache.read(index).flags.writeable


def test_resized_pictures_have_the_short_side_and_differ_little(folder):
    source, cache = open_source(folder, split="all"), cached(folder, short_side=96)
    assert cache.read(0).shape == (96, 128, 3)
    image = Image.fromarray(source.read(3)).resize(cache.read(3).shape[1::-1], Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(image).astype(int) - cache.read(3)).mean() < 0.2
    assert np.array_equal(cached(folder, short_side=500).read(2), source.read(2))  # nothing is enlarged


def test_it_is_made_once_and_anew_when_a_picture_changes(folder, monkeypatch):
    cached(folder)
    files = {path.name: path.stat().st_mtime_ns for path in (folder.parent / "cache").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("mira.data.cache._write", lambda *_, **__: pytest.fail("made again"))
        cached(folder)
    assert {path.name: path.stat().st_mtime_ns for path in (folder.parent / "cache").iterdir()} == files
    Image.new("RGB", (20, 10), "red").save(folder / "03.png")
    assert cached(folder).read(3).shape == (10, 20, 3)


def test_processes_that_start_together_make_one(folder):
    with ThreadPoolExecutor(4) as pool:
        caches = list(pool.map(lambda _: cached(folder), range(4)))
    assert len(list((folder.parent / "cache").glob("*.pictures"))) == 1
    assert all(np.array_equal(cache.read(7), caches[0].read(7)) for cache in caches)


def test_too_large_is_a_sentence_and_leaves_nothing(folder):
    with pytest.raises(ValueError, match=r"would take about 0\.0 GB.*raise data\.cache_gigabytes"):
        cached(folder, limit=100_000)
    assert not list((folder.parent / "cache").glob("*.pictures"))
    assert not list((folder.parent / "cache").glob(".*.tmp*"))


def test_a_source_that_cannot_tell_its_identity_is_refused(tmp_path):
    class Nameless:
        name, labels, classes = "nameless", None, ()

        def __len__(self) -> int:
            return 1

        def key(self, index: int) -> str:
            return str(index)

        def read(self, index: int) -> np.ndarray:
            return np.zeros((8, 8, 3), np.uint8)

    with pytest.raises(ValueError, match="nameless cannot tell when its pictures change"):
        CachedSource(Nameless(), tmp_path, short_side=None, limit=GIGABYTE)


@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
@pytest.mark.parametrize("suffix", ["pictures", "npz"])
def test_a_damaged_cache_is_made_anew_and_never_believed(folder, suffix, damage):
    cached(folder)
    (path,) = (folder.parent / "cache").glob(f"*.{suffix}")
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            content[:middle]
            if damage == "cut"
            else b"%b%c%b" % (content[:middle], content[middle] ^ 4, content[middle + 1 :])
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cache = cached(folder)
        source = open_source(folder, split="all")
        for index in (0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11):
            assert np.array_equal(cache.read(index), source.read(index))
        again = cached(folder)
    assert damage == "gone" or any("is damaged" in str(warning.message) for warning in said)
    assert path.read_bytes() == content
    assert np.array_equal(again.read(11), source.read(11))


def test_pictures_that_are_damaged_while_a_run_goes_on_are_read_from_their_source(folder):
    cache, source = cached(folder), open_source(folder, split="all")
    (path,) = (folder.parent / "cache").glob("*.pictures")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"is damaged: 10\.png is read from its source"):
        assert np.array_equal(cache.read(11), source.read(11))
    path.unlink()
    with pytest.warns(UserWarning, match="is damaged"):
        assert np.array_equal(cache.read(2), source.read(2))
    assert np.array_equal(cached(folder).read(11), source.read(11))


def test_crops_have_the_same_bits_with_workers_and_without_the_cache(folder):
    source, cache = open_source(folder, split="all"), pickle.loads(pickle.dumps(cached(folder)))
    runs = [
        list(
            crop_loader(
                CropDataset(pictures, SMALL, seed=0, max_unreadable=0.5),
                batch_size=4,
                first_step=0,
                last_step=5,
                seed=0,
                workers=workers,
            )
        )
        for pictures, workers in ((source, 0), (cache, 0), (cache, 2))
    ]
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.views, two.views, strict=True))
            assert one.unreadable == two.unreadable


@pytest.mark.slow
def test_a_run_with_a_cache_is_the_run_without(picture_folder, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("MIRA_CACHE", str(tmp_path / "cache"))
    states = []
    for choice in ("none", "disk"):
        tiny_recipe["data"] = {"cache": choice, "split": "all"}
        run = mira.pretrain(picture_folder, out=tmp_path / choice, recipe=tiny_recipe, quiet=True)
        states.append(read_checkpoint(checkpoint_paths(run / "checkpoints")[-1]).model)
    assert list((tmp_path / "cache/pictures").glob("*.pictures"))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
