"""Cross-entropy against labels that are not written: equal to that against written ones, in value and gradient."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mira.assignment import assign, cross_entropy_blocks, information
from mira.assignment.cross_entropy import label_cross_entropy, swapped_cross_entropy
from mira.training.loss import swapped_prediction_loss

SETTINGS = {"beta": 0.7, "temperature": 0.4}


def problem(views: int, targets: int, rows: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(views, rows, width, generator=generator, dtype=torch.float64, requires_grad=True)
    return student, torch.randn(targets, rows, width, generator=generator, dtype=torch.float64)


@given(st.integers(1, 2), st.integers(2, 5), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
def test_equals_the_loss_of_written_labels(targets: int, views: int, rows: int, width: int, seed: int) -> None:
    student, teacher = problem(views, targets, rows, width, seed)
    solved = assign(teacher, **SETTINGS)
    written = swapped_prediction_loss(solved.probs, student / 0.1)
    found = swapped_cross_entropy(student, teacher, solved.log_marginal, student_temperature=0.1, **SETTINGS)
    torch.testing.assert_close(found.loss, written, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.marginal, solved.probs.mean(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.label_entropy, information.entropy(solved.probs).mean(1), rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(3 * found.loss, student)
    torch.testing.assert_close(gradient, torch.autograd.grad(3 * written, student)[0], rtol=1e-10, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    student, teacher = problem(3, 2, 4, 5)
    marginal = assign(teacher, **SETTINGS).log_marginal
    weights = torch.rand(4, dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return swapped_cross_entropy(
            x, teacher, marginal, student_temperature=0.5, row_weights=weights, **SETTINGS
        ).loss

    assert torch.autograd.gradcheck(loss, (student,), atol=1e-8)
    teacher.requires_grad_()
    assert torch.autograd.grad(loss(student), (student, teacher), allow_unused=True)[1] is None


def test_row_weights_are_pictures_that_are_there_more_than_once() -> None:
    student, teacher = problem(3, 2, 4, 5)
    marginal = assign(teacher, **SETTINGS).log_marginal
    times = torch.tensor([2, 0, 1, 3])
    settings = {"student_temperature": 0.1, **SETTINGS}
    found = swapped_cross_entropy(student, teacher, marginal, row_weights=times.double(), **settings)
    copies = [logits.repeat_interleave(times, 1) for logits in (student, teacher)]
    wanted = swapped_cross_entropy(*copies, marginal, **settings)
    for field in ("loss", "label_entropy", "marginal"):
        torch.testing.assert_close(getattr(found, field), getattr(wanted, field))
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (found.loss, wanted.loss)]
    torch.testing.assert_close(*gradients)
    assert (gradients[0][:, 1] == 0).all()


@pytest.mark.parametrize("shape", [(6,), (2, 6)])
def test_a_prior_makes_the_labels_that_assign_makes_with_it(shape) -> None:
    student, teacher = problem(2, 2, 8, 6)
    prior = torch.rand(*shape, dtype=torch.float64) + 0.1
    solved = assign(teacher, prior=prior, **SETTINGS)
    log_prior = prior.log() - prior.sum(-1, keepdim=True).log()
    found = swapped_cross_entropy(
        student, teacher, solved.log_marginal, student_temperature=0.1, log_prior=log_prior, **SETTINGS
    )
    torch.testing.assert_close(found.loss, swapped_prediction_loss(solved.probs, student / 0.1))


def test_one_set_of_predictions_and_one_of_labels() -> None:
    student, teacher = problem(1, 1, 9, 7)
    solved = assign(teacher[0], **SETTINGS)
    found = label_cross_entropy(student[0], teacher[0], solved.log_marginal, student_temperature=0.2, **SETTINGS)
    wanted = torch.nn.functional.cross_entropy(student[0] / 0.2, solved.probs)
    torch.testing.assert_close(found.loss, wanted)
    torch.testing.assert_close(found.marginal, solved.probs.mean(0))
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (found.loss, wanted)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_single(dtype) -> None:
    student, teacher = problem(4, 2, 30, 50)
    student = student.detach().to(dtype).requires_grad_()
    exact = student.detach().double().requires_grad_()
    marginal = assign(teacher, **SETTINGS).log_marginal
    settings = {"student_temperature": 0.1, **SETTINGS}
    found = swapped_cross_entropy(student, teacher.float(), marginal, **settings)
    wanted = swapped_cross_entropy(exact, teacher.float().double(), marginal, **settings)
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss.double(), wanted.loss, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(found.loss * 1024, student)  # scaled as for half precision
    assert gradient.dtype == dtype
    (wanted_gradient,) = torch.autograd.grad(wanted.loss * 1024, exact)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


def test_blocks_make_no_difference(monkeypatch) -> None:
    student, teacher = problem(3, 2, 23, 40)
    marginal = assign(teacher, **SETTINGS).log_marginal
    results = []
    for block_bytes in (1, 1 << 11, 1 << 20):
        monkeypatch.setattr(cross_entropy_blocks, "_BLOCK_BYTES", block_bytes)
        found = swapped_cross_entropy(student, teacher, marginal, student_temperature=0.1, **SETTINGS)
        results.append((found.loss, found.marginal, torch.autograd.grad(found.loss, student)[0]))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-14)


def test_extreme_logits_give_no_nan() -> None:
    student = torch.tensor([[[1e38, -1e38]], [[-1e38, 1e38]]], requires_grad=True)
    teacher = torch.tensor([[[3e38, -3e38]], [[3e38, -3e38]]])
    settings = {"beta": 0.5, "temperature": 1e-3, "student_temperature": 1e-3}
    for logits in (student, student.flip(0), student[:1].expand(2, -1, -1)):
        found = swapped_cross_entropy(logits, teacher, torch.zeros(2, 2), **settings)
        assert not found.loss.isnan()
        assert torch.autograd.grad(found.loss, student)[0].isfinite().all()
    assert found.loss == 0  # all predictions are the labels


def test_strided_logits_are_the_same_problem() -> None:
    student, teacher = problem(3, 2, 8, 10)
    marginal = assign(teacher, **SETTINGS).log_marginal
    settings = {"student_temperature": 0.1, **SETTINGS}
    strided = student.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    losses = [swapped_cross_entropy(x, teacher, marginal, **settings).loss for x in (student, strided)]
    assert losses[0] == losses[1]
    gradients = (torch.autograd.grad(loss, x)[0] for loss, x in zip(losses, (student, strided), strict=True))
    torch.testing.assert_close(*gradients)


COMPILE = """
import torch
from mira.assignment.cross_entropy import swapped_cross_entropy
torch.manual_seed(0)
student = torch.randn(3, 8, 10, dtype=torch.float64, requires_grad=True)
teacher, marginal = torch.randn(2, 8, 10, dtype=torch.float64), torch.randn(2, 10, dtype=torch.float64)
def loss(x):
    found = swapped_cross_entropy(x, teacher, marginal, beta=0.7, temperature=0.2, student_temperature=0.1)
    return found.loss + found.label_entropy.sum()
compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(compiled(student), loss(student))
torch.testing.assert_close(*(torch.autograd.grad(f(student), student)[0] for f in (compiled, loss)))
"""


@pytest.mark.slow
def test_torch_compile_makes_one_graph_of_it() -> None:
    """In a process of its own: the compiler cannot look into the type checks of the tests."""
    subprocess.run([sys.executable, "-c", COMPILE], check=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"student": torch.zeros(1, 4, 3)}, "at least two views and a view per target, got 1 and 2"),
        ({"student": torch.zeros(2, 4)}, "dimensions views, pictures, prototypes"),
        ({"teacher": torch.zeros(2, 5, 3)}, "the same pictures and prototypes"),
        ({"log_marginal": torch.zeros(3)}, r"log_marginal must have shape \[2, 3\]"),
        ({"log_prior": torch.zeros(4)}, r"log_prior must have shape \[3\] or \[2, 3\]"),
        ({"row_weights": torch.ones(3)}, r"row_weights must have shape \[4\]"),
        ({"beta": 1.0}, "beta must be at least 0 and below 1, not 1.0"),
        ({"temperature": 0.0}, "temperature must be positive and finite, not 0.0"),
        ({"student_temperature": float("nan")}, "student_temperature must be positive and finite, not nan"),
    ],
)
def test_errors_are_sentences(change, sentence) -> None:
    arguments = {
        "student": torch.zeros(2, 4, 3),
        "teacher": torch.zeros(2, 4, 3),
        "log_marginal": torch.zeros(2, 3),
        "student_temperature": 1.0,
        **SETTINGS,
    }
    with pytest.raises(ValueError, match=sentence):
        swapped_cross_entropy(**(arguments | change))


MEASURE = """
import torch
from pathlib import Path
from mira.assignment.cross_entropy import swapped_cross_entropy
torch.set_num_threads(1)
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
def gradient(rows, width):
    student, teacher = torch.rand(3, rows, width, requires_grad=True), torch.rand(2, rows, width)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    marginal = torch.zeros(2, width)
    loss = swapped_cross_entropy(student, teacher, marginal, beta=0.7, temperature=0.2, student_temperature=0.1).loss
    after = peak()
    loss.backward()
    matrix = student[0].nbytes
    return (after - before) / matrix, (peak() - before) / matrix
gradient(64, 32)
print(*gradient(2000, 4000))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_nothing_but_the_gradient_is_as_large_as_the_logits() -> None:
    """Three views: the gradient is three matrices, the labels would be two, predictions three."""
    command = [sys.executable, "-c", MEASURE]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    forward, both = (min(float(run[column]) for run in runs) for column in (0, 1))
    assert forward < 0.5, "peak memory of the loss, in matrices"
    assert 2.9 < both < 3.5, "peak memory with the gradient, in matrices"
