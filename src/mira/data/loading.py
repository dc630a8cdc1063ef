"""Batches of crops in a fixed order, whatever the number of workers, ranks and restarts."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mira.data.augment import apply, cut
from mira.data.crops import DRAWS, CropSettings, draw_box, draw_look
from mira.data.decoding import TooManyUnreadable, UnreadablePicture
from mira.data.order import BatchRequest, Requests
from mira.data.sources import PictureSource
from mira.data.uniforms import uniforms
from mira.data.workers import BatchLoader


class Batch(NamedTuple):
    """The crops of a batch of pictures.

    Attributes:
        views: one uint8 tensor [B, C, S, S] per crop: two global ones, then the local ones. Channels come last
            in memory.
        indices: which pictures are in the rows (replacements included), int64 [B].
        unreadable: each picture that could not be read, once: its index and "key<TAB>reason".
    """

    views: tuple[Tensor, ...]
    indices: Tensor
    unreadable: tuple[tuple[int, str], ...]


class CropDataset(Dataset[Batch]):
    """The crops of any batch of a source's pictures; a pure function of the request.

    Every random number is a function of (seed, epoch, index of the picture, number of the crop). The place of a
    picture that cannot be read is taken by the next one (modulo their number) that can, with the random numbers
    of the place.
    """

    def __init__(self, source: PictureSource, settings: CropSettings, *, seed: int, max_unreadable: float) -> None:
        """Serve crops of `source`; `max_unreadable` is the share of its pictures that may be unreadable."""
        self.source = source
        self.settings = settings
        self.seed = seed
        self.max_unreadable = max_unreadable

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.source)

    def __getitem__(self, request: BatchRequest) -> Batch:
        """The batch of a request; raises `TooManyUnreadable` at more consecutive unreadable pictures than allowed."""
        views = self.settings.views
        max_sigma = self.settings.blur_sigma[1]
        places = request.indices
        draws = uniforms(self.seed, request.epoch, places[:, None], np.arange(len(views)), draws=DRAWS).tolist()
        crops: list[np.ndarray] = []
        shown = np.empty(len(places), np.int64)
        unreadable: dict[int, str] = {}
        for row, place in enumerate(places.tolist()):
            shown[row], picture = self._read(place, unreadable)
            height, width, channels = picture.shape
            if row == 0:
                crops = [np.empty((len(places), view.size, view.size, channels), np.uint8) for view in views]
            for view, target, u in zip(views, crops, draws[row], strict=True):
                crop = cut(picture, draw_box(u, height=height, width=width, scale=view.scale), view.size)
                target[row] = apply(crop, draw_look(u, view, colour=channels == 3), max_sigma=max_sigma)
        tensors = tuple(torch.from_numpy(target).permute(0, 3, 1, 2) for target in crops)
        return Batch(tensors, torch.from_numpy(shown), tuple(sorted(unreadable.items())))

    def _read(self, place: int, unreadable: dict[int, str]) -> tuple[int, UInt8[np.ndarray, "H W C"]]:
        """The picture of a place or the next that can be read; notes those that cannot."""
        count = len(self.source)
        for offset in range(count):
            index = (place + offset) % count
            if index not in unreadable:
                try:
                    return index, self.source.read(index)
                except UnreadablePicture as error:
                    unreadable[index] = f"{error.key}\t{error.reason}"
            if offset + 1 > self.max_unreadable * count:
                break
        raise TooManyUnreadable(
            f"{offset + 1} pictures in a row of {self.source.name} cannot be read, more than the allowed "
            f"{self.max_unreadable:.1%} of {count}; the first is {unreadable[place].replace(chr(9), ': ')}. "
            "Check the files, or raise max_unreadable",
            tuple(sorted(unreadable.items())),
        )


def crop_loader(
    dataset: CropDataset,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    seed: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> Iterable[Batch]:
    """The batches of the steps from `first_step` to before `last_step`, in order and without a pause between epochs.

    The same bits come out for any number of workers; starting at a later step gives the rest of the whole run.

    Args:
        dataset: makes the crops.
        batch_size: of the whole batch, over all ranks.
        first_step: the first step, counted over all epochs from 0.
        last_step: the step to stop before.
        seed: of the order of the pictures.
        workers: processes beside this one; 0 makes the crops in this one.
        rank: of this process.
        world: the number of processes that share a batch.
        pin_memory: copy batches into page-locked memory for a GPU.

    Raises:
        ValueError: the batch does not fit the data set or the processes; while iterating, see `CropDataset`.
    """
    requests = Requests(len(dataset), batch_size, seed, first_step, last_step, rank, world)
    if len(requests):
        requests[0]  # an impossible batch is an error now, not when the first batch is taken
    return BatchLoader(dataset, requests, workers=workers, pin_memory=pin_memory)
