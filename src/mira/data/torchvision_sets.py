"""Any classification set of torchvision by its name, as in "torchvision:CIFAR10"."""

import difflib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from mira.data.decoding import UnreadablePicture, to_array
from mira.data.folder import held_out
from mira.data.names import escaped

# The names that torchvision's sets give to what is not for training, in the order they are tried.
TEST_SPLITS = ("test", "val", "valid")


class TorchvisionSource:
    """A set of `torchvision.datasets` whose items are (picture, label).

    A name may say which of the set's own splits is to train on, as "STL10@train+unlabeled" does.

    Splits: "train" and "test" are the set's own (its argument `train` or `split`); "all" is both. Where the set
    has none, "test" is a fixed fifth chosen by a hash of the picture's number. Labels are None where the set
    does not keep one integer per picture.
    """

    def __init__(self, name: str, *, split: str, channels: int, data_dir: Path) -> None:
        """Open the set below `data_dir`, downloading it when it is not there; raises ValueError."""
        self.name = f"torchvision:{name}"
        name, _, own_train = name.partition("@")
        self.channels = channels
        dataset_class = _find_class(name)
        parameters = inspect.signature(dataset_class).parameters
        own_splits = "train" in parameters or "split" in parameters
        self._parts: list[tuple[str, Any, np.ndarray]] = []  # the split's name, the set, the indices used
        for part in ("train", "test") if own_splits and split == "all" else (split,):
            dataset = _open(dataset_class, part if own_splits else None, data_dir, own_train=own_train)
            chosen = np.arange(len(dataset))
            if not own_splits and split != "all":
                test = np.array([held_out(str(index)) for index in chosen], bool)
                chosen = chosen[test == (split == "test")]
            self._parts.append((part, dataset, chosen))
        self._first = len(self._parts[0][2])
        labels = [_labels(dataset) for _, dataset, _ in self._parts]
        self.labels: Int64[np.ndarray, " N"] | None = None
        self.classes: tuple[str, ...] = ()
        known = [values for values in labels if values is not None]
        if len(known) == len(labels):
            self.labels = np.concatenate([x[chosen] for x, (_, _, chosen) in zip(known, self._parts, strict=True)])
            count = max(int(values.max()) for values in known) + 1
            names = [escaped(str(name)) for name in getattr(self._parts[0][1], "classes", ())]
            self.classes = tuple(names) if len(names) >= count else tuple(str(label) for label in range(count))

    def __len__(self) -> int:
        """The number of pictures."""
        return sum(len(chosen) for _, _, chosen in self._parts)

    def key(self, index: int) -> str:
        """The split and the number within the set, as in "train/123"."""
        part, _, number = self._locate(index)
        return f"{part}/{number}"

    def identity(self) -> str:
        """The set, where it lies, and its parts: published sets do not change."""
        parts = [(name, str(getattr(dataset, "root", "")), len(chosen)) for name, dataset, chosen in self._parts]
        return f"{self.name} {parts} {self.channels}"

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """One picture; raises `UnreadablePicture` when its file cannot be decoded."""
        _, dataset, number = self._locate(index)
        try:
            image = dataset[number][0]
        except Exception as error:  # whatever the set's own reading and decoding raises
            raise UnreadablePicture(self.key(index), str(error) or type(error).__name__) from error
        if not isinstance(image, Image.Image):
            raise ValueError(f"{self.name} gives {type(image).__name__} instead of pictures: it cannot be used here")
        return to_array(image, channels=self.channels)

    def _locate(self, index: int) -> tuple[str, Any, int]:
        part = 0 if index < self._first else 1
        name, dataset, chosen = self._parts[part]
        return name, dataset, int(chosen[index - part * self._first])


def _find_class(name: str) -> Any:
    import mira._torchvision  # noqa: F401, I001  (must come before torchvision)
    from torchvision import datasets

    if name in datasets.__all__ and inspect.isclass(getattr(datasets, name)):
        return getattr(datasets, name)
    by_lower_case = {known.lower(): known for known in datasets.__all__}
    nearest = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    hint = f"did you mean torchvision:{by_lower_case[nearest[0]]}?" if nearest else "see torchvision.datasets"
    raise ValueError(f"torchvision has no data set {name!r}: {hint}")


def _open(dataset_class: Any, split: str | None, data_dir: Path, *, own_train: str = "") -> Any:
    """One split of a set, from `data_dir` or else downloaded into it."""
    parameters = inspect.signature(dataset_class).parameters
    name = dataset_class.__name__
    arguments: dict[str, Any] = {"root": str(data_dir)} if "root" in parameters else {}
    required = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if set(required) - {"root"}:
        raise ValueError(f"torchvision:{name} cannot be opened by its name alone: it also needs {required[-1]!r}")
    choices = [arguments]
    if own_train and "split" not in parameters:
        raise ValueError(f"torchvision:{name} has no splits to choose from: leave out '@{own_train}'")
    if split == "train" and own_train:
        choices = [arguments | {"split": own_train}]
    elif split is not None and "train" in parameters:
        choices = [arguments | {"train": split == "train"}]
    elif split == "train":
        own = str(parameters["split"].default)  # "trainval" in some sets, "train-standard" in others
        choices = [arguments | {"split": own if own.startswith("train") else "train"}]
    elif split == "test":
        choices = [arguments | {"split": choice} for choice in TEST_SPLITS]
    downloads = "download" in parameters
    refusal = ""
    for choice in choices:
        try:
            return dataset_class(**choice, **({"download": False} if downloads else {}))
        except ValueError as error:  # the set has no split of this name: try the next
            refusal = str(error)
        except ImportError as error:
            raise ValueError(f"torchvision:{name} needs another package: {error}") from error
        except Exception as error:  # RuntimeError, OSError, and what a base class raises that is no set
            if not downloads:
                reason = str(error) or type(error).__name__
                raise ValueError(f"torchvision:{name} must be put into {data_dir} by hand: {reason}") from error
            return _download(dataset_class, choice, data_dir)
    raise ValueError(f"torchvision:{name} could not be opened: {refusal}")


def _download(dataset_class: Any, arguments: dict[str, Any], data_dir: Path) -> Any:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        return dataset_class(**arguments, download=True)
    except Exception as error:
        raise ValueError(
            f"torchvision:{dataset_class.__name__} is not in {data_dir} and could not be downloaded "
            f"({' '.join(str(error).split())}): check the network, or copy the files there from another machine"
        ) from error


def _labels(dataset: Any) -> np.ndarray | None:
    """The integer labels that a set keeps under one of the usual names, or None."""
    for name in ("targets", "labels", "_labels", "y", "samples", "_samples"):
        values = getattr(dataset, name, None)
        if values is None or len(values) != len(dataset):
            continue
        if name.endswith("samples"):
            values = [sample[1] for sample in values]
        labels = np.asarray(values)
        if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and labels.min(initial=0) >= 0:
            return labels.astype(np.int64)
    return None
