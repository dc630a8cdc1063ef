"""The eleven data sets of the transfer protocol: read by torchvision, divided as Ericsson et al. (2021) divide them.

The division is that of the paper's code (github.com/linusericsson/ssl-transfer, linear.py and datasets/): Aircraft,
DTD (its first), Flowers and VOC07 have training, validation and test pictures of their own; of the training pictures
of all others a random fifth validates (here: of every class). Caltech-101 learns from 30 pictures a class and is
tested on the rest. SUN397 follows its first published partition (50 and 50 a class) where its files are there.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int64

from mira.evaluation.detection import voc
from mira.evaluation.splits import hold_out
from mira.evaluation.transfer_pictures import Metric, SetPictures, Targets, TransferSet

SetName = Literal[
    "aircraft", "caltech101", "cars", "cifar10", "cifar100", "dtd", "flowers", "food101", "pets", "sun397", "voc07"
]
Rows = Int64[np.ndarray, " _"]

NAMES: tuple[SetName, ...] = get_args(SetName)


_TORCHVISION_HINT = " You can use download=True to download it"


class SetUnavailable(ValueError):
    """A data set that is not there, or not whole; the message says what to do."""


def _number_and_label(dataset: Any) -> Any:
    return [label for _, label in dataset._samples]


def _voc_targets(dataset: Any) -> Targets:
    """A class counts where at least one of its objects is not difficult, as in VOC's own lists of classes."""
    targets = np.zeros((len(dataset), len(voc.CLASSES)), bool)
    for row, path in enumerate(dataset.annotations):
        for thing in voc.read_annotation(path)[2]:
            targets[row, thing.label] |= not thing.difficult
    return targets


@dataclass(frozen=True)
class _Set:
    """How torchvision opens a set.

    Attributes:
        title: as tables name it.
        metric: what it is measured by.
        loader: the class in `torchvision.datasets`.
        folder: what that looks for below the data folder.
        targets: from an opened part to its class numbers, or truth values.
        train: arguments that open the training pictures; all pictures of a set that has no division of its own.
        val: the same for the validation pictures, where the set has some.
        test: the same for the test pictures, where the set has some.
        per_class: training and test pictures to draw from each class of a set without a division; None: the rest.
        scipy: whether it is read with scipy.
    """

    title: str
    metric: Metric
    loader: str
    folder: str
    targets: Callable[[Any], Any]
    train: Mapping[str, Any]
    val: Mapping[str, Any] | None = None
    test: Mapping[str, Any] | None = None
    per_class: tuple[int, int | None] = (0, None)
    scipy: bool = False


_TRAIN, _VAL, _TEST = {"split": "train"}, {"split": "val"}, {"split": "test"}
_labels, _targets = attrgetter("_labels"), attrgetter("targets")
_SETS: Mapping[SetName, _Set] = {
    "aircraft": _Set("Aircraft", "mean per class", "FGVCAircraft", "fgvc-aircraft-2013b", _labels, _TRAIN, _VAL, _TEST),
    "caltech101": _Set(
        "Caltech-101",
        "mean per class",
        "Caltech101",
        "caltech101",
        attrgetter("y"),
        {},
        per_class=(30, None),
        scipy=True,
    ),
    "cars": _Set("Cars", "top-1", "StanfordCars", "stanford_cars", _number_and_label, _TRAIN, test=_TEST, scipy=True),
    "cifar10": _Set(
        "CIFAR-10", "top-1", "CIFAR10", "cifar-10-batches-py", _targets, {"train": True}, test={"train": False}
    ),
    "cifar100": _Set(
        "CIFAR-100", "top-1", "CIFAR100", "cifar-100-python", _targets, {"train": True}, test={"train": False}
    ),
    "dtd": _Set("DTD", "top-1", "DTD", "dtd", _labels, _TRAIN, _VAL, _TEST),
    "flowers": _Set("Flowers", "mean per class", "Flowers102", "flowers-102", _labels, _TRAIN, _VAL, _TEST, scipy=True),
    "food101": _Set("Food-101", "top-1", "Food101", "food-101", _labels, _TRAIN, test=_TEST),
    "pets": _Set(
        "Pets", "mean per class", "OxfordIIITPet", "oxford-iiit-pet", _labels, {"split": "trainval"}, test=_TEST
    ),
    "sun397": _Set("SUN397", "top-1", "SUN397", "SUN397", _labels, {}, per_class=(50, 50)),
    "voc07": _Set(
        "VOC07",
        "11-point mAP",
        "VOCDetection",
        "VOCdevkit/VOC2007",
        _voc_targets,
        {"year": "2007", "image_set": "train"},
        {"year": "2007", "image_set": "val"},
        {"year": "2007", "image_set": "test"},
    ),
}


def set_title(name: SetName) -> str:
    """A set's name in tables."""
    return _SETS[name].title


def set_metric(name: SetName) -> Metric:
    """What a set is measured by."""
    return _SETS[name].metric


def set_folder(data_dir: Path, name: SetName) -> Path:
    """Where a set lies below torchvision's download root."""
    return data_dir / _SETS[name].folder


