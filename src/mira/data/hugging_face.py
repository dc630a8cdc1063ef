"""Sets of Hugging Face's `datasets`: of the hub by name, or saved in a folder."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from mira.data.class_numbers import classes_of
from mira.data.decoding import UnreadablePicture, decode, read_file
from mira.data.folder import TEST_FOLDERS, TRAIN_FOLDER, held_out
from mira.data.names import path_of
from mira.offline import fetching


class HuggingFaceSource:
    """A set with a column of pictures, and maybe one of class numbers.

    Splits: "train" and "test" (or "val", "valid", "validation") are the set's own; "all" is all of it. Where the set
    has only one, "test" is a fixed fifth chosen by a hash of the picture's number.
    """

    def __init__(self, name: str, *, split: str, labels: str, channels: int) -> None:
        """Open the set, downloading it when it is not there; raises ValueError."""
        self.name = f"hf:{name}"
        self.channels = channels
        datasets = _package()
        parts = _open(datasets, name)
        own = [part for part in parts if part in (TRAIN_FOLDER, *TEST_FOLDERS)]
        wanted = list(parts)
        if len(own) > 1 and split != "all":
            names = (TRAIN_FOLDER,) if split == "train" else TEST_FOLDERS
            wanted = [part for part in names if part in parts][:1]
            if not wanted:
                raise ValueError(f"{self.name} has the splits {', '.join(parts)}, but none for {split!r}")
        features = parts[wanted[0]].features
        column = next((name for name, kind in features.items() if isinstance(kind, datasets.Image)), None)
        if column is None:
            raise ValueError(f"{self.name} has no column of pictures; its columns are {', '.join(features)}")
        rows = datasets.concatenate_datasets([parts[part] for part in wanted])
        chosen = np.arange(len(rows))
        if len(own) < 2 and split != "all":
            chosen = np.flatnonzero([held_out(str(index)) == (split == "test") for index in range(len(rows))])
        self._chosen: Int64[np.ndarray, " N"] = chosen
        # Encoded: decoding is ours, so that every source decodes alike.
        self._pictures = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self._column = column
        self._parts = "+".join(wanted)
        self.labels: Int64[np.ndarray, " N"] | None = None
        self.classes: tuple[str, ...] = ()
        labelled = next((name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
        if labels == "auto" and labelled is not None:
            values = np.array(rows.with_format("numpy")[labelled]).tolist()
            if min(values, default=0) >= 0:  # -1 stands for a secret label
                every, self.classes = classes_of(values, self.name, names=features[labelled].names)
                self.labels = None if every is None else every[chosen]

    def __len__(self) -> int:
        """The number of pictures, unreadable ones included."""
        return len(self._chosen)

    def key(self, index: int) -> str:
        """The split and the number within it, as in "train/123"."""
        return f"{self._parts}/{self._chosen[index]}"

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """Decode one picture; raises `UnreadablePicture`."""
        return decode(self.encoded(index), key=self.key(index), channels=self.channels)

    def encoded(self, index: int) -> bytes:
        """The content of a picture's file; raises `UnreadablePicture`."""
        value = self._pictures[int(self._chosen[index])][self._column]
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise UnreadablePicture(self.key(index), "the row holds no picture")
        if value["bytes"] is None:
            return read_file(Path(value["path"]), key=self.key(index))
        return bytes(value["bytes"])

    def identity(self) -> str:
        """The fingerprint that `datasets` keeps of the rows, and which of them."""
        return f"{self.name} {self._pictures._fingerprint} {self._chosen.tolist()} {self.channels}"


def has_own_splits(name: str) -> bool:
    """Whether a set has a split "train": all of the hub do, a folder when it was saved as several."""
    folder = path_of(name)
    return not (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _package() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("sources hf:... need the package datasets: pip install datasets") from error
    return datasets


def _open(datasets: Any, name: str) -> dict[str, Any]:
    """The set's splits by their names."""
    folder = path_of(name)
    saved = any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))
    if saved:
        try:
            found = datasets.load_from_disk(str(folder))
        except Exception as error:  # those of any file format
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"hf:{name} is damaged or was not written by save_to_disk ({reason})") from error
    else:
        with fetching(f"hf:{name} cannot be opened: its pictures", "name a folder written by save_to_disk"):
            found = datasets.load_dataset(str(folder) if folder.exists() else name)
    return dict(found) if isinstance(found, dict) else {TRAIN_FOLDER: found}
