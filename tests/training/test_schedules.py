import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mira.training.schedules import cosine, warmup_cosine


@given(st.integers(1, 10_000), st.floats(-10, 10), st.floats(-10, 10))
def test_cosine_starts_at_first_and_would_end_at_last(total: int, first: float, last: float) -> None:
    assert cosine(0, total, first, last) == pytest.approx(first, abs=1e-9)
    assert cosine(total, total, first, last) == pytest.approx(last, abs=1e-9)


@given(st.integers(2, 1000), st.floats(0, 1), st.floats(0, 1))
def test_cosine_is_monotone(total: int, first: float, last: float) -> None:
    values = [cosine(step, total, first, last) for step in range(total + 1)]
    assert values == sorted(values, reverse=last < first) or math.isclose(first, last, abs_tol=1e-12)


def test_warmup_rises_in_equal_parts_and_meets_the_peak() -> None:
    values = [warmup_cosine(step, total=100, warmup=10, start=0.5, peak=6.0) for step in range(100)]
    rises = [b - a for a, b in zip([0.5, *values[:10]], values[:11], strict=True)]
    assert rises == pytest.approx([0.5] * 11)
    assert values[10] == 6.0
    assert values[10:] == sorted(values[10:], reverse=True)
    assert warmup_cosine(100, 100, 10, 0.5, 6.0) == pytest.approx(0.0)


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert warmup_cosine(0, total=5, warmup=0, start=0.0, peak=1.0) == 1.0
