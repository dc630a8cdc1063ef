"""The batches of a recipe: the crops that its loaders make, and their way to the device."""

from collections.abc import Iterable

import torch

from mira.data import Batch, CropDataset, PictureSource, crop_loader
from mira.data.device_augment import DeviceAugment
from mira.distributed import ALONE, Ranks
from mira.training.recipe import Recipe


def crop_batches(
    recipe: Recipe, source: PictureSource, *, first_step: int = 0, last_step: int, ranks: Ranks = ALONE
) -> Iterable[Batch]:
    """The batches of the steps from `first_step` to before `last_step`, made by the recipe's workers.

    Args:
        recipe: resolved.
        source: the images.
        first_step: counted over all epochs from 0.
        last_step: the step to stop before.
        ranks: the processes that share a batch.

    Raises:
        ValueError: the batch does not fit the images or the processes.
    """
    data, training = recipe.data, recipe.training
    if data.augment == "auto" or training.workers == "auto":
        raise ValueError("batches are made for a resolved recipe: call resolve first")
    dataset = CropDataset(
        source,
        recipe.crops,
        seed=training.seed,
        max_unreadable=data.max_unreadable,
        augment=data.augment,
        decode=data.decode,
        mix_shards=data.mix_shards,
    )
    return crop_loader(
        dataset,
        batch_size=training.batch_size,
        first_step=first_step,
        last_step=last_step,
        seed=training.seed,
        workers=training.workers,
        rank=ranks.rank,
        world=ranks.world,
        parts=training.accumulate,
        pin_memory=training.device.startswith("cuda"),
        patience=data.worker_timeout,
    )


def augmentation(recipe: Recipe, device: torch.device) -> DeviceAugment:
    """What brings a batch of a resolved recipe to the device and into the form that the networks take."""
    mean, std = recipe.data.mean, recipe.data.std
    assert mean is not None
    assert std is not None
    return DeviceAugment(
        recipe.crops,
        mean,
        std,
        device=device,
        # Autocast would round what enters the first convolution to the same.
        dtype=torch.bfloat16 if recipe.training.precision == "bfloat16" else torch.float32,
        channels_last=recipe.training.channels_last,
        parts=recipe.training.accumulate,
        compile=recipe.training.compile,
    )
