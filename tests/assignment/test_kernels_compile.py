"""What is launched at real sizes compiles to machine code for a GPU, whether there is one or not."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from launches import Launch, recorded_launches  # noqa: E402

from mira.assignment.kernels import (  # noqa: E402
    FusedLabels,
    FusedMarginals,
    cross_entropy_gradient,
    cross_entropy_rows,
)

HOPPER, AMPERE = 90, 80


def launches_of(work: Callable[[], object]) -> list[Launch]:
    with recorded_launches() as launches:
        work()
    return launches


def one_step(views: int, rows: int, width: int, dtype: torch.dtype, points: int, *, weighted: bool = False) -> None:
    """On the meta device, matrices of any size are free."""
    logits = torch.empty(views, rows, width, dtype=dtype, device="meta")
    row_weights = torch.empty(views, rows, dtype=torch.float64, device="meta") if weighted else None
    labels = FusedLabels(logits, 3.0, torch.promote_types(dtype, torch.float32), row_weights)
    log_weights = torch.empty(views, points, width, dtype=torch.float64, device="meta")
    labels.column_sums(log_weights)
    labels.labels(log_weights[:, 0])


def cross_entropy(views: int, rows: int, width: int, dtype: torch.dtype) -> None:
    student, teacher = (torch.empty(count, rows, width, dtype=dtype, device="meta") for count in (views, 2))
    log_weights = torch.empty(2, width, dtype=torch.float64, device="meta")
    settings = {"scale": 3.0, "student_scale": 10.0, "swap": True}
    _, _, statistics = cross_entropy_rows(student, teacher, log_weights, **settings)
    factors = torch.empty(rows, dtype=torch.float64, device="meta")
    cross_entropy_gradient(student, teacher, log_weights, statistics, factors, **settings)


def marginal_steps(accelerate: bool) -> None:
    start = torch.empty(2, 3000, dtype=torch.float64, device="meta")
    marginals = FusedMarginals(start, beta=0.7, accelerate=accelerate)
    for _ in range(3):
        marginals.take(torch.empty_like(marginals.log_u), None)
        marginals.advance()


@pytest.mark.slow
@pytest.mark.parametrize(
    "work",
    [
        lambda: one_step(2, 4096, 3000, torch.bfloat16, 2),
        lambda: one_step(1, 4096, 3001, torch.float16, 1),  # rows that begin anywhere
        lambda: one_step(2, 512, 300, torch.float32, 2, weighted=True),
        lambda: one_step(1, 256, 8192, torch.bfloat16, 2),
        lambda: one_step(2, 40_000, 131_072, torch.bfloat16, 2),  # more than 2^31 elements
        lambda: one_step(1, 512, 3000, torch.float64, 2),
        lambda: cross_entropy(8, 4096, 3000, torch.bfloat16),
        lambda: cross_entropy(2, 20_000, 131_072, torch.bfloat16),
        lambda: cross_entropy(2, 64, 300, torch.float64),
    ],
)
def test_every_launch_compiles(work, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches = launches_of(work)
    assert launches
    for launch in launches:
        assert all(0 < size < limit for size, limit in zip(launch.grid, (2**31, 2**16, 2**16), strict=False))
        compiled = launch.compile(HOPPER)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= 96 << 10  # what every GPU since Ampere has


def test_rows_are_loaded_eight_elements_at_a_time(tmp_path, monkeypatch):
    """3000 columns begin at multiples of 8 elements, not of the 16 that Triton looks for."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (sums, labels) = launches_of(lambda: one_step(2, 4096, 3000, torch.bfloat16, 1))
    for launch in (sums, labels):
        assert "ld.global.v4.b32" in launch.compile(HOPPER).asm["ptx"]
        assert "ld.global.b16" not in launch.compile(HOPPER).asm["ptx"]


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", [True, False])
def test_the_steps_of_the_marginal_have_no_single_precision_in_them(accelerate, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for launch in launches_of(lambda: marginal_steps(accelerate)):
        compiled = launch.compile(HOPPER)
        assert compiled.asm["cubin"]
        assert "f32" not in compiled.asm["ttgir"]


def test_an_older_device_is_served_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for launch in launches_of(lambda: one_step(1, 64, 300, torch.float16, 1)):
        assert launch.compile(AMPERE).asm["cubin"]


def test_wide_and_narrow_matrices_are_read_as_often_as_they_must():
    assert [launch.kernel.fn.__name__ for launch in launches_of(lambda: one_step(2, 64, 8192, torch.half, 2))] == [
        "_column_sums_kernel",
        "_labels_kernel",
    ]
    assert [launch.kernel.fn.__name__ for launch in launches_of(lambda: one_step(2, 64, 8193, torch.half, 2))] == [
        "_statistics_kernel",
        "_column_sums_kernel",
        "_labels_kernel",
    ]


TRACE = """
import torch
import torch.utils._triton as presence
presence.has_triton = lambda: True  # of a device: nothing will run
from mira.assignment.kernels import FusedLabels, FusedMarginals

class Traced(Exception):
    pass

def take_down(graph, inputs):
    global launches
    launches = sum("triton_kernel_wrapper" in str(node.target) for node in graph.graph.nodes)
    raise Traced

def solve(logits):
    labels = FusedLabels(logits, 3.0, torch.float32)
    start = torch.zeros(2, logits.shape[2], dtype=torch.float64)
    marginals = FusedMarginals(start, beta=0.5, accelerate=True)
    for _ in range(4):
        marginals.take(labels.column_sums(-marginals.log_u), None)
        marginals.advance()
    return labels.labels(-marginals.best)

for width, wanted in ((300, 9), (9000, 13)):  # by the second time the width has become a variable
    try:
        torch.compile(solve, backend=take_down, fullgraph=True)(torch.zeros(2, 64, width))
    except Exception as error:
        if "Traced" not in repr(error):
            raise
    assert launches == wanted, launches
"""


@pytest.mark.slow
def test_torch_compile_takes_the_launches_into_its_graph():
    subprocess.run([sys.executable, "-c", TRACE], check=True)
