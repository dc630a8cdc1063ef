import subprocess
import sys

import pytest
import torch

from mira.distributed import ALONE
from mira.model import Mira
from mira.training.prepare import prepare
from mira.training.reading import load_recipe

CODE = """
import torch
from mira.distributed import ALONE
from mira.model import Mira
from mira.training.prepare import prepare
from mira.training.reading import load_recipe
torch.set_num_threads(1)
recipe = load_recipe({}, [
    "model.backbone.name=resnet18", "model.backbone.stem=standard",
    "model.backbone.options={layers: [1, 1, 1, 1], channels: [4, 8, 16, 16]}", "model.head.hidden=8",
    "model.prototypes.count=4", "training.precision=float32", "training.device=cpu",
])
state = prepare(Mira(recipe.model, crop_size=224), recipe, torch.device("cpu"), ALONE, checkpoint=None)
images = torch.randn(2, 3, 224, 224).to(memory_format=torch.channels_last)
for _ in range(3):
    state.model.student.backbone(images).sum().backward()
"""


@pytest.mark.slow
def test_a_narrow_backbone_with_channels_last_does_not_crash() -> None:
    assert subprocess.run([sys.executable, "-c", CODE], check=False).returncode == 0


def test_only_narrow_strided_convolutions_lose_the_layout() -> None:
    settings = ["model.backbone.name=resnet18", "model.backbone.options={channels: [8, 16, 32, 32]}"]
    recipe = load_recipe({}, [*settings, "model.head.hidden=8", "model.prototypes.count=4"])
    state = prepare(Mira(recipe.model, crop_size=64), recipe, torch.device("cpu"), ALONE, checkpoint=None)
    hooked = [name for name, module in state.model.student.backbone.named_modules() if module._forward_pre_hooks]
    assert hooked == ["layer2.0.downsample.0"]
