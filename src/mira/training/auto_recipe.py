"""A recipe for images that nobody has tuned one for: from their number, their size, the device and the time there is.

A starting point that learns on any folder in the time that it says, not a promise of accuracy; every choice can be
overridden. What keeps it from collapse is explained and measured in docs/collapse.md.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mira.data import PictureSource, UnreadablePicture
from mira.data.subset import to_choose_from
from mira.distributed import ALONE
from mira.training.assignment_methods import SAFE_BETA, SAFE_ENTROPY
from mira.training.batches import augmentation, crop_batches
from mira.training.prepare import prepare
from mira.training.reading import look_up
from mira.training.recipe import Recipe
from mira.training.resolve import plan
from mira.training.run_folder import initial_model
from mira.training.step import train_step, values_at
from mira.wording import counted

SAMPLE = 48
"""Images looked at."""
CPU_BUDGET = 20 * 60.0
"""Seconds that a run on a CPU takes unless another time is asked for."""
CPU_CROP = 40
"""Largest side of crops on a CPU, pixels. In equal time more crops teach more than larger ones do."""
GPU_IMAGES = 4_000_000
"""Images shown in all on a GPU unless a time is asked for."""
MAX_EPOCHS = 400
START_UP = 15.0
"""Seconds beside the steps: workers start, the first checkpoint is written, the last one read back."""
MEASURED = 8.0
"""Seconds of training steps that are timed to know how long a run takes here."""
UNTIMED = 3
"""Steps before them, in which memory is taken and the loaders start."""


def parse_budget(budget: str | float) -> float:
    """Seconds of a time such as "90s", "20m", "2h" or "1h30m"; a number is seconds.

    Raises:
        ValueError: it is no such time, or none at all.
    """
    if isinstance(budget, str):
        match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", budget.strip().lower())
        hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
        total = 3600 * hours + 60 * minutes + seconds
    else:
        total = float(budget)
    if not 0 < total < float("inf"):
        raise ValueError(f"'{budget}' is no time: write such as 20m, 2h or 1h30m")
    return total


def choose_recipe(
    source: PictureSource,
    device: torch.device,
    *,
    epochs: int | None = None,
    backbone: str | None = None,
    method: str = "mira",
) -> tuple[dict[str, Any], str]:
    """Choose sizes, prototypes, batch, and what holds the labels; the epochs are a placeholder unless they are given.

    Args:
        source: the images.
        device: what will be trained on.
        epochs: where the person has decided them.
        backbone: likewise; its own widths are kept then.
        method: of assignment.

    Returns:
        Values for `load_recipe`, and in words for which images they were chosen.

    Raises:
        ValueError: fewer than 32 images, or none of those looked at can be read.
    """
    count = len(source)
    if count < 32:
        raise ValueError(
            f"'{source.name}' has {counted(count, 'image')}; learning from fewer than 32 makes no sense. Published "
            "weights serve so few images better: mira embed timm:resnet18 FOLDER"
        )
    sides, gray = _look_at(source)
    side, channels = int(np.median(sides)), 1 if gray else 3
    gpu = device.type != "cpu"

    crop = max(min(side // 8 * 8, 224 if gpu else CPU_CROP), 24)
    local = crop * 96 // 224 // 8 * 8 if gpu and crop >= 64 else 0
    # Many small steps: on few images a batch of 32 learns more in equal time than one of 64 or more.
    batch = min(max(_power_of_two(count // 16), 16), 256) if gpu else 16 if count < 64 else 32 if count < 4000 else 64
    large = gpu and count >= 50_000
    values: dict[str, Any] = {
        "name": "auto",
        "description": f"Chosen for {counted(count, 'image')} with a short side of about {side} pixels.",
        # Of a photograph of 12 megapixels, crops of 40 need a small part of what a whole decoding computes.
        "data": {"decode": "exact" if gpu else "scaled"},
        "crops": {
            "global_crops": {"size": crop, "scale": [0.2, 1.0], "blur": [0.5, 0.1]},
            "local_crops": {"count": 2 if local else 0, "size": max(local, 8)},
            # Blur is a matter of the image's size: 2 pixels at 224 are half a pixel at 56.
            "blur_sigma": [0.1, max(2.0 * crop / 224, 0.5)],
        },
        "model": {
            "backbone": {
                "name": backbone or ("resnet50" if large else "resnet18"),
                "channels": channels,
                # The standard stem leaves few pixels to compute on: that buys the epochs that the time allows.
                "stem": "auto" if gpu or backbone else "standard",
                "options": {} if gpu or backbone else {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]},
            },
            "head": {"hidden": 2048 if large else 512, "layers": 2, "width": 256 if large else 64},
            "prototypes": {"count": min(max(_power_of_two(count // 10), 32), 3000)},
        },
        "assignment": {"name": method, "target_entropy": SAFE_ENTROPY, "teacher_temperature": 0.5}
        | ({"beta": [SAFE_BETA, SAFE_BETA]} if method == "mira" else {}),
        "optimiser": {
            "name": "adamw",
            "learning_rate": 4e-3 if gpu else 1.2e-2,
            "weight_decay": 0.01,
            "warmup_from": 0.1,
        },
        "training": {"batch_size": batch},
        "monitor": {"on_collapse": "mend"},
    }
    if method == "softmax":  # nothing to hold: its labels collapse, whatever their temperature
        values |= {"assignment": {"name": method}, "monitor": {"on_collapse": "stop"}}
    values |= _durations(values, epochs or MAX_EPOCHS, count)
    return values, f"{counted(count, 'image')}, short side about {side}"


def fit_epochs(values: Mapping[str, Any], count: int, images_per_second: float, budget: float | None) -> dict[str, Any]:
    """The values of `choose_recipe` with as many epochs as the time allows.

    Args:
        values: of `choose_recipe`.
        count: number of images.
        images_per_second: that training goes through here.
        budget: seconds that the run may take; None for a number of images that does not depend on the machine.
    """
    shown = GPU_IMAGES if budget is None else max(budget - START_UP, 0.5 * budget) * images_per_second
    used = count // values["training"]["batch_size"] * values["training"]["batch_size"]
    epochs = min(max(int(shown / used), 1), MAX_EPOCHS)
    return dict(values) | _durations(values, epochs, count)


def measure_speed(recipe: Recipe, source: PictureSource, device: torch.device) -> float:
    """Images per second of training here: some steps on crops from the loaders, with a model that is then given up.

    Args:
        recipe: resolved.
        source: its images.
        device: of this process.
    """
    schedule = plan(recipe, pictures=len(source))
    state = prepare(initial_model(recipe), recipe, device, ALONE, checkpoint=None)
    state.model.train()
    to_views = augmentation(recipe, device)
    batches = iter(crop_batches(recipe, source, last_step=schedule.total))
    started, steps = time.monotonic(), 0
    for step, batch in enumerate(batches):
        output = train_step(
            state.model,
            state.optimiser,
            to_views(batch),
            values_at(step, recipe, schedule),
            recipe,
            label_state=state.label_state,
            scaler=state.scaler,
        )
        output.metrics["loss"].item()  # the device is done, and so is the clock
        if step < UNTIMED:
            started = time.monotonic()
            continue
        steps += 1
        if time.monotonic() - started > MEASURED:
            break
    return steps * recipe.training.batch_size / max(time.monotonic() - started, 1e-6)


def choices(recipe: Recipe, asked: Mapping[str, Any]) -> list[str]:
    """What `choose_recipe` has decided that a person wants to know, in words.

    Args:
        recipe: made of its values and of what was asked for.
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


