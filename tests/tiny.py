"""Small pictures and a recipe of seconds, for tests of whole runs."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, count: int, *, classes: int = 2, side: int = 40, seed: int = 0) -> Path:
    """Small colour pictures in class folders: each class has a colour and a stripe direction of its own."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        label = i % classes
        picture = rng.integers(0, 60, (side, side, 3))
        stripes = (np.arange(side) // (3 + label) % 2 * 120)[:, None]
        picture[..., label % 3] += stripes if label % 2 else stripes.T
        path = folder / f"class{label}" / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.astype(np.uint8)).save(path)
    return folder


TINY = {
    "name": "tiny",
    "crops": {"global_crops": {"size": 32}, "local_crops": {"size": 16, "count": 1}},
    "model": {
        "backbone": {"name": "resnet18", "options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}},
        "head": {"hidden": 16, "layers": 1, "width": 8},
        "prototypes": {"count": 6, "freeze_epochs": 0},
    },
    "optimiser": {"name": "adamw", "learning_rate": 1e-2, "warmup_epochs": 0.5},
    "training": {"epochs": 3, "batch_size": 16, "workers": 0, "device": "cpu", "precision": "float32"},
    "monitor": {"log_every": 1, "on_collapse": "continue", "knn_every": 0},
}
"""A recipe of seconds: 4 steps an epoch on the 64 pictures."""
