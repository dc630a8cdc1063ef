"""The solver without its labels, and the loss that needs no more."""

import torch
from assignment_problems import problems
from hypothesis import given, settings

from mira.assignment import assign, solve_marginal, swapped_cross_entropy
from mira.training.loss import swapped_prediction_loss


@settings(max_examples=20, deadline=None)
@given(problems(views=True))
def test_finds_the_marginal_of_assign(problem):
    solved, expected = solve_marginal(**problem), assign(**problem)
    assert torch.equal(solved.log_marginal, expected.log_marginal)
    assert torch.equal(solved.gap, expected.gap)
    assert solved.iterations == expected.iterations


def test_serves_the_loss_without_labels():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 12, 7, generator=generator, dtype=torch.float64)
    student = torch.randn(4, 12, 7, generator=generator, dtype=torch.float64)
    arguments = {"beta": 0.7, "temperature": 0.5}
    labels = assign(teacher, **arguments).probs
    found = swapped_cross_entropy(
        student, teacher, solve_marginal(teacher, **arguments).log_marginal, **arguments, student_temperature=0.1
    )
    assert torch.allclose(found.loss, swapped_prediction_loss(labels, student / 0.1), atol=1e-12)