def _durations(values: Mapping[str, Any], epochs: int, count: int) -> dict[str, Any]:
    """The settings that are measured in epochs, and those that go with the number of steps."""
    steps = count // values["training"]["batch_size"] * epochs
    momentum = 0.99 if steps > 20_000 else 0.95 if steps > 5_000 else 0.9
    return {
        "model": values["model"]
        | {"prototypes": values["model"]["prototypes"] | {"freeze_epochs": 1 if epochs >= 10 else 0}},
        "teacher": {"momentum": [momentum, 1.0]},
        "optimiser": values["optimiser"] | {"warmup_epochs": min(epochs / 10, 10)},
        "training": values["training"] | {"epochs": epochs},
        # On a small folder an epoch takes seconds: what is written down must not take longer.
        "monitor": values["monitor"] | {"checkpoint_every": max(epochs // 50, 1), "knn_every": max(epochs // 5, 1)},
    }


def _look_at(source: PictureSource) -> tuple[Sequence[int], bool]:
    """Short sides of some images, and whether all of them are gray."""
    sides: list[int] = []
    gray = True
    reason = ""
    for index in np.unique(np.linspace(0, to_choose_from(source, SAMPLE) - 1, SAMPLE).astype(int)):
        try:
            image = source.read(int(index))
        except UnreadablePicture as error:
            reason = str(error)
            continue
        sides.append(min(image.shape[:2]))
        gray = gray and bool((image == image[..., :1]).all())
    if not sides:
        raise ValueError(f"none of {SAMPLE} images of '{source.name}' could be read; the last: {reason}")
    return sides, gray


def _power_of_two(number: int) -> int:
    return 1 << max(number.bit_length() - 1, 0)
