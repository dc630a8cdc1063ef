"""Which maps of a backbone a detector stands on."""

import pytest
from torch import nn

import mira._torchvision  # noqa: F401  isort: skip
import timm  # isort: skip

from mira.evaluation.detection.model import find_stages
from mira.model import BackboneSettings, create_backbone


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet50", [256, 512, 1024, 2048]),
        ("convnext_tiny", [96, 192, 384, 768]),
        ("regnety_002", [24, 56, 152, 368]),
        ("efficientnet_b0", [24, 40, 112, 320]),
    ],
)
def test_stages_of_several_families(name: str, channels: list[int]) -> None:
    assert list(find_stages(timm.create_model(name, num_classes=0), 3).values()) == channels


def test_the_small_stem_has_stages_too() -> None:
    backbone = create_backbone(BackboneSettings(name="resnet18", stem="small"), crop_size=32)
    assert list(find_stages(backbone, 3).values()) == [64, 128, 256, 512]


@pytest.mark.parametrize(
    ("backbone", "sentence"),
    [
        (
            lambda: timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True),
            "no 4 stages of fall",
        ),
        (
            lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=0),
            "does not take pictures of any size",
        ),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3)), "Sequential gives no maps of its stages"),
    ],
)
def test_architectures_without_stages_are_refused(backbone, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_stages(backbone(), 3)
