"""Pictures as a classifier trains on them: cut at random, or mirrored, as sources like any other.

A protocol that trains on features of a frozen backbone then needs no loader of its own: an epoch's features are the
features of an epoch's source.
"""

import cv2
import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from mira.data import Identified, PictureSource, batch_indices
from mira.data.augment import cut
from mira.data.crops import DRAWS, Draw, draw_box
from mira.data.uniforms import uniforms


def epoch_order(n: int, *, seed: int, epoch: int) -> Int64[np.ndarray, " N"]:
    """All pictures in the order of an epoch, a permutation drawn from (seed, epoch).

    Cut into batches, the last one may be smaller; it counts as a step, as in SwAV's scripts (the authors' linear probe
    drops it).
    """
    return batch_indices(n, n, seed=seed, step=epoch)


class RandomCrops:
    """Chosen pictures, each cut at random, resized to a square, and flipped half of the time.

    The box is RandomResizedCrop's (ratio 3/4 to 4/3), the resizing antialiased. Every random number is a
    function of (seed, epoch, number of the picture in `source`) alone.

    Args:
        source: labelled pictures.
        chosen: which of them, in which order.
        size: side of the square, in pixels.
        scale: the smallest and the largest share of the picture's area.
        flip: the probability of a flip.
        seed, epoch: what the cuts are drawn from.
        interpolation: "bicubic" or "bilinear", as the test pictures are resized.
    """

    def __init__(
        self,
        source: PictureSource,
        chosen: Int64[np.ndarray, " N"],
        *,
        size: int,
        scale: tuple[float, float],
        flip: float,
        seed: int,
        epoch: int,
        interpolation: str = "bicubic",
    ) -> None:
        self._source, self._chosen = source, chosen
        self._size, self._scale, self._flip = size, scale, flip
        self._seed, self._epoch, self._interpolation = seed, epoch, interpolation
        self.name = source.name
        self.classes = source.classes
        self.labels = None if source.labels is None else source.labels[chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def key(self, index: int) -> str:
        """The picture's name in its source."""
        return self._source.key(int(self._chosen[index]))

    def read(self, index: int) -> UInt8[np.ndarray, "S S C"]:
        """The square that is cut out of the picture."""
        number = int(self._chosen[index])
        picture = self._source.read(number)
        u = uniforms(self._seed, self._epoch, number, draws=DRAWS).tolist()
        height, width, channels = picture.shape
        box = draw_box(u, height=height, width=width, scale=self._scale)
        if self._interpolation == "bicubic":
            square = cut(picture, box, self._size)
        else:
            image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
            corners = (box.left, box.top, box.left + box.width, box.top + box.height)
            smaller = image.resize((self._size, self._size), Image.Resampling[self._interpolation.upper()], box=corners)
            square = np.asarray(smaller).reshape(self._size, self._size, channels)
        if u[Draw.FLIP] < self._flip:
            square = cv2.flip(square, 1).reshape(self._size, self._size, channels)
        return square


class Mirrored:
    """A source whose pictures are flipped left to right."""

    def __init__(self, source: PictureSource) -> None:
        self._source = source
        self.name = f"{source.name}, mirrored"
        self.classes = source.classes
        self.labels = source.labels

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        """The picture's name in its source."""
        return self._source.key(index)

    def identity(self) -> str | None:
        """The source's own, told apart from it; None where the source has none."""
        own = self._source.identity() if isinstance(self._source, Identified) else None
        return None if own is None else f"{own}\0mirrored"

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """The flipped picture."""
        return np.ascontiguousarray(self._source.read(index)[:, ::-1])
