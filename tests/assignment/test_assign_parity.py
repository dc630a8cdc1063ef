"""`assign` against the numbers recorded from the authors' published code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mira.assignment import Assignment, assign

PARITY = Path(__file__).parent / "parity"
SETTINGS = json.loads((PARITY / "labels.json").read_text())


def solve(case: int, **arguments) -> tuple[Assignment, np.lib.npyio.NpzFile]:
    record = np.load(PARITY / "labels.npz")
    logits = torch.from_numpy(record[f"case{case}_logits"]).double()
    setting = SETTINGS[case]
    assert logits.shape == (setting["batch"], setting["prototypes"])
    return assign(logits, beta=setting["beta"], temperature=setting["tau_t"], **arguments), record


@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_thirty_plain_iterations_are_the_published_ones(case):
    solved, record = solve(case, accelerate=False, max_iterations=30, tolerance=None)
    assert solved.iterations == 30
    assert np.abs(solved.probs.numpy() - record[f"case{case}_labels30"]).max() < 1e-12


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_converged_labels_are_the_published_ones(case, accelerate):
    solved, record = solve(case, accelerate=accelerate, max_iterations=2000, tolerance=1e-20)
    assert np.abs(solved.probs.numpy() - record[f"case{case}_labels_converged"]).max() < 1e-9


@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_one_iteration_less_is_not_the_published_thirty(case):
    """The record can tell where the iteration starts: one step off is visible in the cases that have not converged."""
    solved, record = solve(case, accelerate=False, max_iterations=29, tolerance=None)
    error = np.abs(solved.probs.numpy() - record[f"case{case}_labels30"]).max()
    if SETTINGS[case]["beta"] >= 0.75:
        assert error > 1e-7
