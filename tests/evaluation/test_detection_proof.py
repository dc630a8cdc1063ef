"""A detector learns from a pretrained backbone, on coloured shapes drawn on photographs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_objects import SHAPES, draw_scene, write_coco
from torch import nn

import mira._torchvision  # noqa: F401  isort: skip
import timm  # isort: skip

from mira.evaluation.detection import DetectionSet, open_detection
from mira.evaluation.detection.protocol import evaluate_detection
from mira.evaluation.detection.settings import DetectionSettings
from mira.evaluation.subject import Compute, Subject
from mira.model.preprocessing import Preprocessing, normalise

PREPROCESSING = Preprocessing(64, 64, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PROOF = DetectionSettings(
    iterations=160,
    batch_size=4,
    warmup=20,
    train_sizes=(64,),
    test_size=64,
    longest=128,
    precise_batches=10,
    anchors=(16, 24, 32, 48, 64),
    pyramid_width=32,
    head_width=64,
    boxes_per_picture=32,
)
"""How the numbers of docs/detection.md were measured."""


def pretrained_backbone() -> nn.Module:
    """It has learned to say which shapes a picture shows, and never where: nothing is downloaded in a test."""
    torch.manual_seed(0)
    backbone = timm.create_model("resnet18", num_classes=0, layers=[1, 1, 1, 1], channels=[16, 32, 64, 64])
    rng = np.random.default_rng(5)
    scenes = [draw_scene(rng, 64, "train") for _ in range(600)]
    pictures = torch.from_numpy(np.stack([np.asarray(picture) for picture, _ in scenes])).permute(0, 3, 1, 2)
    inputs = normalise(pictures, PREPROCESSING.mean, PREPROCESSING.std)
    targets = torch.zeros(len(scenes), len(SHAPES))
    for row, (_, objects) in enumerate(scenes):
        targets[row, [label for label, _ in objects]] = 1
    head = nn.Linear(backbone.num_features, len(SHAPES))
    optimiser = torch.optim.AdamW([*backbone.parameters(), *head.parameters()])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=16 * 12)
    backbone.train()
    for _ in range(16):
        for rows in torch.randperm(len(inputs)).split(50):
            loss = nn.functional.binary_cross_entropy_with_logits(head(backbone(inputs[rows])), targets[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return backbone


def drawn_pictures(folder: Path) -> tuple[DetectionSet, DetectionSet]:
    """Shapes on two parts of the photographs that do not overlap."""
    write_coco(folder, "train", 120, side=64, seed=1)
    write_coco(folder, "val", 30, side=64, seed=2)
    return open_detection(folder, channels=3)


@pytest.mark.slow
def test_average_precision_rises_from_a_pretrained_backbone(tmp_path: Path) -> None:
    """Over seeds 0 to 4 it was between 11 and 25 (AP50: 34 to 49); without a step of training, 0.4 at most (1.8)."""
    train, test = drawn_pictures(tmp_path)
    subject = Subject("pretrained", pretrained_backbone(), PREPROCESSING)

    def box_ap(settings: DetectionSettings) -> dict[str, float]:
        scores = evaluate_detection(subject, train, test, settings, seed=0, compute=Compute())
        return {score.metric: score.value for score in scores}

    before, after = box_ap(PROOF.model_copy(update={"iterations": 0})), box_ap(PROOF)
    assert before["box AP"] < 1
    assert before["box AP50"] < 4
    assert after["box AP"] > 8
    assert after["box AP50"] > 25
