"""What a crop is: the settings, and the parameters of one crop as a pure function of uniform numbers.

Applying the parameters is `augment.py`'s work. The two are apart so that pictures can be cut in one place and
coloured in another, and so that a test can hand the same parameters to another implementation.
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator, model_validator

from mira.settings import Settings

Probability = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=8, le=4096)]
HueSpace = Literal["hsv", "yiq"]


class Jitter(Settings):
    """Colour jitter: with `probability`, four operations of random strength in random order (ColorJitter).

    The hue turns in HSV, as published. `hue_space` "yiq" turns it in the plane of I and Q instead: cheaper, but
    another augmentation, because saturated colours keep their luma and not their value.
    """

    probability: Probability = 0.8
    brightness: Annotated[float, Field(ge=0)] = 0.4
    contrast: Annotated[float, Field(ge=0)] = 0.4
    saturation: Annotated[float, Field(ge=0)] = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    hue_space: HueSpace = "hsv"


def _check_scale(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"scale is the smallest and the largest share of the picture, 0 < smallest <= largest <= 1, not {scale}"
        )
    return scale


class GlobalCrops(Settings):
    """The two large crops; `blur` and `solarise` are the probabilities for the first and for the second."""

    size: Size = 224
    scale: tuple[float, float] = (0.14, 1.0)
    blur: tuple[Probability, Probability] = (1.0, 0.1)
    solarise: tuple[Probability, Probability] = (0.0, 0.2)

    _scale = field_validator("scale")(_check_scale)


class LocalCrops(Settings):
    """The small crops, of which there may be none."""

    count: Annotated[int, Field(ge=0, le=64)] = 0
    size: Size = 96
    scale: tuple[float, float] = (0.05, 0.14)
    blur: Probability = 0.5
    solarise: Probability = 0.0

    _scale = field_validator("scale")(_check_scale)


class CropSettings(Settings):
    """The crops of a picture and what is done to them. The defaults are MIRA's for ImageNet, without local crops."""

    global_crops: GlobalCrops = GlobalCrops()
    local_crops: LocalCrops = LocalCrops()
    flip: Probability = 0.5
    jitter: Jitter = Jitter()
    grey: Probability = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    @field_validator("blur_sigma")
    @classmethod
    def _check_sigma(cls, sigma: tuple[float, float]) -> tuple[float, float]:
        if not 0 < sigma[0] <= sigma[1] <= 64:
            raise ValueError(
                f"blur_sigma is the smallest and the largest, 0 < smallest <= largest <= 64 px, not {sigma}"
            )
        return sigma

    @model_validator(mode="after")
    def _warn_of_large_locals(self) -> "CropSettings":
        if self.local_crops.count and self.local_crops.size > self.global_crops.size:
            warnings.warn(
                f"local crops ({self.local_crops.size} pixels) are larger than global ones ({self.global_crops.size}): "
                "crops.local_crops.size is usually below half of crops.global_crops.size",
                stacklevel=2,
            )
        return self

    @property
    def views(self) -> tuple["ViewSettings", ...]:
        """The settings of each crop: two global ones, then the local ones."""
        large, small = self.global_crops, self.local_crops
        pair = [ViewSettings(large.size, large.scale, large.blur[i], large.solarise[i], self) for i in range(2)]
        local = ViewSettings(small.size, small.scale, small.blur, small.solarise, self)
        return (*pair, *[local] * small.count)


class ViewSettings(NamedTuple):
    """What one crop of a picture is drawn with; `common` holds what all crops share."""

    size: int
    scale: tuple[float, float]
    blur: float
    solarise: float
    common: CropSettings


class Box(NamedTuple):
    """A rectangle in a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Look(NamedTuple):
    """What is done to a crop after it was cut, in this order; the order of the jitter's four is its own.

    `jitter` lists (operation, factor) with the operations "brightness", "contrast", "saturation", "hue";
    `sigma` is 0 where the crop is not blurred.
    """

    flip: bool
    jitter: tuple[tuple[str, float], ...]
    grey: bool
    sigma: float
    solarise: bool


class Draw(IntEnum):
    """Which of a crop's uniform numbers decides what. Changing this changes the crops of every run."""

    FLIP = 0
    JITTER = 1
    ORDER = 2
    BRIGHTNESS = 3
    CONTRAST = 4
    SATURATION = 5
    HUE = 6
    GREY = 7
    BLUR = 8
    SIGMA = 9
    SOLARISE = 10
    TOP = 11
    LEFT = 12
    AREA = 13  # and one more for each further try, interleaved with the ratio
    RATIO = 14


LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as in Pillow's "L"
# Red, green and blue to I and Q (NTSC 1953); a quarter turn there, and back.
_IQ = np.array([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_BACK = np.linalg.inv(np.vstack([LUMA, _IQ]))[:, 1:]
YIQ_QUARTER_TURN = (_BACK @ np.array([[0, 1], [-1, 0]]) @ _IQ).astype(np.float32)

TRIES = 10
DRAWS = Draw.AREA + 2 * TRIES
RATIO = (3 / 4, 4 / 3)
_ORDERS = tuple(
    itertools.permutations([(name, Draw[name.upper()]) for name in ("brightness", "contrast", "saturation", "hue")])
)


def draw_box(u: Sequence[float], *, height: int, width: int, scale: tuple[float, float]) -> Box:
    """A random box as torchvision's RandomResizedCrop draws it.

    Ten tries of an area uniform in `scale` and a ratio log-uniform in [3/4, 4/3]; if none fits, the largest
    centred box whose ratio is in that range.

    Args:
        u: the crop's `DRAWS` uniform numbers.
        height: the picture's height.
        width: the picture's width.
        scale: the smallest and the largest share of the picture's area.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for attempt in range(0, 2 * TRIES, 2):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u[Draw.AREA + attempt])
        ratio = math.exp(low + (high - low) * u[Draw.RATIO + attempt])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(u[Draw.TOP] * (height - h + 1)), int(u[Draw.LEFT] * (width - w + 1)), h, w)
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def draw_look(u: Sequence[float], view: ViewSettings, *, colour: bool) -> Look:
    """The random operations of a crop as torchvision's ColorJitter and its companions draw them.

    Args:
        u: the crop's `DRAWS` uniform numbers.
        view: the settings of this crop.
        colour: False for pictures of one channel, which have no saturation, no hue and nothing to make grey.
    """
    common = view.common
    jitter: tuple[tuple[str, float], ...] = ()
    if u[Draw.JITTER] < common.jitter.probability:
        jitter = tuple(
            [
                (operation, _factor(u[draw], operation, strength))
                for operation, draw in _ORDERS[int(u[Draw.ORDER] * len(_ORDERS))]
                if (strength := getattr(common.jitter, operation)) > 0 and (colour or draw <= Draw.CONTRAST)
            ]
        )
    low, high = common.blur_sigma
    return Look(
        flip=u[Draw.FLIP] < common.flip,
        jitter=jitter,
        grey=colour and u[Draw.GREY] < common.grey,
        sigma=low + (high - low) * u[Draw.SIGMA] if u[Draw.BLUR] < view.blur else 0.0,
        solarise=u[Draw.SOLARISE] < view.solarise,
    )


def _factor(u: float, operation: str, strength: float) -> float:
    if operation == "hue":
        return strength * (2 * u - 1)
    low, high = max(0.0, 1 - strength), 1 + strength
    return low + (high - low) * u
