"""Precision, extremes, memory, repetition, and what happens to the input."""

import subprocess
import sys

import pytest
import torch
from assignment_problems import FAMILIES, make_logits

from mira.assignment import assign, objective


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_single_precision_is_enough(family, dtype):
    logits = make_logits(family, torch.Size((70, 45)), seed=4).to(dtype)
    exact = assign(logits.double(), beta=2 / 3, max_iterations=12, tolerance=None)
    solved = assign(logits, beta=2 / 3, max_iterations=12, tolerance=None)
    assert solved.probs.dtype == solved.log_marginal.dtype == solved.gap.dtype == torch.float32
    assert torch.allclose(solved.probs.double(), exact.probs, atol=2e-5)
    assert torch.allclose(solved.probs.sum(-1), torch.ones(()), atol=1e-6)
    assert (solved.gap - exact.gap).abs() < 1e-8 + 1e-3 * exact.gap


def test_double_precision_stays_double():
    solved = assign(make_logits("cosine", torch.Size((9, 5)), seed=0), beta=0.5)
    assert solved.probs.dtype == solved.log_marginal.dtype == solved.gap.dtype == torch.float64


@pytest.mark.parametrize("beta", [0.0, 0.5, 2 / 3, 0.9, 0.97, 0.999])
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (1e4, torch.float32),
        (1e30, torch.float32),
        (3.4e38, torch.float32),
        (1e4, torch.float64),
        (1e307, torch.float64),
        (6e4, torch.float16),
        (3e38, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("temperature", [1e-3, 1.0])
def test_extreme_logits_give_labels(size, dtype, beta, temperature):
    pattern = make_logits("sharp", torch.Size((3, 20, 12)), seed=0).clamp(-1, 1)
    pattern[1, :, 3] = -1.0  # a prototype that no picture wants
    pattern[2] = pattern[2].sign()  # ties at the extremes
    solved = assign((pattern * size).to(dtype), beta=beta, temperature=temperature, max_iterations=20, tolerance=None)
    for field in (solved.probs, solved.log_marginal, solved.gap):
        assert field.isfinite().all()
    assert (solved.gap >= 0).all()
    assert torch.allclose(solved.probs.sum(-1), torch.ones((), dtype=solved.probs.dtype), atol=1e-5)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.97])
def test_a_wide_dynamic_range_loses_nothing(beta):
    """Marginals over hundreds of nats make single precision give up its scaled matrix again and again."""
    logits = make_logits("sharp", torch.Size((60, 30)), seed=0) + torch.linspace(0, -60, 30)
    arguments = {"beta": beta, "max_iterations": 40, "tolerance": None}
    exact, solved = assign(logits, **arguments), assign(logits.float(), **arguments)
    problem = {"beta": beta, "temperature": 1.0}
    best = objective(assign(logits, beta=beta, tolerance=1e-10, max_iterations=5000).probs, logits, **problem)
    excess = objective(solved.probs.double(), logits, **problem) - best
    assert excess <= solved.gap + 1e-5
    assert solved.gap <= 3 * exact.gap + 1e-9


def test_beyond_single_precision_the_shift_of_a_row_is_harmless():
    logits = make_logits("cosine", torch.Size((40, 20)), seed=0).float()
    shifted = (logits * 1024).round() / 1024 + 4096
    reference = assign(shifted.double() - 4096, beta=2 / 3, tolerance=1e-10)
    assert torch.allclose(assign(shifted, beta=2 / 3, tolerance=1e-10).probs.double(), reference.probs, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 31, 17), (1, 700, 1700)])
def test_the_input_is_left_alone_and_repetition_gives_the_same_bits(shape):
    logits = make_logits("clustered", torch.Size(shape), seed=0).float().requires_grad_()
    before = logits.detach().clone()
    start = torch.zeros(shape[0], shape[2])
    first, second = (assign(logits, beta=0.75, initial_log_marginal=start) for _ in range(2))
    assert torch.equal(logits, before)
    assert (start == 0).all()
    assert not first.probs.requires_grad
    assert torch.equal(first.probs, second.probs)
    assert torch.equal(first.log_marginal, second.log_marginal)
    assert torch.equal(first.gap, second.gap)


def test_strided_logits_are_the_same_problem():
    logits = make_logits("clustered", torch.Size((40, 30)), seed=0)
    assert torch.equal(assign(logits.T.contiguous().T, beta=0.75).probs, assign(logits, beta=0.75).probs)


def test_a_device_is_never_asked_for_a_value():
    """On the meta device a value that the host reads does not exist: reading one is an error."""
    logits = torch.empty(2, 64, 30, device="meta")
    solved = assign(logits, beta=0.75, tolerance=None, max_iterations=8, check=False)
    assert solved.probs.shape == logits.shape
    assert solved.iterations == 8
    with pytest.raises((RuntimeError, NotImplementedError)):
        assign(logits, beta=0.75, tolerance=1e-6, check=False)


MEASURE = """
import sys, torch
from pathlib import Path
from mira.assignment import assign
torch.set_num_threads(1)
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
dtype, beta = getattr(torch, sys.argv[1]), float(sys.argv[2])
assign(torch.rand(64, 32).to(dtype), beta=beta)
logits = torch.empty(3000, 4000, dtype=dtype).uniform_(-1, 1)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: that of the imports must not hide ours
before = peak()
solved = assign(logits, beta=beta, temperature=0.1, tolerance=None, max_iterations=4)
matrix = solved.probs.nbytes
print((peak() - before) / matrix)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(("dtype", "beta"), [("float32", "0.6667"), ("bfloat16", "0.97")])
def test_memory_stays_within_the_output_and_a_fraction(dtype, beta):
    """At most one matrix above input and output is allowed; a third of one is what it must make do with."""
    # The system's own bookkeeping can only add to a process's peak, and now and then does: the least of three counts.
    command = [sys.executable, "-c", MEASURE, dtype, beta]
    peaks = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    assert 0.9 < min(peaks) < 1.34, "peak memory in matrices, output included"


def test_a_prototype_that_has_lost_its_last_picture_still_counts_in_the_gap():
    """One label of exactly 0: its share of u is part of KL(w_bar || u), here 0.48 of 0.66 nats."""
    logits = torch.tensor([[1.2412, 1.1201]], dtype=torch.float64)
    solved = assign(logits, beta=0.9999, temperature=0.1, max_iterations=0, tolerance=None)
    assert float(solved.probs[0, 1]) == 0
    assert float(solved.gap) == pytest.approx(-0.9999 * float(solved.log_marginal[0]), rel=1e-12)
