"""Student, teacher and prototypes, and the way of crops through them."""

import copy
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mira.model.backbone import BackboneSettings, create_backbone
from mira.model.head import HeadSettings, ProjectionHead, Prototypes, PrototypeSettings
from mira.model.memory import refuse_beyond_memory
from mira.settings import Settings

CropBatching = Literal["by_size", "single"]


class ModelSettings(Settings):
    """Everything that has weights."""

    backbone: BackboneSettings = BackboneSettings()
    head: HeadSettings = HeadSettings()
    prototypes: PrototypeSettings = PrototypeSettings()


class Network(nn.Module):
    """A backbone and its projection head."""

    def __init__(self, backbone: nn.Module, projector: ProjectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(
        self, views: Sequence[Float[Tensor, "N C _ _"]], batching: CropBatching = "by_size"
    ) -> tuple[list[Float[Tensor, "N D"]], Float[Tensor, "N F"]]:
        """Project every view.

        Args:
            views: one batch of crops per view; sizes may differ between views.
            batching: "by_size" sends consecutive views of one size through the network together, which is
                faster; "single" sends each alone, so that every view has BatchNorm statistics of its own as
                in the published training.

        Returns:
            The projection of every view, and the backbone features of the first (for diagnosis).
        """
        projections: list[Tensor] = []
        first_features: Tensor | None = None
        for group in _group(views, batching):
            features = self.backbone(torch.cat(group) if len(group) > 1 else group[0])
            if first_features is None:
                first_features = features[: len(group[0])]
            projections += self.projector(features).split([len(view) for view in group])
        assert first_features is not None
        return projections, first_features


def _group(views: Sequence[Tensor], batching: CropBatching) -> list[list[Tensor]]:
    groups: list[list[Tensor]] = []
    for view in views:
        if batching == "by_size" and groups and groups[-1][0].shape[1:] == view.shape[1:]:
            groups[-1].append(view)
        else:
            groups.append([view])
    return groups


class Mira(nn.Module):
    """The student, its teacher, and the prototypes both use.

    The teacher starts as a copy of the student. It gets no gradient; `update_teacher` moves it. Both stay in
    train mode while training: BatchNorm of the teacher uses the statistics of its own batch.
    """

    def __init__(self, settings: ModelSettings, *, crop_size: int, other_sizes: Iterable[int] = ()) -> None:
        super().__init__()
        backbone = create_backbone(settings.backbone, crop_size=crop_size, other_sizes=other_sizes)
        features = int(backbone.num_features)  # type: ignore[arg-type]
        with torch.device("meta"):
            parts = ProjectionHead(features, settings.head), Prototypes(settings.prototypes.count, settings.head.width)
        refuse_beyond_memory(nn.ModuleList(parts), "model.head and model.prototypes: what stands behind the backbone")
        self.student = Network(backbone, ProjectionHead(features, settings.head))
        self.prototypes = Prototypes(settings.prototypes.count, settings.head.width)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)


@torch.no_grad()
def update_teacher(model: Mira, momentum: float) -> None:
    """Exponential moving average of the parameters: teacher <- m teacher + (1 - m) student.

    BatchNorm's running statistics are not averaged: the teacher gathers its own.
    """
    torch._foreach_lerp_(list(model.teacher.parameters()), list(model.student.parameters()), weight=1.0 - momentum)
