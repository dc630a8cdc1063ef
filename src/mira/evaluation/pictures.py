"""What protocols are measured on, opened from what a person names."""

from contextlib import suppress
from pathlib import Path

from mira.data import PictureSource, open_source, pretraining_split
from mira.data.folder import FolderSource
from mira.data.parquet import ParquetSource
from mira.data.remote import is_remote
from mira.data.sources import absolute_spec
from mira.data.tar import TarSource
from mira.evaluation.detection.data import DetectionSet, open_detection
from mira.wording import counted


def open_labelled(data: str, *, split: str, labels: str, channels: int) -> PictureSource:
    """A source with labels where it can have some: with "auto", a folder's classes are its first level of folders.

    Its name is the same from any working folder.

    Raises:
        ValueError: what `open_source` raises.
    """
    source = open_source(absolute_spec(data), split=split, labels=labels, channels=channels)
    if labels == "auto" and source.labels is None:
        with suppress(ValueError):  # no folders that could be classes: the protocol says whether it needs labels
            return open_source(absolute_spec(data), split=split, labels="folder", channels=channels)
    return source


def open_pictures(data: str, test: str | None, labels: str, channels: int) -> tuple[PictureSource, PictureSource]:
    """Training and test pictures: two parts of one source, or two sources.

    Of two sources, what is learned from is the training part where there is one, otherwise all.

    Raises:
        ValueError: there are none, or pictures of a folder are in both.
    """
    parts = ((data, "train"), (data, "test")) if test is None else ((data, pretraining_split(data)), (test, "all"))
    train, held = (open_labelled(name, split=split, labels=labels, channels=channels) for name, split in parts)
    if test is not None and (both := _places(train) & _places(held)):
        raise ValueError(
            f"{counted(len(both), 'picture')} of the test pictures {held.name} are training pictures too, the first "
            f"{min(both)}: name pictures that share none, or leave out --test where the set has a test part of its own."
        )
    return train, held


def _places(source: PictureSource) -> set[str]:
    """Where each picture lies: the same for two sources that share it, however they are named."""
    if isinstance(source, FolderSource):
        root = str(source.root.resolve())
    elif isinstance(source, TarSource | ParquetSource):  # their pictures are named after the files
        folder = source.name.rpartition("/")[0]
        root = folder if is_remote(source.name) else str(Path(folder).resolve())
    else:
        root = source.name
    return {f"{root}/{source.key(index)}" for index in range(len(source))}


def open_data_folder(data: str, test: str | None, labels: str, channels: int) -> tuple[Path]:
    """The folder of several data sets.

    Raises:
        ValueError: test pictures were named, or pictures of one set.
    """
    if test is not None:
        raise ValueError("the data sets of this protocol have test pictures of their own: leave out --test.")
    if not Path(absolute_spec(data)).is_absolute():  # torchvision:NAME and the like
        raise ValueError(f"{data} is one data set: name the folder in which torchvision keeps those of this protocol.")
    return (Path(data).expanduser().absolute(),)


def open_boxes(data: str, test: str | None, labels: str, channels: int) -> tuple[DetectionSet, DetectionSet]:
    """Training and test pictures with boxes, of a folder."""
    if test is not None:
        raise ValueError("a detection set has test pictures of its own, in the same folder: leave out --test.")
    return open_detection(Path(data).expanduser(), channels=channels)


def open_masks(data: str, test: str | None, labels: str, channels: int) -> tuple[DetectionSet, DetectionSet]:
    """Training and test pictures with boxes and masks, of a folder."""
    if test is not None:
        raise ValueError("a detection set has test pictures of its own, in the same folder: leave out --test.")
    return open_detection(Path(data).expanduser(), channels=channels, masks=True)
