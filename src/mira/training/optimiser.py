"""The recipe's optimiser over a model's trainable parameters."""

import torch
from torch import nn
from torch.optim import Optimizer

from mira.training.lars import LARS
from mira.training.recipe import OptimiserSettings


def create_optimiser(model: nn.Module, settings: OptimiserSettings) -> Optimizer:
    """Build the optimiser; the learning rate is set before every step by `set_learning_rate`.

    Tensors with one dimension or none (biases, BatchNorm) get no weight decay.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = settings.learning_rate
    match settings.name:
        case "lars":
            return LARS(groups, lr=rate, momentum=settings.momentum, eta=settings.eta)
        case "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=settings.betas)


def set_learning_rate(optimiser: Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate
