"""Batches of crops in a fixed order, whatever the number of workers, ranks and restarts."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mira.data.augment import apply, cut
from mira.data.crops import DRAWS, Box, CropSettings, Look, draw_box, draw_look
from mira.data.decoding import Decoded, UnreadablePicture, decode_shrunk
from mira.data.look_rows import look_rows
from mira.data.mixing import shard_mixing
from mira.data.order import BatchRequest, Requests
from mira.data.sources import EncodedSource, PictureSource, ShardedSource
from mira.data.uniforms import uniforms
from mira.data.workers import PATIENCE, BatchLoader
from mira.errors import TooManyUnreadable
from mira.wording import counted


class Batch(NamedTuple):
    """The crops of a batch of pictures.

    Attributes:
        views: one uint8 tensor [B, C, S, S] per crop: two global ones, then the local ones. Channels come last
            in memory.
        indices: which pictures are in the rows (replacements included), int64 [B].
        unreadable: each picture that could not be read, once: its index and "key<TAB>reason".
        looks: where the crops were only cut, what the device has yet to do: for each view the rows of
            `look_rows`, float32 [B, P]. Empty where all was done.
    """

    views: tuple[Tensor, ...]
    indices: Tensor
    unreadable: tuple[tuple[int, str], ...]
    looks: tuple[Tensor, ...] = ()


class CropDataset(Dataset[Batch]):
    """The crops of any batch of a source's pictures; a pure function of the request.

    Every random number is a function of (seed, epoch, index of the picture, number of the crop). The place of a
    picture that cannot be read is taken by the next one (modulo their number) that can, with the random numbers
    of the place.
    """

    def __init__(
        self,
        source: PictureSource,
        settings: CropSettings,
        *,
        seed: int,
        max_unreadable: float,
        augment: Literal["workers", "device"] = "workers",
        decode: Literal["exact", "scaled"] = "exact",
        mix_shards: int | None = None,
    ) -> None:
        """Serve crops.

        Args:
            source: the pictures.
            settings: of the crops.
            seed: of the run.
            max_unreadable: the share of the pictures that may be unreadable.
            augment: "workers" do everything here; "device" leaves all but the cutting to `DeviceAugment`.
            decode: "scaled" decodes JPEGs only as large as the crops need them (see `_allowed_shrink`).
            mix_shards: how many of a sharded source's files are needed at a time; None mixes all pictures.

        Raises:
            ValueError: `mix_shards` does not fit the source (see `shard_mixing`).
        """
        self.source = source
        self.settings = settings
        self.seed = seed
        self.max_unreadable = max_unreadable
        self.augment = augment
        self.decode = decode
        self.mixing = shard_mixing(source, mix_shards)
        self._views = settings.views

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.source)

    def __getitem__(self, request: BatchRequest) -> Batch:
        """The batch of a request; raises `TooManyUnreadable` at more consecutive unreadable pictures than allowed."""
        if request.shards and isinstance(self.source, ShardedSource):
            self.source.expect(request.shards)
        places = request.indices
        views = range(len(self._views))
        draws = uniforms(self.seed, request.epoch, places[:, None], np.array(views), draws=DRAWS).tolist()
        crops: list[np.ndarray] = []
        shown = np.empty(len(places), np.int64)
        unreadable: dict[int, str] = {}
        for row, place in enumerate(places.tolist()):
            shown[row], decoded = self._read(place, draws[row], unreadable)
            boxes = self._boxes(decoded.height, decoded.width, draws[row])
            if row == 0:
                channels = decoded.picture.shape[2]
                crops = [np.empty((len(places), view.size, view.size, channels), np.uint8) for view in self._views]
            for target, box in zip(crops, boxes, strict=True):
                target[row] = cut(decoded.picture, box, target.shape[1], shrink=decoded.shrink)
        looks = [
            [draw_look(u[view], self._views[view], colour=crops[view].shape[3] == 3) for u in draws] for view in views
        ]
        if self.augment == "workers":
            # After all the cutting, not in turns with it: the two are different libraries, whose code would drive
            # each other's out of the processor's caches. Small pictures take twice as long then.
            for view in views:
                self._colour(crops[view], looks[view])
        return Batch(
            tuple(torch.from_numpy(target).permute(0, 3, 1, 2) for target in crops),
            torch.from_numpy(shown),
            tuple(sorted(unreadable.items())),
            tuple(torch.from_numpy(look_rows(rows)) for rows in looks) if self.augment == "device" else (),
        )

    def _colour(self, crops: UInt8[np.ndarray, "B S S C"], looks: list[Look]) -> None:
        """Apply what was drawn, in place."""
        sigma, space = self.settings.blur_sigma[1], self.settings.jitter.hue_space
        for row, look in enumerate(looks):
            crops[row] = apply(crops[row], look, max_sigma=sigma, hue_space=space)

    def _boxes(self, height: int, width: int, draws: list[list[float]]) -> list[Box]:
        return [
            draw_box(u, height=height, width=width, scale=view.scale)
            for view, u in zip(self._views, draws, strict=True)
        ]

    def _allowed_shrink(self, height: int, width: int, draws: list[list[float]]) -> int:
        """How many times smaller a picture may be decoded for these crops: none is enlarged, most are still reduced.

        The reduction inside a JPEG's blocks is coarser than the resizing. With a third of the way left to the
        latter, crops differ by less than one grey level on average from those of the whole picture (docs/pipeline.md).
        """
        boxes = self._boxes(height, width, draws)
        sizes = [view.size / min(box.height, box.width) for box, view in zip(boxes, self._views, strict=True)]
        return next((s for s in (8, 4, 2) if s * max(sizes) <= 1 and s * sum(sizes) <= 2 / 3 * len(sizes)), 1)

    def _decode(self, index: int, draws: list[list[float]]) -> Decoded:
        if self.decode == "scaled" and isinstance(self.source, EncodedSource):
            return decode_shrunk(
                self.source.encoded(index),
                key=self.source.key(index),
                channels=self.source.channels,
                allowed=lambda height, width: self._allowed_shrink(height, width, draws),
            )
        picture = self.source.read(index)
        return Decoded(picture, picture.shape[0], picture.shape[1], shrink=1)

    def _read(self, place: int, draws: list[list[float]], unreadable: dict[int, str]) -> tuple[int, Decoded]:
        """The picture of a place or the next that can be read; notes those that cannot."""
        count = len(self.source)
        for offset in range(count):
            index = (place + offset) % count
            if index not in unreadable:
                try:
                    return index, self._decode(index, draws)
                except UnreadablePicture as error:
                    unreadable[index] = f"{error.key}\t{error.reason}"
            if offset + 1 > self.max_unreadable * count:
                break
        raise TooManyUnreadable(
            f"{counted(offset + 1, 'picture')} in a row of {self.source.name} cannot be read, more than the allowed "
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
    parts: int = 1,
    pin_memory: bool = False,
    patience: float = PATIENCE,
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
        parts: into how many the batch is cut before it is shared (see `order.shares`).
        pin_memory: copy batches into page-locked memory for a GPU.
        patience: seconds to wait for a batch of the workers.

    Raises:
        ValueError: the batch does not fit the data set or the processes; while iterating, see `CropDataset`.
    """
    requests = Requests(len(dataset), batch_size, seed, first_step, last_step, rank, world, parts, dataset.mixing)
    if len(requests):
        requests[0]  # an impossible batch is an error now, not when the first batch is taken
    return BatchLoader(dataset, requests, workers=workers, pin_memory=pin_memory, patience=patience)
