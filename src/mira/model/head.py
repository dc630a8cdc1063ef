"""The projection head and the prototypes: what stands between features and pseudo-labels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from mira.settings import Settings


class HeadSettings(Settings):
    """Widths of the projection head.

    Attributes:
        hidden: width of each hidden layer.
        layers: number of hidden layers.
        width: width of the projection, in which prototypes live.
    """

    hidden: int = Field(2048, ge=1, le=10**6)
    layers: int = Field(2, ge=0, le=100)
    width: int = Field(256, ge=1, le=10**6)


class PrototypeSettings(Settings):
    """Number of prototypes, and how long they stand still.

    Attributes:
        count: K, the number of prototypes.
        freeze_epochs: epochs at the start in which they get no gradient.
    """

    count: int = Field(3000, ge=2, le=10**8)
    freeze_epochs: int = Field(1, ge=0, le=10**9)


class ProjectionHead(nn.Sequential):
    """Linear-BatchNorm-ReLU for every hidden layer, then Linear with bias (Lee et al. 2022, section 4.1).

    Linear layers in front of a BatchNorm have no bias: it would be subtracted again.
    """

    def __init__(self, features: int, settings: HeadSettings) -> None:
        layers: list[nn.Module] = []
        width = features
        for _ in range(settings.layers):
            layers += [
                nn.Linear(width, settings.hidden, bias=False),
                nn.BatchNorm1d(settings.hidden),
                nn.ReLU(inplace=True),
            ]
            width = settings.hidden
        super().__init__(*layers, nn.Linear(width, settings.width))


class Prototypes(nn.Module):
    """K directions in the space of projections. Their length is fixed at 1; only the direction is learned."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width) / width**0.5)

    def forward(self, projections: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch K"]:
        """Cosine similarity of every projection with every prototype.

        Computed in float32 at least, outside autocast: the logits are divided by small temperatures, and half
        precision would cost up to 6 % of a label.
        """
        if projections.element_size() < 4:
            projections = projections.float()
        return F.linear(F.normalize(projections, dim=-1), F.normalize(self.weight, dim=-1))


class PrototypeLogits(nn.Module):
    """From features to logits over prototypes: cosine similarities, less a centre, over a temperature.

    Its softmax is the distribution over prototypes that the method's teacher gives.

    Args:
        projector: from features to projections; used as it is, in whichever mode it is in.
        prototypes: of any length: only their directions count.
        temperature: of the softmax.
        centre: that the teacher takes from its similarities, where it has one (`assignment: centring`).
    """

    def __init__(
        self,
        projector: nn.Module,
        prototypes: Float[Tensor, "K P"],
        *,
        temperature: float,
        centre: Float[Tensor, " K"] | None = None,
    ) -> None:
        super().__init__()
        self.projector = projector
        self.register_buffer("directions", F.normalize(prototypes, dim=-1))
        self.register_buffer("centre", torch.zeros(len(prototypes)) if centre is None else centre)
        self.temperature = temperature

    @torch.inference_mode()
    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """The logits of each picture."""
        projections = F.normalize(self.projector(features), dim=-1)
        similarities = F.linear(projections, self.get_buffer("directions"))
        return (similarities - self.get_buffer("centre")) / self.temperature
