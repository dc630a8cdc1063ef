"""Checkpoints as published code writes them: its key names, with random weights."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mira._torchvision

from torchvision import models  # isort: skip

Tensors = dict[str, Tensor]


def random_resnet(seed: int) -> nn.Module:
    """torchvision's ResNet-18 without its classifier; BatchNorms as after training."""
    torch.manual_seed(seed)
    network = models.resnet18()
    network.fc = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(1000 + seed)
    return network.eval()


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def as_children(tensors: Tensors) -> Tensors:
    """The names of nn.Sequential(*list(resnet.children())[:-1])."""
    order = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return {
        f"{order.index(name.partition('.')[0])}.{name.partition('.')[2]}": tensor for name, tensor in tensors.items()
    }


def head(prefix: str, width: int = 512, hidden: int = 16, out: int = 8) -> Tensors:
    """A projection head: Linear-BatchNorm-ReLU-Linear."""
    layers = nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))
    nn.init.normal_(layers[1].running_mean)
    return prefixed(prefix, layers.state_dict())


def training_state() -> dict[str, Any]:
    """What stands beside the networks: its learning rate came out of a NumPy schedule."""
    return {
        "epoch": 100,
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.zeros(3)}},
            "param_groups": [{"lr": np.float64(0.3), "params": [0]}],
        },
    }


def mira(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    prototypes = {"head.weight_g": torch.ones(5, 1), "head.weight_v": torch.randn(5, 8)}
    networks = {
        **prefixed("model.", prefixed("encoder.", student) | head("projector.") | prototypes),
        **prefixed("ema_model.", prefixed("encoder.", teacher) | head("projector.") | prototypes),
    }
    extra = {"scaler": {"scale": 65536.0}, "scheduler": {"last_epoch": 99, "base_lrs": [0.3]}}
    return {"state_dict": prefixed("module.", networks), **training_state(), **extra}


def dino(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    def wrapper(network: Tensors) -> Tensors:
        last = {"head.last_layer.weight_g": torch.ones(6, 1), "head.last_layer.weight_v": torch.randn(6, 8)}
        return prefixed("backbone.", network) | head("head.mlp.") | last

    return {
        "student": prefixed("module.", wrapper(student)),
        "teacher": wrapper(teacher),  # only wrapped where it has BatchNorm
        **training_state(),
        "args": argparse.Namespace(
            arch="resnet18", lr=0.3, output_dir=Path("runs/dino"), global_crops_scale=(0.14, 1.0)
        ),
        "dino_loss": {"center": torch.zeros(1, 6)},
    }


def swav_published(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    return prefixed("module.", student | head("projection_head.") | {"prototypes.weight": torch.randn(7, 8)})


def swav_checkpoint(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    return {**training_state(), "state_dict": swav_published(teacher, student)}


def deepcluster(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    sets = {f"prototypes.prototypes{i}.weight": torch.randn(7, 8) for i in range(2)}
    return prefixed("module.", student | head("projection_head.") | sets)


def moco_v1(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    fc = {"fc.weight": torch.randn(8, 512), "fc.bias": torch.randn(8)}
    return _moco(teacher | fc, student | fc)


def moco_v2(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    fc = {f"fc.{i}.{kind}": torch.randn(8, 8) for i in (0, 2) for kind in ("weight", "bias")}
    return _moco(teacher | fc, student | fc)


def _moco(key: Tensors, query: Tensors) -> dict[str, Any]:
    queue = {"queue": torch.randn(8, 16), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    networks = prefixed("encoder_q.", query) | prefixed("encoder_k.", key) | queue
    return {**training_state(), "arch": "resnet18", "state_dict": prefixed("module.", networks)}


def moco_v3(teacher: Tensors, student: Tensors, slot: str = "fc.") -> dict[str, Any]:
    networks = {
        **prefixed("base_encoder.", student | head(slot)),
        **prefixed("momentum_encoder.", teacher | head(slot)),
        **head("predictor."),
    }
    return {**training_state(), "arch": "resnet18", "state_dict": prefixed("module.", networks), "scaler": {}}


def byol_yaox12(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    networks = {
        **prefixed("online_network.encoder.", as_children(student)),
        **prefixed("target_network.encoder.", as_children(teacher)),
        **prefixed("online_network.projetion.", {"l1.weight": torch.randn(8, 512), "bn1.weight": torch.ones(8)}),
        **prefixed("target_network.projetion.", {"l1.weight": torch.randn(8, 512), "bn1.weight": torch.ones(8)}),
        **prefixed("predictor.predictor.", {"l1.weight": torch.randn(8, 8)}),
    }
    extra = {
        "config": {"model": {"backbone": {"type": "resnet18"}}},
        "steps": 9,
        "amp": {"loss_scaler0": {"scale": 1.0}},
    }
    return {**training_state(), **extra, "model": prefixed("module.", networks)}


def byol_sthalles(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    def network(tensors: Tensors) -> Tensors:
        return prefixed("encoder.", as_children(tensors)) | head("projetion.net.")

    return {
        "online_network_state_dict": network(student),
        "target_network_state_dict": network(teacher),
        "optimizer_state_dict": training_state()["optimizer"],
    }


def barlow_twins(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    norm = {
        "bn.running_mean": torch.zeros(8),
        "bn.running_var": torch.ones(8),
        "bn.num_batches_tracked": torch.tensor(3),
    }
    networks = prefixed("backbone.", student) | head("projector.") | norm
    return {**training_state(), "model": prefixed("module.", networks)}


def vicreg(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    return {**training_state(), "model": prefixed("module.", prefixed("backbone.", student) | head("projector."))}


def solo_learn(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    networks = {
        **prefixed("backbone.", student),
        **prefixed("momentum_backbone.", teacher),
        **head("projector."),
        **head("momentum_projector."),
        **head("predictor."),
        "classifier.weight": torch.randn(10, 512),
        "queue": torch.randn(2, 8),
    }
    return {"epoch": 3, "pytorch-lightning_version": "2.0", "state_dict": networks, "callbacks": {}, "loops": {}}


def lightly(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    networks = {
        **prefixed("backbone.", as_children(student)),
        **prefixed("backbone_momentum.", as_children(teacher)),
        **head("projection_head.layers."),
        **head("projection_head_momentum.layers."),
        **head("prediction_head.layers."),
    }
    return {"epoch": 3, "state_dict": networks}


def plain(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    """The resnet50.pth of Barlow Twins and VICReg, and dino_resnet50_pretrain.pth."""
    return dict(student)


def torchvision_classifier(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    return student | {"fc.weight": torch.randn(10, 512), "fc.bias": torch.randn(10)}


def timm_training(teacher: Tensors, student: Tensors) -> dict[str, Any]:
    return {**training_state(), "arch": "resnet18", "state_dict": student, "state_dict_ema": teacher}
