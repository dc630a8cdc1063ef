"""What protocols learn from and are measured on, from what a person names."""

from pathlib import Path

import pytest
from tiny import write_pictures

import mira
from mira.evaluation.pictures import open_data_folder, open_labelled, open_pictures
from tests.data.test_shards import write_tar


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "pictures" / "train", 12)
    return write_pictures(tmp_path / "pictures" / "val", 6, seed=1).parent


def test_a_training_part_stays_one_beside_test_pictures_of_their_own(root: Path) -> None:
    for test in (None, str(root / "val")):
        train, held = open_pictures(str(root), test, "auto", 3)
        assert (len(train), len(held)) == (12, 6)
        assert train.labels is not None
        assert held.labels is not None


def test_test_pictures_that_are_learned_from_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="12 pictures of the test pictures .* are training pictures too"):
        open_pictures(str(root), str(root / "train"), "auto", 3)


def test_they_are_found_whatever_they_are_called(root: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(root)
    for number in range(3):
        write_tar(tmp_path / f"part-{number}.tar", range(5 * number, 5 * number + 5))
    (tmp_path / "elsewhere").mkdir()
    write_tar(tmp_path / "elsewhere" / "part-2.tar", range(20, 25))
    parts, last = str(tmp_path / "part-{0..2}.tar"), str(tmp_path / "part-2.tar")
    for data, test, count in (
        (str(root), str(tmp_path / "linked" / "train"), 12),
        (parts, last, 5),
        (parts, str(tmp_path / "elsewhere" / ".." / "part-2.tar"), 5),
        ("builtin:fashion", "builtin:fashion", 10_000),
    ):
        with pytest.raises(ValueError, match=f"{count} pictures of the test pictures .* or leave out --test"):
            open_pictures(data, test, "auto", 3)
    train, held = open_pictures(parts, str(tmp_path / "elsewhere" / "part-2.tar"), "auto", 3)
    assert (len(train), len(held)) == (15, 5)


def test_data_sets_lie_in_a_folder() -> None:
    with pytest.raises(ValueError, match="torchvision:CIFAR10 is one data set: name the folder"):
        open_data_folder("torchvision:CIFAR10", None, "auto", 3)
    with pytest.raises(ValueError, match="transfer: name the folder of its data sets"):
        mira.evaluate("random:resnet18", "transfer")


def test_a_folder_has_classes_unless_told_otherwise_and_one_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named, spelled = (open_labelled(name, split="train", labels="auto", channels=3) for name in ("pictures", str(root)))
    assert named.name == spelled.name
    assert named.classes == ("class0", "class1")
    assert open_labelled("pictures", split="train", labels="none", channels=3).labels is None
    flat = write_pictures(tmp_path / "flat", 3, classes=1) / "class0"
    assert open_labelled(str(flat), split="all", labels="auto", channels=3).labels is None
