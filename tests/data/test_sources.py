import gzip
import importlib.util
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

import mira._torchvision  # noqa: F401  (must come before torchvision)
from mira.data import PictureSource, open_source, pretraining_split
from mira.data.folder import held_out

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_builtin_fashion.py"
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def test_fashion():
    train, test, whole = (open_source("builtin:fashion", split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(whole)) == (10_000, 2_000, 12_000)
    assert isinstance(train, PictureSource)
    assert np.bincount(whole.labels).min() > 1100  # ten classes of about 1,200
    assert train.classes[train.labels[0]] == "Ankle boot"  # the first picture of the published set
    assert (train.key(0), test.key(5), whole.key(10_000)) == ("train/0", "test/5", "test/0")
    assert np.array_equal(whole.read(10_005), test.read(5))
    colour, grey = test.read(5), open_source("builtin:fashion", split="test", channels=1).read(5)
    assert grey.shape == (28, 28, 1)
    assert np.array_equal(colour, grey.repeat(3, 2))
    assert open_source("builtin:fashion", labels="none").labels is None
    assert pretraining_split("builtin:fashion") == "train"


def test_script_makes_the_embedded_set_reproducibly(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_builtin_fashion", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rng = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 10_003), ("t10k", 2_001)):
        arrays[name] = rng.integers(0, 255, (count, 28, 28), np.uint8), rng.integers(0, 10, count, np.uint8)
        for kind, array in zip(("images-idx3", "labels-idx1"), arrays[name], strict=True):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (tmp_path / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), 1))
    made = []
    for out in ("one.npz", "two.npz"):
        monkeypatch.setattr("sys.argv", ["make", str(tmp_path), "--out", str(tmp_path / out)])
        script.main()
        made.append((tmp_path / out).read_bytes())
    assert made[0] == made[1]
    with np.load(tmp_path / "one.npz") as archive:
        assert np.array_equal(archive["train_pictures"], arrays["train"][0][:10_000])
        assert np.array_equal(archive["test_labels"], arrays["t10k"][1][:2_000])


def write_cifar10(folder: Path, monkeypatch) -> np.ndarray:
    """Files as CIFAR-10's archive holds them, five pictures in each."""
    pictures = np.random.default_rng(0).integers(0, 256, (30, 3072), np.uint8)
    root = folder / "cifar-10-batches-py"
    root.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        rows = pictures[5 * number : 5 * number + 5]
        (root / name).write_bytes(pickle.dumps({"data": rows, "labels": [number % 3, 1, 2, 3, 9]}))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # The published checksums are of other pictures.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).exists())
    return pictures.reshape(30, 3, 32, 32).transpose(0, 2, 3, 1)


def test_torchvision_set_with_train_and_test(tmp_path, monkeypatch):
    pictures = write_cifar10(tmp_path, monkeypatch)
    train, test, whole = (
        open_source("torchvision:CIFAR10", split=split, data_dir=tmp_path) for split in ("train", "test", "all")
    )
    assert (len(train), len(test), len(whole)) == (25, 5, 30)
    for index in (0, 7, 24, 25, 29):
        assert np.array_equal(whole.read(index), pictures[index])
    assert np.array_equal(test.read(0), pictures[25])
    assert train.labels.tolist() == [n for number in range(5) for n in (number % 3, 1, 2, 3, 9)]
    assert whole.labels.dtype == np.int64
    assert train.classes == tuple("abcdefghij")
    assert (train.key(3), whole.key(24), whole.key(25)) == ("train/3", "train/24", "test/0")
    assert open_source("torchvision:CIFAR10", data_dir=tmp_path, channels=1).read(0).shape == (32, 32, 1)
    monkeypatch.setenv("MIRA_DATA", str(tmp_path))
    assert len(open_source("torchvision:CIFAR10")) == 25


def test_torchvision_set_with_a_split_of_its_own_to_train_on(tmp_path, monkeypatch):
    root = tmp_path / "stl10_binary"
    root.mkdir()
    generator = np.random.default_rng(0)
    counts = {"train": 4, "unlabeled": 6, "test": 3}
    stored = {part: generator.integers(0, 256, (count, 3, 96, 96), np.uint8) for part, count in counts.items()}
    for part, pictures in stored.items():
        (root / f"{part}_X.bin").write_bytes(pictures.tobytes())
        (root / f"{part}_y.bin").write_bytes(bytes(1 + n % 2 for n in range(len(pictures))))
    (root / "class_names.txt").write_text("bird\ncar\n")
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda path, md5=None: Path(path).exists())
    spec = "torchvision:STL10@train+unlabeled"
    both, test = (open_source(spec, split=split, labels="none", data_dir=tmp_path) for split in ("train", "test"))
    assert (len(both), len(test), len(open_source("torchvision:STL10", data_dir=tmp_path))) == (10, 3, 4)
    # The file keeps columns before rows.
    assert np.array_equal(both.read(5), stored["unlabeled"][1].transpose(2, 1, 0))
    assert both.labels is None
    with pytest.raises(ValueError, match="has no splits to choose from: leave out '@all'"):
        open_source("torchvision:FakeData@all", data_dir=tmp_path)


def test_torchvision_set_without_splits_holds_a_fifth_out():
    """FakeData has neither root nor splits nor stored labels."""
    train, test, whole = (open_source("torchvision:FakeData", split=split) for split in ("train", "test", "all"))
    assert len(train) + len(test) == len(whole) == 1000
    assert 150 < len(test) < 250
    assert all(held_out(test.key(index).partition("/")[2]) for index in range(len(test)))
    assert whole.labels is None
    assert whole.read(3).shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("torchvision:CIFAR1O", "did you mean torchvision:CIFAR10"),
        ("torchvision:cifar100", "did you mean torchvision:CIFAR100"),
        ("torchvision:xyzzyx", "no data set 'xyzzyx'"),
        ("torchvision:EMNIST", "also needs 'split'"),
        ("torchvision:ImageNet", "by hand"),
        ("builtin:fashon", "builtin:fashion"),
        ("fashion", "did you mean builtin:fashion"),
        ("built-in:fashion", "did you mean builtin:fashion"),
        ("hub:pictures", "unknown source hub:pictures"),
    ],
)
def test_wrong_names_get_a_hint(spec, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        open_source(spec, data_dir=tmp_path)


def test_no_network_is_a_sentence(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("<urlopen error [Errno -3]\nTemporary failure in name resolution>")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ValueError, match=r"could not be downloaded .*check the network") as raised:
        open_source("torchvision:CIFAR10", data_dir=tmp_path / "sets")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "trian"}, "split must be one of train, test, all"),
        ({"labels": "yes"}, "labels must be one of"),
        ({"channels": 4}, "channels must be 1"),
        ({"labels": "folder"}, "use 'auto'"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        open_source("builtin:fashion", **arguments)
