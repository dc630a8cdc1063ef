"""What every group of settings refuses."""

from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from mira.settings import Settings


class Mixed(Settings):
    number: int = 3
    rate: float | Literal["auto"] = 0.5
    several: tuple[float, ...] = Field((1.0,), min_length=1)
    switch: bool = False
    either: bool | str = False
    free: dict[str, Any] = Field(default_factory=dict)


@pytest.mark.parametrize(
    "values", [{"number": True}, {"rate": False}, {"several": [0.5, True]}, {"several": True}, {"number": "1.5"}]
)
def test_true_is_no_number(values: dict) -> None:
    with pytest.raises(ValidationError):
        Mixed(**values)


def test_true_stays_true_where_it_is_meant() -> None:
    mixed = Mixed(switch=True, either=True, free={"pretrained": True}, rate=1, several=[2])
    assert (mixed.switch, mixed.either, mixed.free) == (True, True, {"pretrained": True})
    assert mixed.several == (2.0,)


def test_unknown_names_infinities_and_changes_are_refused() -> None:
    for values in ({"numbr": 1}, {"several": [float("inf")]}, {"several": []}):
        with pytest.raises(ValidationError):
            Mixed(**values)
    with pytest.raises(ValidationError):
        Mixed().number = 4
