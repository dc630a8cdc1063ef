"""Cross-entropy against labels that are not written, on a CUDA device."""

import pytest
import torch
from kernel_oracles import HALVES

from mira.assignment import assign
from mira.assignment.cross_entropy import CrossEntropy, swapped_cross_entropy
from mira.training.loss import swapped_prediction_loss

pytestmark = pytest.mark.gpu

SETTINGS = {"beta": 0.7, "temperature": 0.2}


def problem(views: int, rows: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator(device="cuda").manual_seed(0)
    cosines = torch.randn(views + 2, rows, width, generator=generator, device="cuda").mul_(0.3).to(dtype)
    return cosines[:views].clone().requires_grad_(), cosines[views:], torch.zeros(2, width, device="cuda")


def loss(student: torch.Tensor, teacher: torch.Tensor, log_marginal: torch.Tensor) -> CrossEntropy:
    return swapped_cross_entropy(student, teacher, log_marginal, student_temperature=0.1, **SETTINGS)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("views", "rows", "width"), [(2, 3, 7), (8, 200, 3000), (5, 64, 1001), (2, 16, 65_536), (3, 5, 131_072)]
)
def test_equals_the_loss_of_written_labels(views, rows, width, dtype):
    student, teacher, _ = problem(views, rows, width, dtype)
    solved = assign(teacher.double(), **SETTINGS)
    found = loss(student, teacher, solved.log_marginal)
    exact = student.detach().double().requires_grad_()
    wanted = swapped_prediction_loss(solved.probs, exact / 0.1)
    rtol = 1e-11 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.loss.double(), wanted, rtol=rtol, atol=rtol)
    torch.testing.assert_close(found.marginal.double(), solved.probs.mean(1), rtol=10 * rtol, atol=1e-8)
    scale = 2.0**10
    (gradient,) = torch.autograd.grad(scale * found.loss, student)
    (wanted_gradient,) = torch.autograd.grad(scale * wanted, exact)
    largest = float(wanted_gradient.abs().max())
    torch.testing.assert_close(
        gradient.double(), wanted_gradient, rtol=4 * torch.finfo(dtype).eps, atol=largest * max(rtol, 1e-9)
    )
    assert torch.equal(
        gradient, torch.autograd.grad(scale * loss(student, teacher, solved.log_marginal).loss, student)[0]
    )


def test_the_host_never_waits():
    arguments = problem(4, 128, 3000, torch.bfloat16)
    torch.autograd.grad(loss(*arguments).loss, arguments[0])
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(loss(*arguments).loss, arguments[0])
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_torch_compile_makes_one_graph_of_it():
    student, teacher, marginal = problem(4, 64, 300, torch.float32)
    compiled = torch.compile(lambda x: loss(x, teacher, marginal).loss, fullgraph=True)
    torch.testing.assert_close(compiled(student), loss(student, teacher, marginal).loss)
    gradients = (
        torch.autograd.grad(found, student)[0] for found in (compiled(student), loss(student, teacher, marginal).loss)
    )
    torch.testing.assert_close(*gradients)


def test_nothing_but_the_gradient_is_as_large_as_the_logits():
    student, teacher, marginal = problem(4, 2048, 3000, torch.bfloat16)
    torch.autograd.grad(loss(student, teacher, marginal).loss, student)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    found = loss(student, teacher, marginal)
    forward = torch.cuda.max_memory_allocated() - before
    torch.autograd.grad(found.loss, student)
    both = torch.cuda.max_memory_allocated() - before
    assert forward < 1.5 * student[0].nbytes  # sums of each program, K numbers in float64
    assert both < 1.3 * student.nbytes
