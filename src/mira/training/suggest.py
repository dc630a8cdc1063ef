"""A recipe for pictures nobody has tuned one for: chosen from their number, their size and the device.

A starting point that runs in reasonable time, not a promise of accuracy; every choice can be overridden.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mira.data import PictureSource, UnreadablePicture

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
        Values for `load_recipe`, and a sentence for the person that says what was chosen and from what.

    Raises:
        ValueError: fewer than 32 pictures, or none of those looked at can be read.
    """
    count = len(source)
    if count < 32:
        raise ValueError(f"'{source.name}' has {count} pictures; learning from fewer than 32 makes no sense")
    sides, grey = _look_at(source)
    side, channels = int(np.median(sides)), 1 if grey else 3
    gpu = device.type != "cpu"
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        epochs = None  # what is wrong with it, the recipe says once it is read

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
    kind = "grey" if grey else "colour"
    sentence = (
        f"{count} {kind} pictures, short side about {side}: {name}, "
        f"crops of {crop}{f' and {local}' if local else ''} pixels, {prototypes} prototypes, batches of {batch}, "
        f"{epochs} epochs"
    )
    return values, sentence


def _look_at(source: PictureSource) -> tuple[Sequence[int], bool]:
    """Short sides of some pictures, and whether all of them are grey."""
    sides: list[int] = []
    grey = True
    reason = ""
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int)):
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
