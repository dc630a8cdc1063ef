"""Run by test_kernels_interpreted.py: cross-entropy and its gradient in Triton's interpreter."""

import pytest
import torch
from kernel_oracles import HALVES, cross_entropy_by_definition

from mira.assignment import cross_entropy
from mira.assignment.cross_entropy import swapped_cross_entropy
from mira.assignment.kernels import cross_entropy_gradient, cross_entropy_rows

SCALES = {"scale": 4.0, "student_scale": 10.0}


def problem(views: int, targets: int, rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(views)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return normal(views, rows, width), normal(targets, rows, width), normal(targets, width)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize("tile", [32, 4096])
@pytest.mark.parametrize(
    ("views", "targets", "rows", "width", "swap"),
    [(2, 2, 3, 37, True), (3, 2, 2, 50, True), (8, 2, 2, 64, True), (1, 1, 3, 29, False), (2, 3, 2, 17, False)],
)
def check_rows_and_gradient(views, targets, rows, width, swap, dtype, tile):
    student, teacher, log_weights = problem(views, targets, rows, width)
    student, teacher = student.to(dtype), teacher.to(dtype)
    factors = torch.rand(rows, dtype=torch.float64)
    losses, entropies, statistics = cross_entropy_rows(student, teacher, log_weights, swap=swap, tile=tile, **SCALES)
    wanted_student = student.double().requires_grad_()
    wanted, wanted_entropies = cross_entropy_by_definition(wanted_student, teacher, log_weights, 4.0, 10.0, swap)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(losses.double(), wanted, rtol=rtol, atol=rtol)
    torch.testing.assert_close(entropies.double(), wanted_entropies, rtol=rtol, atol=rtol)
    gradient = cross_entropy_gradient(
        student, teacher, log_weights, statistics, factors, swap=swap, tile=tile, **SCALES
    )
    assert gradient.dtype == dtype
    (wanted_gradient,) = torch.autograd.grad((wanted * factors).sum(), wanted_student)
    atol = {torch.float64: 1e-11, torch.float32: 2e-5}.get(dtype, 4 * torch.finfo(dtype).eps)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=4 * torch.finfo(dtype).eps, atol=atol)


def check_strided_views_and_rows():
    student, teacher, log_weights = problem(4, 4, 6, 40)
    student, teacher, log_weights = student.transpose(0, 1)[:3, :, 1:33], teacher[::2, :4, ::1][:, :, 1:33], log_weights
    log_weights = log_weights[:2, :32]
    losses, _, statistics = cross_entropy_rows(student, teacher, log_weights, swap=True, **SCALES)
    wanted, _ = cross_entropy_by_definition(student, teacher, log_weights, 4.0, 10.0, True)
    torch.testing.assert_close(losses, wanted)
    ones = torch.ones(4, dtype=torch.float64)
    gradient = cross_entropy_gradient(student, teacher, log_weights, statistics, ones, swap=True, **SCALES)
    whole = cross_entropy_gradient(
        student.contiguous(), teacher.contiguous(), log_weights, statistics, ones, swap=True, **SCALES
    )
    assert gradient.is_contiguous()
    assert torch.equal(gradient, whole)


@pytest.mark.parametrize("size", [1e4, 1e38])
def check_extreme_logits_cost_what_they_must(size):
    """Labels of zero cost nothing even where a prediction is beyond what a float holds."""
    student, teacher, log_weights = problem(3, 2, 4, 20)
    student, teacher = (torch.sign(logits).float() * size for logits in (student, teacher))
    agreeing = torch.stack((teacher[1], teacher[0], teacher[0]))
    teacher[1] = teacher[0]
    log_weights.zero_()
    for predictions in (student, agreeing):
        losses, entropies, statistics = cross_entropy_rows(predictions, teacher, log_weights, swap=True, **SCALES)
        gradient = cross_entropy_gradient(
            predictions, teacher, log_weights, statistics, torch.ones(4, dtype=torch.float64), swap=True, **SCALES
        )
        for found in (losses, entropies, gradient):
            assert not found.isnan().any()
        assert gradient.isfinite().all()
    same, _, _ = cross_entropy_rows(teacher[:1].expand(3, -1, -1), teacher, log_weights, swap=True, **SCALES)
    torch.testing.assert_close(same, 4 * entropies[0])  # pairs of the same distribution


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def check_the_public_function_takes_the_same_way(dtype, monkeypatch):
    student, teacher, log_marginal = problem(4, 2, 5, 33)
    student, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
    weights = torch.rand(5, generator=torch.Generator().manual_seed(0))
    arguments = {
        "beta": 0.7,
        "temperature": 0.3,
        "student_temperature": 0.1,
        "row_weights": weights,
        "log_prior": log_marginal[0] / 2,
    }

    def solve() -> tuple[torch.Tensor, ...]:
        found = swapped_cross_entropy(student, teacher, log_marginal, **arguments)
        return found.loss, found.label_entropy, found.marginal, torch.autograd.grad(3 * found.loss, student)[0]

    by_blocks = solve()
    monkeypatch.setattr(cross_entropy, "fusible", lambda _: True)
    for fused, wanted in zip(solve(), by_blocks, strict=True):
        assert fused.dtype == wanted.dtype
        torch.testing.assert_close(fused, wanted)
