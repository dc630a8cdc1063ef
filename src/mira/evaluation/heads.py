"""Linear classifiers trained side by side: one for each learning rate and weight decay, in one product a step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_ROWS = 8192  # pictures scored at a time


def cosine(epoch: int, epochs: int) -> float:
    """The share of the learning rate in an epoch: half a cosine from 1 towards 0, one value an epoch."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


@dataclass
class Heads:
    """H linear classifiers and their momenta.

    Attributes:
        weight, bias: of the logits.
        weight_momentum, bias_momentum: of SGD.
    """

    weight: Float[Tensor, "H K D"]
    bias: Float[Tensor, "H K"]
    weight_momentum: Float[Tensor, "H K D"]
    bias_momentum: Float[Tensor, "H K"]

    @classmethod
    def start(cls, heads: int, classes: int, width: int, *, seed: int, device: torch.device) -> "Heads":
        """All from the same weights, drawn from N(0, 0.01) (standard deviation 0.01), and bias 0."""
        drawn = 0.01 * torch.randn(classes, width, generator=torch.Generator().manual_seed(seed))
        weight = drawn.to(device).repeat(heads, 1, 1)
        bias = weight.new_zeros(heads, classes)
        return cls(weight, bias, torch.zeros_like(weight), torch.zeros_like(bias))

    def logits(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "H K N"]:
        """The scores that each classifier gives every class; classes in rows, which is fast where they are few."""
        heads, classes, width = self.weight.shape
        product = self.weight.view(heads * classes, width) @ features.T
        return product.view(heads, classes, len(features)) + self.bias[:, :, None]

    def step(
        self,
        features: Float[Tensor, "B D"],
        labels: Int64[Tensor, " B"],
        *,
        learning_rates: Float[Tensor, " H"],
        weight_decays: Float[Tensor, " H"],
        momentum: float,
    ) -> None:
        """One step of SGD on the mean cross-entropy, for every classifier with its own values.

        As `torch.optim.SGD` does it: decay is added to the gradient, and the first momentum is the first gradient.
        """
        residual = self.logits(features).softmax(dim=1)
        residual[:, labels, torch.arange(len(labels), device=labels.device)] -= 1
        residual /= len(labels)
        gradient = (residual.flatten(0, 1) @ features).view_as(self.weight)
        rates, decays = learning_rates[:, None], weight_decays[:, None]
        for value, moving, slope, rate, decay in (
            (self.weight, self.weight_momentum, gradient, rates[..., None], decays[..., None]),
            (self.bias, self.bias_momentum, residual.sum(dim=2), rates, decays),
        ):
            moving.mul_(momentum).add_(slope).add_(decay * value)
            value.sub_(rate * moving)

    def accuracies(self, features: Float[Tensor, "N D"], labels: Int64[Tensor, " N"]) -> list[float | None]:
        """The top-1 accuracy of every classifier in percent; None for one that diverged."""
        device = self.bias.device
        hits = torch.zeros(len(self.bias), dtype=torch.int64, device=device)
        for rows, own in zip(torch.split(features, _ROWS), torch.split(labels, _ROWS), strict=True):
            hits += (self.logits(rows.to(device)).argmax(dim=1) == own.to(device)).sum(dim=1)
        sound = self.weight.flatten(1).isfinite().all(dim=1) & self.bias.isfinite().all(dim=1)
        values = zip(hits.tolist(), sound.tolist(), strict=True)
        return [100 * count / len(labels) if finite else None for count, finite in values]


def best(accuracies: Sequence[float | None]) -> int:
    """The classifier of highest accuracy; of equal ones the first.

    Raises:
        ValueError: all have diverged.
    """
    candidates = {number: value for number, value in enumerate(accuracies) if value is not None}
    if not candidates:
        raise ValueError("every classifier diverged (its weights are not finite): choose lower learning rates.")
    return max(candidates, key=candidates.__getitem__)
