"""A recipe for pictures nobody has tuned one for: chosen from their number, their size and the device.

A starting point that runs in reasonable time, not a promise of accuracy; every choice can be overridden.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mira.data import PictureSource, UnreadablePicture
from mira.data.subset import to_choose_from
from mira.training.reading import look_up
from mira.training.recipe import Recipe
from mira.wording import counted

SAMPLE = 48
"""Pictures looked at."""
CPU_VISITS = 400_000
"""Pictures shown in all on a CPU: half an hour to an hour at 64 pixels on two cores."""
GPU_VISITS = 4_000_000


def suggest_recipe(
    source: PictureSource, device: torch.device, *, epochs: int | None = None, backbone: str | None = None
) -> tuple[dict[str, Any], str]:
    """Choose sizes, epochs, prototypes and batch.

    Args:
        source: the pictures.
        device: what will be trained on.
        epochs: where the person has decided them.
        backbone: likewise; its own widths are kept then.

    Returns:
        Values for `load_recipe`, and in words from which pictures they were chosen.

    Raises:
        ValueError: fewer than 32 pictures, or none of those looked at can be read.
    """
    count = len(source)
    if count < 32:
        raise ValueError(f"'{source.name}' has {counted(count, 'picture')}; learning from fewer than 32 makes no sense")
    sides, grey = _look_at(source)
    side, channels = int(np.median(sides)), 1 if grey else 3
    gpu = device.type != "cpu"

    crop = max(min(side // 8 * 8, 224 if gpu else 64), 24)
    local = crop * 96 // 224 // 8 * 8 if crop >= 64 else 0
    batch = min(max(_power_of_two(count // 16), 16), 256 if gpu else 128)
    epochs = epochs or min(max(round((GPU_VISITS if gpu else CPU_VISITS) / count), 10), 400)
    steps = count // batch * epochs
    prototypes = min(max(_power_of_two(count // 50), 32), 3000)
    large = gpu and count >= 50_000
    name = backbone or ("resnet50" if large else "resnet18")
    values: dict[str, Any] = {
        "name": "suggested",
        "description": f"Chosen for {count} pictures with a short side of about {side} pixels.",
        "crops": {
            "global_crops": {"size": crop, "blur": [0.5, 0.1]},
            "local_crops": {"count": 2 if local else 0, "size": max(local, 8)},
            # Blur is a matter of the picture's size: 2 pixels at 224 are half a pixel at 56.
            "blur_sigma": [0.1, max(2.0 * crop / 224, 0.5)],
        },
        "model": {
            "backbone": {
                "name": name,
                "channels": channels,
                "options": {} if gpu or backbone else {"channels": [32, 64, 128, 256]},
            },
            "head": {"hidden": 2048 if large else 512, "layers": 2, "width": 256 if large else 64},
            "prototypes": {"count": prototypes, "freeze_epochs": 1 if epochs > 1 else 0},
        },
        "teacher": {"momentum": [0.99 if steps > 20_000 else 0.95 if steps > 5_000 else 0.9, 1.0]},
        "optimiser": {
            "name": "adamw",
            "learning_rate": 4e-3,
            "weight_decay": 0.01,
            "warmup_epochs": min(epochs / 10, 10),
            "warmup_from": 0.1,
        },
        "training": {"epochs": epochs, "batch_size": batch},
    }
    return values, f"{count} {'grey' if grey else 'colour'} pictures, short side about {side}"


def choices(recipe: Recipe, asked: Mapping[str, Any]) -> list[str]:
    """What `suggest_recipe` has decided that a person wants to know, in words.

    Args:
        recipe: made of the suggestion and of what was asked for.
        asked: by the person, as `reading.parse_overrides` gives it: what it holds was not chosen here.
    """
    crops = recipe.crops
    words = {
        "model.backbone.name": recipe.model.backbone.name,
        "crops.global_crops.size": f"global crops of {crops.global_crops.size} pixels",
        "crops.local_crops.size": f"local crops of {crops.local_crops.size}" if crops.local_crops.count else "",
        "model.prototypes.count": counted(recipe.model.prototypes.count, "prototype"),
        "training.batch_size": f"batches of {recipe.training.batch_size}",
        "training.epochs": counted(recipe.training.epochs, "epoch"),
    }
    return [word for key, word in words.items() if word and look_up(asked, key) is None]


def _look_at(source: PictureSource) -> tuple[Sequence[int], bool]:
    """Short sides of some pictures, and whether all of them are grey."""
    sides: list[int] = []
    grey = True
    reason = ""
    for index in np.unique(np.linspace(0, to_choose_from(source, SAMPLE) - 1, SAMPLE).astype(int)):
        try:
            picture = source.read(int(index))
        except UnreadablePicture as error:
            reason = str(error)
            continue
        sides.append(min(picture.shape[:2]))
        grey = grey and bool((picture == picture[..., :1]).all())
    if not sides:
        raise ValueError(f"none of {SAMPLE} pictures of '{source.name}' could be read; the last: {reason}")
    return sides, grey


def _power_of_two(number: int) -> int:
    return 1 << max(number.bit_length() - 1, 0)