def open_set(
    name: SetName, data_dir: Path, *, channels: int, download: bool, validation_share: float, seed: int
) -> TransferSet:
    """Open a set below torchvision's download root and divide it.

    Args:
        channels: 3 for RGB, 1 for grey.
        download: fetch it where it is not there.
        validation_share: of the training pictures where the set has no validation pictures of its own.
        seed: of the pictures that are drawn, for validation or for training.

    Raises:
        SetUnavailable: it is not there and may not or cannot be fetched, or some of its files are missing.
    """
    one = _SETS[name]
    if one.scipy and importlib.util.find_spec("scipy") is None:
        raise SetUnavailable(f"{one.title} is read with scipy: install it with `pip install scipy`.")
    parts = {
        part: _open_part(one, arguments, data_dir, download)
        for part, arguments in (("train", one.train), ("val", one.val), ("test", one.test))
        if arguments is not None
    }
    try:
        targets = np.concatenate([np.asarray(one.targets(dataset)) for dataset in parts.values()])
    except ValueError as error:
        raise SetUnavailable(f"{one.title}: {error}") from error
    targets = targets if targets.dtype == bool else targets.astype(np.int64)
    pictures = [
        (_key(name, part, dataset, number), dataset, number)
        for part, dataset in parts.items()
        for number in range(len(dataset))
    ]
    first = parts["train"]
    classes = tuple(getattr(first, "classes", getattr(first, "categories", voc.CLASSES)))

    def chosen(rows: Rows, what: str) -> SetPictures:
        if not len(rows):
            raise SetUnavailable(f"{one.title} in '{data_dir}' has no {what} pictures.")
        return SetPictures(
            f"{one.title}, {what}",
            [pictures[row] for row in rows],
            targets[rows],
            classes=classes,
            channels=channels,
        )

    ends = np.cumsum([len(dataset) for dataset in parts.values()])
    own = dict(zip(parts, np.split(np.arange(len(pictures)), ends[:-1]), strict=True))
    train, test, note = own["train"], own.get("test"), ""
    if test is None:
        train, test, note = _divide(name, [key for key, _, _ in pictures], targets, data_dir / one.folder, seed)
    if "val" in own:
        learn = np.concatenate([train, own["val"]])
        held = np.arange(len(train), len(learn))
    else:
        learn = train
        held = hold_out(torch.from_numpy(targets[learn]), validation_share, seed=seed)[1].numpy()
    validation = np.zeros(len(learn), bool)
    validation[held] = True
    return TransferSet(one.title, one.metric, chosen(learn, "training"), validation, chosen(test, "test"), note)


def _open_part(one: _Set, arguments: Mapping[str, Any], data_dir: Path, download: bool) -> Any:
    import mira._torchvision  # noqa: F401, I001  (must come before torchvision)
    from torchvision import datasets

    # Asked for first, since some of torchvision's sets make their folder when they do not find it.
    problem = f"there is no folder '{one.folder}'"
    if (data_dir / one.folder).is_dir():
        try:
            return getattr(datasets, one.loader)(data_dir, **arguments)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            problem = " ".join(str(error).removesuffix(_TORCHVISION_HINT).split())
    if download:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            return getattr(datasets, one.loader)(data_dir, **arguments, download=True)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise SetUnavailable(f"{one.title} could not be downloaded: {' '.join(str(error).split())}") from error
    remedy = (
        "put it there by hand, its published address is dead"
        if one.loader == "StanfordCars"
        else "allow its download (--download), or put it there"
    )
    raise SetUnavailable(f"{one.title} is not complete in '{data_dir}' ({problem}): {remedy}.")


def _divide(name: SetName, keys: list[str], targets: Targets, folder: Path, seed: int) -> tuple[Rows, Rows, str]:
    """Training and test pictures of a set that torchvision gives in one piece, and what to say of the division."""
    lists = [folder / f"{part}_01.txt" for part in ("Training", "Testing")]
    if name == "sun397" and all(path.is_file() for path in lists):
        row = {key: number for number, key in enumerate(keys)}
        try:
            train, test = (
                np.array([row[line.strip("/")] for line in path.read_text("utf-8").split()], np.int64) for path in lists
            )
        except KeyError as error:
            raise SetUnavailable(f"SUN397's partition names {error}, which is not in '{folder}'.") from error
        return train, test, ""
    first, second = _SETS[name].per_class
    order = np.argsort(keys, kind="stable")  # not the file system's
    train_rows, test_rows = [], []
    for label in np.unique(targets):
        members = order[targets[order] == label]
        members = members[np.random.default_rng([seed, 0, int(label)]).permutation(len(members))]
        train_rows.append(members[:first])
        test_rows.append(members[first:][:second])
    note = ""
    if name == "sun397":
        note = (
            f"SUN397: '{folder}' has no Training_01.txt and Testing_01.txt, so that 50 and 50 pictures a class were "
            "drawn instead of the first published partition."
        )
    return np.concatenate(train_rows), np.concatenate(test_rows), note


def _key(name: SetName, part: str, dataset: Any, number: int) -> str:
    """Files where torchvision takes them in the order of the file system; numbers otherwise."""
    if name == "sun397":
        path: Path = dataset._image_files[number]
        return path.relative_to(dataset._data_dir).as_posix()
    return f"{part}/{number}"
