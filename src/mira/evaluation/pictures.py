"""What protocols are measured on, opened from what a person names."""

from pathlib import Path

from mira.data import PictureSource, open_source
from mira.evaluation.detection.data import DetectionSet, open_detection


def open_pictures(data: str, test: str | None, labels: str, channels: int) -> tuple[PictureSource, PictureSource]:
    """Training and test pictures: two parts of one source, or two sources.

    Raises:
        ValueError: there are none.
    """
    parts = ((data, "train"), (data, "test")) if test is None else ((data, "all"), (test, "all"))
    train, held = (open_source(name, split=split, labels=labels, channels=channels) for name, split in parts)
    return train, held


def open_data_folder(data: str, test: str | None, labels: str, channels: int) -> tuple[Path]:
    """The folder of several data sets."""
    if test is not None:
        raise ValueError("the data sets of this protocol have test pictures of their own: leave out --test.")
    return (Path(data).expanduser(),)


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
