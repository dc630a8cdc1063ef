import pytest
import torch
from torch import nn

from mira.training.lars import LARS
from mira.training.optimiser import create_optimiser
from mira.training.recipe import OptimiserSettings


def by_definition(params, grads, buffers, *, lr, momentum, weight_decay, eta):
    """One tensor after the other, as the formula stands in the documentation."""
    for name, p in params.items():
        d = grads[name]
        if p.ndim > 1:
            d = d + weight_decay * p
            if p.norm() > 0 and d.norm() > 0:
                d = d * (eta * p.norm() / d.norm())
        buffers[name] = momentum * buffers[name] + d
        params[name] = p - lr * buffers[name]


def test_equals_the_formula_over_several_steps() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4)).double()
    nn.init.zeros_(module[3].weight)  # a norm of 0 must not make the ratio 0 for ever
    settings = {"momentum": 0.9, "weight_decay": 0.01, "eta": 0.02}
    optimiser = create_optimiser(module, OptimiserSettings(name="lars", **settings))
    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    buffers = {name: torch.zeros_like(p) for name, p in params.items()}
    for step in range(4):
        grads = {name: torch.randn_like(p) for name, p in params.items()}
        for name, p in module.named_parameters():
            p.grad = grads[name].clone()
        rate = 0.3 / (step + 1)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        by_definition(params, grads, buffers, lr=rate, **settings)
        for name, p in module.named_parameters():
            torch.testing.assert_close(p.detach(), params[name], rtol=1e-12, atol=1e-14)


def test_the_step_length_of_a_matrix_does_not_depend_on_the_scale_of_its_gradient() -> None:
    lengths = []
    for scale in (1.0, 1e6):
        p = nn.Parameter(torch.ones(3, 3, dtype=torch.float64))
        p.grad = scale * torch.eye(3, dtype=torch.float64)
        LARS([p], lr=1.0, momentum=0.0, eta=0.1).step()
        lengths.append((p.detach() - 1).norm().item())
    assert lengths[0] == pytest.approx(lengths[1]) == pytest.approx(0.1 * 3.0)


def test_a_parameter_without_gradient_stays_and_keeps_no_buffer() -> None:
    still, moving = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    moving.grad = torch.ones(2, 2)
    optimiser = LARS([still, moving], lr=1.0, weight_decay=0.1)
    optimiser.step()
    assert torch.equal(still.detach(), torch.ones(2, 2))
    assert still not in optimiser.state
    assert not torch.equal(moving.detach(), torch.ones(2, 2))


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_biases_and_norms_have_no_weight_decay(name: str) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimiser = create_optimiser(module, OptimiserSettings(name=name, weight_decay=0.5))
    for group in optimiser.param_groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.5 if p.ndim > 1 else 0.0)
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 4
