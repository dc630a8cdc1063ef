"""Random numbers as a pure function of what they are for: no state, no order, no dependence on workers or ranks.

Each number is a hash of its key, made of SplitMix64 steps (Steele, Lea, Flood 2014): the key's parts are absorbed
one after the other, and the last part, the draw, counts along the SplitMix64 sequence that the others select.
"""

import numpy as np
from jaxtyping import Float64, Int, UInt64

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def uniforms(*key: Int[np.ndarray, "..."] | int, draws: int) -> Float64[np.ndarray, "... draws"]:
    """Independent uniform numbers in [0, 1) for every key.

    Args:
        key: integers or arrays of integers, broadcast together: (seed, epoch, index, crop), say. The order matters.
        draws: how many numbers per key.

    Returns:
        float64 of the keys' broadcast shape and one more axis, on a grid of 2^-53.
    """
    bits = hashed(*(np.asarray(part)[..., None] for part in key), np.arange(draws))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hashed(*key: Int[np.ndarray, "..."] | int) -> UInt64[np.ndarray, "..."]:
    """64 random bits for every key (broadcast together)."""
    state = np.zeros(1, np.uint64)
    for part in key:
        # At least one axis: arrays wrap around without a warning, scalars with one.
        state = _mix(state + (np.atleast_1d(part).astype(np.uint64) + np.uint64(1)) * _GAMMA)
    shape = np.broadcast_shapes(*(np.shape(part) for part in key))
    bits: np.ndarray = state.reshape(shape)
    return bits


def _mix(z: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """SplitMix64's finaliser (Stafford's variant 13): a bijection whose every output bit depends on every input bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed
