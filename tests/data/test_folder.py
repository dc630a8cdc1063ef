import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mira.data import UnreadablePicture, open_source, pretraining_split


def write(path: Path, value: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower().lstrip(".")
    Image.new("RGB", (12, 9), (value, value, value)).save(path, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
    return path


def keys(source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def test_nested_flat_upper_case_unicode_and_spaces(tmp_path):
    names = ["a.jpg", "b/c/d.PNG", "b/Ünï 日本\u3000x.Tif", "with space/é.webp", "Z.bmp"]
    for value, name in enumerate(names):
        write(tmp_path / name, value * 40)
    for other in ("notes.txt", "b/Thumbs.db", ".hidden.jpg", ".git/x.jpg", "b/.cache/y.png"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"x")
    source = open_source(tmp_path, split="all")
    assert keys(source) == sorted(names)
    assert source.ignored == 2
    assert source.labels is None
    assert source.classes == ()
    for index in range(len(source)):
        assert abs(int(source.read(index)[0, 0, 0]) - names.index(source.key(index)) * 40) <= 1
    assert open_source(str(tmp_path), split="all", channels=1).read(0).shape == (9, 12, 1)


def test_class_folders(tmp_path):
    for name in ("dog/1.png", "cat/1.png", "cat/deeper/2.png", "ant/1.png"):
        write(tmp_path / name)
    source = open_source(tmp_path, split="all", labels="folder")
    assert source.classes == ("ant", "cat", "dog")
    assert {key: source.classes[label] for key, label in zip(keys(source), source.labels, strict=True)} == {
        "ant/1.png": "ant",
        "cat/1.png": "cat",
        "cat/deeper/2.png": "cat",
        "dog/1.png": "dog",
    }
    assert source.labels.dtype == np.int64
    assert open_source(tmp_path, split="all", labels="none").labels is None


@pytest.mark.parametrize("test_name", ["test", "val", "valid", "validation"])
def test_split_folders(tmp_path, test_name):
    for name in ("train/b/1.png", "train/a/2.png", f"{test_name}/b/3.png", f"{test_name}/c/4.png"):
        write(tmp_path / name)
    train, test, whole = (open_source(tmp_path, split=split, labels="folder") for split in ("train", "test", "all"))
    assert keys(train) == ["train/a/2.png", "train/b/1.png"]
    assert keys(test) == [f"{test_name}/b/3.png", f"{test_name}/c/4.png"]
    assert sorted(keys(whole)) == sorted(keys(train) + keys(test))
    # One class has one number in every split, whether or not the split has pictures of it.
    assert train.classes == test.classes == whole.classes == ("a", "b", "c")
    assert train.labels.tolist() == [0, 1]
    assert test.labels.tolist() == [1, 2]
    assert sorted(whole.labels.tolist()) == [0, 1, 1, 2]
    assert pretraining_split(tmp_path) == "train"


def test_hold_out_is_a_fifth_and_adding_pictures_moves_none(tmp_path):
    for index in range(300):
        write(tmp_path / f"{'abc'[index % 3]}" / f"{index}.bmp")

    def split() -> tuple[set[str], set[str]]:
        sources = [open_source(tmp_path, split=name, labels="folder") for name in ("train", "test")]
        assert all(len(source.labels) == len(source) for source in sources)
        return set(keys(sources[0])), set(keys(sources[1]))

    train, test = split()
    assert train.isdisjoint(test)
    assert len(train | test) == 300 == len(open_source(tmp_path, split="all"))
    assert 0.12 < len(test) / 300 < 0.28
    for index in range(50):
        write(tmp_path / "new" / f"{index}.bmp")
    larger_train, larger_test = split()
    assert train < larger_train
    assert test < larger_test
    assert pretraining_split(tmp_path) == "all"


def test_links_are_followed_once_and_loops_end(tmp_path):
    write(tmp_path / "here" / "a.png")
    elsewhere = write(tmp_path / "elsewhere" / "b.png").parent
    root = tmp_path / "here"
    (root / "link").symlink_to(elsewhere)
    (root / "up").symlink_to(root)
    (elsewhere / "back").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "c.png").symlink_to(elsewhere / "b.png")
    assert keys(open_source(root, split="all")) == ["a.png", "c.png", "link/b.png"]


def test_what_cannot_be_read_is_listed_and_named(tmp_path):
    write(tmp_path / "good.png")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    write(tmp_path / "clip.gif" / "frame.png")  # a folder that holds pictures is a folder
    source = open_source(tmp_path, split="all")
    assert keys(source) == ["broken.jpg", "clip.gif/frame.png", "folder.jpg", "good.png", "pipe.jpg"]
    for index, words in ((0, "link to nothing"), (2, "an empty folder"), (4, "not a regular file")):
        with pytest.raises(UnreadablePicture, match=words) as raised:
            source.read(index)
        assert raised.value.key == source.key(index)


def test_missing_permission(tmp_path):
    write(tmp_path / "open" / "a.png")
    locked = write(tmp_path / "open" / "locked.png")
    folder = write(tmp_path / "open" / "shut" / "b.png").parent
    locked.chmod(0)
    folder.chmod(0)
    user = os.geteuid()
    for path in (tmp_path, *tmp_path.parents):
        if user == 0 and path.owner() == "root" and path.stat().st_mode & 0o777 == 0o700:
            path.chmod(0o711)
    (tmp_path / "open").chmod(0o755)
    try:
        if user == 0:  # nothing is forbidden to root
            os.seteuid(65534)
        source = open_source(tmp_path / "open", split="all")
        assert keys(source) == ["a.png", "locked.png", "shut"]
        assert source.read(0).shape == (9, 12, 3)
        for index in (1, 2):
            with pytest.raises(UnreadablePicture, match="permission denied"):
                source.read(index)
        with pytest.raises(ValueError, match="may not be listed"):
            open_source(folder, split="all")
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def test_names_that_would_break_a_list_are_escaped(tmp_path):
    name = "a\tb\nc\udcff.png"
    write(tmp_path / "x.png").rename(tmp_path / name)
    source = open_source(tmp_path, split="all")
    assert source.key(0) == "a\\tb\\nc\\udcff.png"
    source.key(0).encode()
    assert source.read(0).shape == (9, 12, 3)


def test_errors_say_what_to_do(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.jpg").write_bytes(b"x")
    write(tmp_path / "flat" / "a.png")
    write(tmp_path / "flat" / "cat" / "b.png")
    write(tmp_path / "half" / "train" / "a.png")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("x")
    for words, arguments in {
        "no pictures below .*empty": {"spec": tmp_path / "empty"},
        "no pictures below .*1 file with other suffixes": {"spec": tmp_path / "words"},
        "does not exist": {"spec": tmp_path / "missing"},
        "is a file, not a folder": {"spec": tmp_path / "file.jpg"},
        "1 picture lies directly in .*'a.png'.*one folder per class": {"spec": tmp_path / "flat", "labels": "folder"},
        "none of test, val": {"spec": tmp_path / "half", "split": "test"},
        "use split 'all'": {"spec": tmp_path / "flat", "split": "test"},
    }.items():
        with pytest.raises(ValueError, match=words):
            open_source(**{"split": "all", **arguments})


def test_inputs_are_not_modified(tmp_path):
    path = write(tmp_path / "a.png")
    before = path.read_bytes(), path.stat().st_mtime_ns
    open_source(tmp_path, split="all").read(0)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_class_called_train_is_not_a_split(tmp_path):
    for name in ("car/1.png", "bus/2.png", "train/3.png"):
        write(tmp_path / name)
    assert pretraining_split(tmp_path) == "all"
    assert open_source(tmp_path, split="all", labels="folder").classes == ("bus", "car", "train")
