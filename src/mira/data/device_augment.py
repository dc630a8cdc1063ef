"""Flip, colour, grey, blur, solarise and normalisation of whole batches on the training device.

The workers then only decode and cut. Each picture keeps its own parameters, the same `Look` as in `augment.py`, sent
along as one row of numbers. Nothing depends on values: no shape, no branch, no wait for the device, so that the whole
can be compiled and a GPU is never held up.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from mira.data.crops import LUMA, YIQ_QUARTER_TURN, CropSettings, HueSpace, ViewSettings
from mira.data.loading import Batch
from mira.data.look_rows import AFTER_HUE, BEFORE_HUE, FLIP, GREY, HUE, MIXES, SIGMA, SOLARISE

# Plain numbers, which torch.compile takes as constants.
_RED, _GREEN, _BLUE = LUMA.tolist()
_QUARTER_TURN = YIQ_QUARTER_TURN.tolist()


class DeviceAugment:
    """Brings a batch to the device, does there what the workers left to do, and normalises.

    A batch that the workers have coloured already is only normalised.
    """

    def __init__(
        self,
        crops: CropSettings,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
        parts: int = 1,
        compile: bool = False,
    ) -> None:
        """Prepare for batches of one recipe.

        Args:
            crops: what the crops are drawn with.
            mean: per channel, on the 0-1 scale.
            std: likewise.
            device: where the batches go.
            dtype: of the result. The colours are computed in float32 whatever it is.
            channels_last: memory layout of the result.
            parts: into how many a batch is cut, to compute one after the other: what that takes beside the result,
                several times its size, is taken for one part. On a CPU the bits are those of the whole batch, as long
                as a part has two pictures.
            compile: fuse the operations with `torch.compile`; takes a while at the first batch.
        """
        self._views = crops.views
        self._device = device
        self._dtype = dtype
        self._parts = parts
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        # x/255 is folded into the constants. They are made once: making them waits for the device.
        self._mean = torch.tensor(mean, device=device).mul_(255.0).view(-1, 1, 1)
        self._scale = torch.tensor(std, device=device).mul_(255.0).reciprocal_().view(-1, 1, 1)
        self._augment = torch.compile(augment, dynamic=False) if compile else augment

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[Float[Tensor, "B C _ _"]]:
        """The views of a batch as the network takes them."""
        looks = batch.looks or [None] * len(batch.views)
        return [
            self._finish(self._to_device(pictures), None if rows is None else self._to_device(rows), view)
            for pictures, rows, view in zip(batch.views, looks, self._views, strict=True)
        ]

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)

    def _finish(
        self, pictures: UInt8[Tensor, "B C S S"], rows: Float[Tensor, "B P"] | None, view: ViewSettings
    ) -> Float[Tensor, "B C S S"]:
        result = torch.empty(pictures.shape, dtype=self._dtype, device=self._device, memory_format=self._layout)
        size = math.ceil(len(pictures) / self._parts)
        for start in range(0, len(pictures), size):
            part = slice(start, start + size)
            x = pictures[part].float() if rows is None else self._augment(pictures[part], rows[part], view)
            result[part] = (x - self._mean) * self._scale
        return result


def augment(
    pictures: UInt8[Tensor, "B C S S"], rows: Float[Tensor, "B P"], view: ViewSettings
) -> Float[Tensor, "B C S S"]:
    """Flip, jitter, grey, blur and solarise, in this order; values stay between 0 and 255 but are not rounded.

    Args:
        pictures: crops of one view.
        rows: their parameters, from `look_rows`.
        view: the settings they were drawn with. An operation that these rule out is not computed.
    """
    common = view.common
    colour = pictures.shape[1] == 3
    # Planes are faster than interleaved colours where each colour has a formula of its own.
    x = pictures.to(torch.float32, memory_format=torch.contiguous_format)
    mixes = rows[:, MIXES:].reshape(len(rows), -1, 3)
    if common.flip:
        x = torch.where(_chosen(rows, FLIP), x.flip(-1), x)
    if common.jitter.probability:
        for number in BEFORE_HUE:
            x = _mix(x, mixes[:, number])
        if colour and common.jitter.hue:
            x = turn_hue(x, rows[:, HUE], space=common.jitter.hue_space)
            for number in AFTER_HUE:
                x = _mix(x, mixes[:, number])
    if colour and common.grey:
        x = _mix(x, mixes[:, GREY])
    if view.blur:
        x = blur(x, rows[:, SIGMA], max_sigma=common.blur_sigma[1])
    if view.solarise:
        x = torch.where(_chosen(rows, SOLARISE), torch.minimum(x, 255 - x), x)
    return x


def _chosen(rows: Float[Tensor, "B P"], column: int) -> Bool[Tensor, "B 1 1 1"]:
    return (rows[:, column] > 0.5)[:, None, None, None]


def _luma(x: Float[Tensor, "B C S S"]) -> Float[Tensor, "B 1 S S"]:
    if x.shape[1] == 1:
        return x
    luma: Tensor = _RED * x[:, 0:1] + _GREEN * x[:, 1:2] + _BLUE * x[:, 2:3]
    return luma


def _mix(x: Float[Tensor, "B C S S"], mix: Float[Tensor, "B 3"]) -> Float[Tensor, "B C S S"]:
    """Brightness, contrast, saturation or grey, as `mix` says."""
    own, luma_share, mean_share = mix[:, :, None, None, None].unbind(1)
    luma = _luma(x)
    return (own * x + (luma_share * luma + mean_share * luma.mean((2, 3), keepdim=True))).clamp(0, 255)


def turn_hue(x: Float[Tensor, "B 3 S S"], turn: Float[Tensor, " B"], *, space: HueSpace) -> Float[Tensor, "B 3 S S"]:
    """Turn each picture's hue by its share of the full circle, in HSV or (see `Jitter`) in the plane of I and Q."""
    turn = turn[:, None, None, None]
    if space == "yiq":
        luma, angle = _luma(x), 2 * math.pi * turn
        red, green, blue = x.unbind(1)
        quarter = torch.stack([a * red + b * green + c * blue for a, b, c in _QUARTER_TURN], 1)
        return (luma + angle.cos() * (x - luma) + angle.sin() * quarter).clamp(0, 255)
    red, green, blue = x.chunk(3, 1)
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    divisor = chroma.clamp_min(1e-6)
    sixth = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    # Each colour falls from the value by the chroma and rises again along the circle, shifted by a third of it.
    away = torch.cat([sixth + 6 * turn + start for start in (5, 3, 1)], 1).remainder(6)
    return value - chroma * torch.minimum(away, 4 - away).clamp(0, 1)


def blur(x: Float[Tensor, "B C S S"], sigma: Float[Tensor, " B"], *, max_sigma: float) -> Float[Tensor, "B C S S"]:
    """Gaussian blur with each picture's own sigma (0 for none), reflected borders, and radius 3 max_sigma for all."""
    batch, channels, height, width = x.shape
    radius = min(round(3 * max_sigma), height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    planes = torch.nn.functional.pad(x, [radius] * 4, mode="reflect").flatten(0, 1)[None]
    for shape in ((-1, 1, 1, 2 * radius + 1), (-1, 1, 2 * radius + 1, 1)):
        planes = torch.nn.functional.conv2d(planes, kernel.view(shape), groups=batch * channels)
    return planes.view(x.shape)
