import numpy as np
import pytest
from scipy import stats

from mira.data.uniforms import hashed, uniforms


def test_first_numbers_are_splitmix64s_own():
    """With one part of the key the state is SplitMix64's with seed 0, whose published first outputs these are."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert hashed(np.arange(3)).tolist() == published


def test_parts_broadcast_and_each_number_depends_on_its_own_key_only():
    whole = uniforms(7, 3, np.arange(5)[:, None], np.arange(4), draws=6)
    assert whole.shape == (5, 4, 6)
    assert np.array_equal(whole[2, 1], uniforms(7, 3, 2, 1, draws=6))
    assert np.array_equal(whole[..., :2], uniforms(7, 3, np.arange(5)[:, None], np.arange(4), draws=2))


def test_order_of_the_parts_matters():
    assert hashed(1, 2) != hashed(2, 1)
    assert hashed(0, 5) != hashed(5, 0)
    assert hashed(0) != hashed(0, 0)


def test_no_warning_and_any_integer_will_do(recwarn):
    values = {int(hashed(seed, 0)) for seed in (0, -1, 2**62, 2**64 - 2, -(2**63))}
    assert len(values) == 5
    assert not recwarn.list


@pytest.mark.parametrize("axis", range(5))
def test_uniform_along_every_part_of_the_key(axis):
    """Consecutive seeds, epochs, pictures, crops or draws: each gives numbers that pass for uniform."""
    key: list[int | np.ndarray] = [11, 2, 3, 1]
    n = 20_000
    if axis < 4:
        key[axis] = np.arange(n)
        values = uniforms(*key, draws=1)[:, 0]
    else:
        values = uniforms(*key, draws=n)
    assert 0 <= values.min() < values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    # Neighbours are independent: the pairs fill the unit square evenly.
    pairs, *_ = np.histogram2d(values[:-1], values[1:], bins=10, range=[[0, 1], [0, 1]])
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3


def test_neighbouring_keys_give_independent_numbers():
    u = uniforms(0, np.arange(40)[:, None], np.arange(500), draws=2)
    for other in (np.roll(u, 1, axis=0), np.roll(u, 1, axis=1), u[..., ::-1]):
        assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(u.size / 2)


def test_one_bit_of_the_key_flips_half_of_the_bits():
    base = hashed(5, np.arange(4000))
    for bit in (0, 1, 7, 20, 31):
        changed = base ^ hashed(5, np.arange(4000) ^ (1 << bit))
        assert abs(np.bitwise_count(changed).mean() - 32) < 0.5
