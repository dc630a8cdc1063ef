"""Features kept on disk: the same bits where nothing has changed, a new pass wherever anything has."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_source import DrawnSource
from tiny import write_pictures
from torch import nn

from mira.data import PictureSubset, open_source
from mira.evaluation.cache import FeatureCache
from mira.evaluation.digest import source_digest, weights_digest
from mira.evaluation.floors import ShiftedSource, raw_pixels
from mira.evaluation.subject import Compute, Subject
from mira.files import cache_folder
from mira.model import Preprocessing

COLOUR = Preprocessing(size=16, resize=16, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)


class Counted(nn.Module):
    """Counts the pictures that go through."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.layer = nn.Linear(3 * 16 * 16, 5)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.seen += len(pictures)
        return self.layer(pictures.flatten(1))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = write_pictures(tmp_path / "pictures", 12)
    (folder / "class0" / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def compute(tmp_path: Path) -> Compute:
    return Compute(cache=FeatureCache(tmp_path / "cache"))


def subject() -> Subject:
    torch.manual_seed(0)
    return Subject("MIRA", Counted().eval(), COLOUR)


def opened(folder: Path, **more):
    return open_source(folder, split="all", labels="folder", **more)


def passes(one: Subject, source, compute: Compute) -> int:
    """How many pictures went through the backbone for these features."""
    before = one.backbone.seen
    compute.features(one, source, "")
    return one.backbone.seen - before


def test_a_second_time_gives_the_same_bits_without_a_pass(pictures: Path, compute: Compute) -> None:
    first = compute.features(subject(), opened(pictures), "")
    one = subject()  # another object, the same weights
    again = compute.features(one, opened(pictures), "")
    assert one.backbone.seen == 0
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(first.indices, again.indices)
    assert (first.keys, first.unreadable) == (again.keys, again.unreadable)
    assert [key for key, _ in again.unreadable] == ["class0/broken.png"]
    assert compute.unreadable == {(str(pictures), "class0/broken.png")}


def test_labels_are_those_of_the_source_that_asks(pictures: Path, compute: Compute) -> None:
    compute.features(subject(), open_source(pictures, split="all"), "")
    one = subject()
    found = compute.features(one, opened(pictures), "")
    assert one.backbone.seen == 0
    assert found.labels.tolist() == [int(key.startswith("class1")) for key in found.keys]


def test_whatever_changes_a_feature_misses(pictures: Path, compute: Compute) -> None:
    source, one = opened(pictures), subject()
    assert passes(one, source, compute) == 12
    assert passes(one, source, compute) == 0
    assert passes(replace(one, preprocessing=replace(COLOUR, resize=20)), source, compute) == 12
    assert passes(one, source, replace(compute, precision="bfloat16")) == 12
    assert passes(one, PictureSubset(source, np.arange(5)), compute) == 5
    assert passes(one, ShiftedSource(source, 2), compute) == 12
    assert passes(one, ShiftedSource(source, 2, seed=1), compute) == 12
    assert passes(one, ShiftedSource(source, 2), compute) == 0
    other = subject()
    with torch.no_grad():
        other.backbone.layer.bias[3] = torch.nextafter(other.backbone.layer.bias[3], torch.tensor(9.0))
    assert passes(other, source, compute) == 12


def test_a_changed_or_another_file_misses(pictures: Path, compute: Compute) -> None:
    one = subject()
    assert passes(one, opened(pictures), compute) == 12
    path = pictures / "class1" / "0001.png"
    content = path.read_bytes()
    shutil.copy(pictures / "class1" / "0003.png", path)
    assert passes(one, opened(pictures), compute) == 12
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))  # the same bytes at another time: nobody has compared them
    assert passes(one, opened(pictures), compute) == 12
    path.unlink()
    assert passes(one, opened(pictures), compute) == 11


def test_a_damaged_file_is_made_again(pictures: Path, compute: Compute) -> None:
    one = subject()
    passes(one, opened(pictures), compute)
    (path,) = compute.cache.files()
    content = bytearray(path.read_bytes())
    for damaged in (content[:200], b"", content[:200] + b"!!!!" + content[204:]):
        path.write_bytes(damaged)
        assert passes(one, opened(pictures), compute) == 12
    assert passes(one, opened(pictures), compute) == 0


def test_pixels_need_one_pass_of_their_own(pictures: Path, compute: Compute) -> None:
    calls = []
    compute = replace(compute, progress=lambda *call: calls.append(call))
    floor = raw_pixels(opened(pictures), COLOUR, compute)
    once = len(calls)
    kept = compute.features(floor, opened(pictures), "")
    assert len(calls) == once > 0
    assert torch.equal(kept.features, Compute().features(floor, opened(pictures), "").features)


def test_a_source_that_cannot_say_what_it_depends_on_is_not_kept(compute: Compute) -> None:
    source = DrawnSource(4, channels=3)
    one = subject()
    assert passes(one, source, compute) == passes(one, source, compute) == 4
    assert source_digest(source) is None
    assert source_digest(ShiftedSource(source, 1)) is None
    assert compute.cache.files() == []


def test_a_folder_that_may_not_be_written_is_a_warning(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    compute = Compute(cache=FeatureCache(tmp_path / "file"))
    with pytest.warns(UserWarning, match="features are not kept in"):
        assert len(compute.features(subject(), opened(pictures), "")) == 12


class TestFolder:
    def test_the_least_recently_used_goes_first_and_the_limit_holds(self, pictures: Path, tmp_path: Path) -> None:
        (pictures / "class0" / "broken.png").unlink()
        compute = Compute(cache=FeatureCache(tmp_path / "cache"))
        source, one = opened(pictures), subject()
        parts = [PictureSubset(source, np.arange(start, start + 4)) for start in (0, 4, 8)]
        sizes = []
        for number, part in enumerate(parts[:2]):
            compute.features(one, part, "")
            newest = max(compute.cache.files(), key=lambda path: path.stat().st_mtime_ns)
            os.utime(newest, ns=(number + 1, number + 1))
            sizes.append(newest.stat().st_size)
        assert passes(one, parts[0], compute) == 0  # used just now
        small = Compute(cache=FeatureCache(tmp_path / "cache", limit=sum(sizes) + 10))
        assert passes(one, parts[2], small) == 4
        assert small.cache.size() <= small.cache.limit
        assert passes(one, parts[0], small) == 0
        assert passes(one, parts[1], small) == 4  # had gone

    def test_what_is_larger_than_the_limit_is_not_kept(self, pictures: Path, tmp_path: Path) -> None:
        compute = Compute(cache=FeatureCache(tmp_path / "cache", limit=10))
        compute.features(subject(), opened(pictures), "")
        assert compute.cache.files() == []

    def test_clear_removes_everything_of_its_own(self, pictures: Path, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path / "cache")
        Compute(cache=cache).features(subject(), opened(pictures), "")
        (cache.folder / ".half.1.tmp.npz").write_bytes(b"killed")
        (cache.folder / "notes.txt").write_text("mine")
        assert cache.clear() > 0
        assert [path.name for path in cache.folder.iterdir()] == ["notes.txt"]

    def test_the_usual_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("MIRA_CACHE", str(tmp_path / "there"))
        assert cache_folder("features") == tmp_path / "there/features"
        monkeypatch.delenv("MIRA_CACHE")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_folder("features") == tmp_path / ".cache/mira/features"


class TestWeightsDigest:
    def test_the_weights_are_named_and_not_their_layout(self) -> None:
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        name = weights_digest(layer)
        assert weights_digest(layer.to(memory_format=torch.channels_last)) == name
        assert weights_digest(layer.train()) == weights_digest(layer.eval()) == name
        layer[1].running_mean[0] += 1e-6
        changed = weights_digest(layer)
        assert changed != name
        layer[1].num_batches_tracked += 1
        assert weights_digest(layer) != changed


def test_a_picture_that_could_not_be_read_for_a_moment_is_not_missing_for_good(compute: Compute) -> None:
    class Flaky(DrawnSource):
        def identity(self) -> str:
            return "the same before and after"

    failing, sound = Flaky(9, channels=3, broken=(4,)), Flaky(9, channels=3)
    assert len(compute.features(subject(), failing, "")) == 8
    assert len(compute.features(subject(), failing, "")) == 8
    assert len(compute.features(subject(), sound, "")) == 9
