"""What `assign` refuses, and what it says."""

import re

import pytest
import torch

from mira.assignment import assign

LOGITS = torch.zeros(4, 3)


def with_value(*values: float) -> torch.Tensor:
    logits = torch.zeros(2, 4, 3)
    for place, value in enumerate(values):
        logits[1, 2, place] = value
    return logits


@pytest.mark.parametrize(
    ("logits", "arguments", "message"),
    [
        (with_value(float("nan")), {}, "1 of 24 values are not (1 NaN); the first is nan at index [1, 2, 0]"),
        (with_value(float("inf")), {}, "(1 +inf); the first is inf at index [1, 2, 0]"),
        (with_value(0, float("-inf")), {}, "(1 -inf); the first is -inf at index [1, 2, 1]"),
        (
            with_value(float("-inf"), float("nan"), float("inf")),
            {},
            "3 of 24 values are not (1 NaN, 1 +inf, 1 -inf); the first is -inf",
        ),
        (with_value(float("inf")).half(), {}, "logits must be finite"),
        (LOGITS, {"beta": 1.0}, "beta must be at least 0 and below 1, not 1.0"),
        (LOGITS, {"beta": -0.1}, "beta must be at least 0 and below 1, not -0.1"),
        (LOGITS, {"beta": float("nan")}, "beta must be at least 0 and below 1, not nan"),
        (LOGITS, {"temperature": 0.0}, "temperature must be positive and finite, not 0.0"),
        (LOGITS, {"temperature": -1.0}, "temperature must be positive and finite, not -1.0"),
        (LOGITS, {"temperature": float("inf")}, "temperature must be positive and finite, not inf"),
        (LOGITS, {"max_iterations": -1}, "max_iterations must be a whole number, 0 or more, not -1"),
        (LOGITS, {"row_weights": torch.zeros(4), "reduce": lambda x: x}, "row_weights are all 0 on every rank"),
        (LOGITS, {"tolerance": -1e-3}, "tolerance must be a finite number of nats, 0 or more, not -0.001"),
        (LOGITS, {"tolerance": float("nan")}, "tolerance must be a finite number of nats"),
        (torch.zeros(3), {}, "logits must have shape [N, K] or [V, N, K] (views, pictures, prototypes), not [3]"),
        (torch.zeros(1, 1, 2, 3), {}, "not [1, 1, 2, 3]"),
        (torch.zeros(4, 3, dtype=torch.int64), {}, "logits must be floating point, not torch.int64"),
        (torch.zeros(0, 3), {}, "logits are empty: shape [0, 3]"),
        (torch.zeros(4, 0), {}, "logits are empty: shape [4, 0]"),
        (torch.zeros(4, 0), {"reduce": lambda x: x}, "logits are empty: shape [4, 0]"),
        (
            LOGITS,
            {"initial_log_marginal": torch.zeros(4)},
            "initial_log_marginal must have shape [3] to go with logits of shape [4, 3], not [4]",
        ),
        (torch.zeros(2, 4, 3), {"initial_log_marginal": torch.zeros(3)}, "must have shape [2, 3]"),
        (LOGITS, {"initial_log_marginal": torch.tensor([0, 0, -torch.inf])}, "initial_log_marginal must be finite"),
        (
            LOGITS,
            {"initial_log_marginal": torch.zeros(3, dtype=torch.int32)},
            "must be floating point, not torch.int32",
        ),
        (LOGITS, {"prior": torch.ones(4)}, "prior must have shape [3] to go with logits of shape [4, 3], not [4]"),
        (torch.zeros(2, 4, 3), {"prior": torch.ones(2)}, "prior must have shape [3] or [2, 3]"),
        (LOGITS, {"prior": torch.ones(3, dtype=torch.int64)}, "prior must be floating point"),
        (LOGITS, {"prior": torch.tensor([0.5, 0.5, 0.0])}, "prior must be positive, but its smallest value is 0.0"),
        (LOGITS, {"prior": torch.tensor([0.5, torch.nan, 1])}, "prior must be finite, but 1 of 3 values are not"),
        (LOGITS, {"row_weights": torch.ones(3)}, "row_weights must have shape [4] to go with logits of shape [4, 3]"),
        (
            LOGITS,
            {"row_weights": torch.tensor([1.0, 1, -2, 1])},
            "row_weights must be 0 or more, but the smallest is -2",
        ),
        (LOGITS, {"row_weights": torch.zeros(4)}, "row_weights are all 0"),
    ],
)
def test_bad_arguments_are_named(logits, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        assign(logits, **{"beta": 0.5, **arguments})


def test_check_false_skips_only_what_needs_the_values():
    broken = with_value(float("nan"))
    assign(broken, beta=0.5, check=False, max_iterations=2)
    with pytest.raises(ValueError, match="beta"):
        assign(broken, beta=1.5, check=False)
