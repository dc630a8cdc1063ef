"""From a recipe with "auto" in it to one in which everything is decided, and from epochs to steps."""

import os

import torch

from mira.model import Preprocessing, default_statistics
from mira.training.reading import load_recipe
from mira.training.recipe import Recipe
from mira.training.schedules import Plan

_MAX_WORKERS = 16
_MAX_LOG_INTERVAL = 50


def resolve(recipe: Recipe, *, pictures: int, processes: int = 1) -> Recipe:
    """Decide every "auto" for this machine, this many pictures and so many training processes on the machine.

    Raises:
        ValueError: a device that is not there, a precision it does not have, or fewer pictures than a batch.
    """
    training, monitor = recipe.training, recipe.monitor
    if pictures < training.batch_size:
        raise ValueError(
            f"a batch has {training.batch_size} pictures but there are only {pictures} in all: "
            f"set training.batch_size to {_power_of_two(max(pictures // 4, 2))} or so"
        )
    device = resolve_device(training.device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(cores // processes, 1)
    # On a CPU the training itself wants the cores; a GPU leaves them all to the pictures.
    usable = cores if device.type != "cpu" else max(cores // 2, 1)
    log_every = min(max(pictures // training.batch_size // 10, 1), _MAX_LOG_INTERVAL)
    mean, std = default_statistics(recipe.model.backbone.channels)
    size = recipe.evaluation.size
    size = recipe.crops.global_crops.size if size == "auto" else size
    resize = recipe.evaluation.resize
    resolved = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(
                update={
                    "mean": recipe.data.mean or mean,
                    "std": recipe.data.std or std,
                    "augment": _augment(recipe.data.augment, device),
                }
            ),
            "training": training.model_copy(
                update={
                    "device": str(device),
                    "precision": _precision(training.precision, device),
                    "workers": min(usable, _MAX_WORKERS) if training.workers == "auto" else training.workers,
                }
            ),
            "monitor": monitor.model_copy(
                update={"log_every": log_every if monitor.log_every == "auto" else monitor.log_every}
            ),
            "evaluation": recipe.evaluation.model_copy(
                update={"size": size, "resize": round(size * 256 / 224) if resize == "auto" else resize}
            ),
        }
    )
    # What was decided must be as possible as what was written: size and resize meet here for the first time.
    return load_recipe(resolved.model_dump())


def plan(recipe: Recipe, *, pictures: int) -> Plan:
    """Turn the recipe's epochs into steps; the last incomplete batch of an epoch is dropped."""
    steps = pictures // recipe.training.batch_size
    return Plan(
        steps_per_epoch=steps,
        total=steps * recipe.training.epochs,
        warmup=round(steps * recipe.optimiser.warmup_epochs),
        freeze=steps * recipe.model.prototypes.freeze_epochs,
    )


def preprocessing(recipe: Recipe) -> Preprocessing:
    """What the backbone of a resolved recipe expects of a picture."""
    size, resize = recipe.evaluation.size, recipe.evaluation.resize
    assert size != "auto"
    assert resize != "auto"
    assert recipe.data.mean is not None
    assert recipe.data.std is not None
    return Preprocessing(size, resize, recipe.model.backbone.channels, recipe.data.mean, recipe.data.std)


def resolve_device(name: str) -> torch.device:
    """The device a recipe means; "auto" is a GPU where there is one.

    Raises:
        ValueError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" makes tensors, but holds no numbers
    except Exception as error:  # a device of a package that is not there raises what imports raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"there is no usable device '{name}' here ({reason}). Write 'auto' or 'cpu'") from None
    return device


def _precision(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # Emulated bfloat16 is slower than float32; only processors that multiply it natively gain.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


def _augment(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    # On a CPU OpenCV in the workers is several times as fast as batches of PyTorch, at every size of pictures.
    return "workers" if device.type == "cpu" else "device"


def _power_of_two(number: int) -> int:
    return int(2 ** (number.bit_length() - 1))
