"""A crop's `Look` as a row of numbers, in which it travels to the device that applies it.

Brightness, contrast, saturation and grey are one operation, a mix: x becomes a x + b luma(x) + c mean(luma(x)), clamped
to 0..255. Only the hue is of another kind; at most three mixes come before it and at most three after, then the grey.
So every order of the jitter is the same sequence of operations with other numbers.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from mira.data.crops import Look

# The columns of a row of parameters.
FLIP, HUE, SIGMA, SOLARISE, MIXES = range(5)
BEFORE_HUE, AFTER_HUE, GREY = range(3), range(3, 6), 6  # which of the seven mixes
_NEUTRAL = (1.0, 0.0, 0.0)
WIDTH = MIXES + 3 * 7


def look_rows(looks: Sequence[Look]) -> Float32[np.ndarray, "B P"]:
    """The parameters of each crop as a row, for `device_augment.augment`."""
    return np.array([_row(look) for look in looks], np.float32).reshape(len(looks), WIDTH)


def _row(look: Look) -> list[float]:
    hue = 0.0
    mixes: list[tuple[float, float, float]] = []
    for operation, factor in look.jitter:
        if operation == "hue":
            hue = factor
            mixes += [_NEUTRAL] * (len(BEFORE_HUE) - len(mixes))
        elif operation == "brightness":
            mixes.append((factor, 0.0, 0.0))
        elif operation == "contrast":
            mixes.append((factor, 0.0, 1 - factor))
        else:
            mixes.append((factor, 1 - factor, 0.0))
    mixes += [_NEUTRAL] * (6 - len(mixes))
    mixes.append((0.0, 1.0, 0.0) if look.grey else _NEUTRAL)
    return [float(look.flip), hue, look.sigma, float(look.solarise), *(number for mix in mixes for number in mix)]
