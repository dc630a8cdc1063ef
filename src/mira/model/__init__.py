"""Backbone, projection head, prototypes and teacher."""

from mira.model.backbone import BackboneSettings, create_backbone
from mira.model.head import HeadSettings, ProjectionHead, Prototypes, PrototypeSettings
from mira.model.network import Mira, ModelSettings, Network, update_teacher
from mira.model.preprocessing import Preprocessing, default_statistics, normalise

__all__ = [
    "BackboneSettings",
    "HeadSettings",
    "Mira",
    "ModelSettings",
    "Network",
    "Preprocessing",
    "ProjectionHead",
    "PrototypeSettings",
    "Prototypes",
    "create_backbone",
    "default_statistics",
    "normalise",
    "update_teacher",
]
