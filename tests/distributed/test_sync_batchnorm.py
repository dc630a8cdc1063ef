"""BatchNorm over processes equals BatchNorm on the joined batch: values, gradients, running statistics."""

import copy

import mira._torchvision  # noqa: F401  isort: skip
import pytest
import timm
import torch
from processes import on_ranks, rows_of
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from mira.distributed import Ranks
from mira.model.sync_batchnorm import SyncBatchNorm, synchronise_batch_norm


def layers(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 4, 3),
        BatchNormAct2d(4, momentum=0.3),
        nn.Flatten(),
        nn.Linear(64, 6, bias=False),
        nn.BatchNorm1d(6, momentum=None),
        nn.BatchNorm1d(6, affine=False),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias)
    return model.to(dtype)


def forward_and_back(ranks: Ranks, model: nn.Module, x: Tensor, target: Tensor, sizes: tuple[int, ...]):
    """Two steps' worth of forward passes, and the gradients of a loss that is a sum over rows."""
    model = copy.deepcopy(model)
    names = list(model.state_dict())
    model = synchronise_batch_norm(model, ranks.sum)
    assert list(model.state_dict()) == names
    assert sum(isinstance(module, SyncBatchNorm) for module in model.modules()) == 4
    x, target = (rows_of(ranks, tensor, sizes).clone() for tensor in (x, target))
    x.requires_grad_()
    with torch.no_grad():
        model(x.detach() * 2 + 1)  # as the teacher does
    y = model(x)
    (y * target).sum().backward()
    ranks.sum_gradients(model.parameters())
    gradients = {name: p.grad for name, p in model.named_parameters()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return y.detach(), x.grad, gradients, state, model.eval()(x.detach()).detach()


@pytest.mark.parametrize("sizes", [(12,), (6, 6), (9, 3), (5, 4, 1, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_equals_batchnorm_on_the_joined_batch(sizes: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    model = layers(dtype)
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(12, 3, 8, 8, generator=generator, dtype=torch.float64) + 30.0).to(dtype)  # far from zero
    x = x.contiguous(memory_format=torch.channels_last)
    target = torch.randn(12, 6, generator=generator, dtype=torch.float64).to(dtype)
    if len(sizes) == 1:
        parts = [forward_and_back(Ranks(), model, x, target, sizes)]
    else:
        parts = on_ranks(len(sizes), forward_and_back, model, x, target, sizes)

    joined = x.clone().requires_grad_()
    with torch.no_grad():
        model(x * 2 + 1)
    y = model(joined)
    (y * target).sum().backward()

    def close(ours: Tensor, theirs: Tensor) -> None:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(theirs.abs().max().item(), 1.0))

    close(torch.cat([part[0] for part in parts]), y.detach())
    close(torch.cat([part[1] for part in parts]), joined.grad)
    evaluated = model.eval()(x)
    close(torch.cat([part[4] for part in parts]), evaluated.detach())
    for part in parts:
        for name, parameter in model.named_parameters():
            close(part[2][name], parameter.grad)
        for name, value in model.state_dict().items():
            close(part[3][name].to(dtype), value.to(dtype))


def test_the_derivative_is_right_to_second_order_of_the_step() -> None:
    norm = SyncBatchNorm(nn.BatchNorm1d(3).double(), lambda tensor: tensor)
    nn.init.normal_(norm.weight)
    x = torch.randn(7, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalised_with_single_precision_statistics(dtype: torch.dtype) -> None:
    x = (torch.randn(64, 3, 4, 4) * 2 + 5).to(dtype)
    plain, ours = nn.BatchNorm2d(3), SyncBatchNorm(nn.BatchNorm2d(3), lambda tensor: tensor)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = plain(a), ours(b)
    assert z.dtype == dtype
    torch.testing.assert_close(z, y, rtol=0, atol=4e-2)
    (y.float() ** 3).sum().backward()
    (z.float() ** 3).sum().backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=0.05 * a.grad.abs().max().item())
    torch.testing.assert_close(ours.running_var, plain.running_var, rtol=1e-3, atol=0)


def one_collective_each_way(ranks: Ranks) -> tuple[int, int]:
    calls = 0

    def reduce(tensor: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return ranks.sum(tensor)

    model = synchronise_batch_norm(timm.create_model("resnet18", num_classes=0), reduce)
    y = model(torch.randn(2, 3, 32, 32))
    forward = calls
    y.sum().backward()
    return forward, calls - forward


def test_one_collective_forward_and_one_backward_per_layer() -> None:
    assert on_ranks(2, one_collective_each_way) == [(20, 20)] * 2
