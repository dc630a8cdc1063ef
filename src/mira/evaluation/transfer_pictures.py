"""A data set of the transfer protocol, opened and divided: what to learn from, what to choose on, what to test on."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from PIL import Image

from mira.data import UnreadablePicture
from mira.data.decoding import to_array

Metric = Literal["top-1", "mean per class", "11-point mAP"]
Targets = Int64[np.ndarray, " N"] | Bool[np.ndarray, "N K"]


class SetPictures:
    """Chosen pictures of one or more parts of a set of torchvision, as a source.

    Args:
        name: what to call it in a report.
        pictures: key, the torchvision set and the number in it, of every picture.
        targets: class numbers [N], or for every class whether the picture shows it [N, K].
        classes: their names.
        channels: 3 for RGB, 1 for grey.
    """

    def __init__(
        self,
        name: str,
        pictures: list[tuple[str, Any, int]],
        targets: Targets,
        *,
        classes: tuple[str, ...],
        channels: int,
    ) -> None:
        self.name, self.targets, self.classes, self.channels = name, targets, classes, channels
        self.labels: Int64[np.ndarray, " N"] | None = targets if targets.ndim == 1 else None
        self._pictures = pictures

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._pictures)

    def key(self, index: int) -> str:
        """The part and the picture's number or name in it, as in "train/123"."""
        return self._pictures[index][0]

    def identity(self) -> str:
        """The set, where it lies, and which of its pictures: published sets do not change."""
        roots = sorted({str(dataset.root) for _, dataset, _ in self._pictures})
        return "\n".join([self.name, str(self.channels), *roots, *(key for key, _, _ in self._pictures)])

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """One picture; raises `UnreadablePicture` when its file cannot be decoded."""
        key, dataset, number = self._pictures[index]
        try:
            image: Image.Image = dataset[number][0]
            return to_array(image, channels=self.channels)
        except Exception as error:  # whatever the set's own reading and decoding raises
            raise UnreadablePicture(key, str(error) or type(error).__name__) from error


@dataclass(frozen=True)
class TransferSet:
    """One data set, divided.

    Attributes:
        title: as tables name it.
        metric: of this set.
        learn: training and validation pictures.
        validation: which of them validate.
        test: pictures that the result is measured on.
        note: how the division differs from the published one; empty where it does not.
    """

    title: str
    metric: Metric
    learn: SetPictures
    validation: Bool[np.ndarray, " N"]
    test: SetPictures
    note: str = ""
