"""Checkpoints: everything needed to go on, written atomically, read without running code."""

import hashlib
import os
import re
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from mira.data import PictureSource
from mira.files import atomic_path
from mira.model.weights import read_torch_file
from mira.training.recipe import Recipe

FORMAT = 1
_NAME = re.compile(r"step-(\d{8})\.pt")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Random state needs no place in it: every random number of a run is a function of the recipe's seed and the
    step (order of pictures, crops, dropout), and so is the place in the data.

    Attributes:
        step: steps taken so far; the next one has this number.
        recipe: the resolved recipe.
        model: state dict of `Mira`.
        optimiser: its state dict.
        scaler: state dict of the loss scaling of float16; empty otherwise.
        label_state: what the way to labels carries from step to step, tensors by name; empty for most.
        pictures: number of pictures in the source.
        digest: of their names, to notice another data set on resuming.
        versions: of Python and the libraries that decide the bits.
    """

    step: int
    recipe: Recipe
    model: dict[str, Any]
    optimiser: dict[str, Any]
    pictures: int
    digest: str
    versions: dict[str, str]
    scaler: dict[str, Any] = field(default_factory=dict)
    label_state: dict[str, Any] = field(default_factory=dict)


def digest(source: PictureSource) -> str:
    """A digest of the pictures' names in their order."""
    state = hashlib.blake2b(digest_size=16)
    for index in range(len(source)):
        state.update(os.fsencode(source.key(index)) + b"\0")
    return state.hexdigest()


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder/step-<step>.pt`. A killed process cannot leave half of it; `CheckpointKeeper` sees to the disk.

    Raises:
        OSError: the disk is full or the folder cannot be written; older checkpoints are untouched.
    """
    path = folder / f"step-{checkpoint.step:08d}.pt"
    content = {"format": FORMAT} | {part.name: getattr(checkpoint, part.name) for part in fields(checkpoint)}
    content["recipe"] = checkpoint.recipe.model_dump(mode="json")
    try:
        with atomic_path(path, durable=False) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as the latter
        raise OSError(
            f"the checkpoint of step {checkpoint.step} cannot be written to '{folder}' "
            f"({str(error).strip().splitlines()[0]}): is the disk full? The checkpoints before it are intact; make "
            "room and continue the run"
        ) from error
    return path


def checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        ValueError: the file is missing, damaged, of another format, or no checkpoint of a run.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint '{path}'")
    content = read_torch_file(path)
    number = content.pop("format", None)
    if not isinstance(number, int) or "optimiser" not in content or not isinstance(content.get("recipe"), dict):
        raise ValueError(f"'{path}' is not a checkpoint of mira pretrain")
    if number > FORMAT:
        raise ValueError(f"'{path}' was written by a newer version of mira-ssl; upgrade to read it")
    if isinstance(data := content["recipe"].get("data"), dict):
        data.setdefault("augment", "workers")  # runs from before there was a choice
    try:
        recipe = Recipe.model_validate(content["recipe"])
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, problem["loc"])) or problem["msg"] for problem in error.errors()[:8])
        raise ValueError(f"the recipe inside '{path}' is not one of this version of mira-ssl: {keys}") from None
    try:
        checkpoint = Checkpoint(**content | {"recipe": recipe})
    except TypeError:  # entries are missing or unknown
        raise ValueError(f"'{path}' was not written by this version of mira-ssl") from None
    if wrong := _wrong_entries(checkpoint):
        raise ValueError(f"'{path}' is not a checkpoint of mira pretrain: {', '.join(wrong)} cannot be what it says")
    return checkpoint


def _wrong_entries(checkpoint: Checkpoint) -> list[str]:
    """The names of what no run would have written: a file that anybody made is believed in nothing."""

    def named(values: Any, kind: type) -> bool:
        if not isinstance(values, dict):
            return False
        return all(isinstance(name, str) and isinstance(value, kind) for name, value in values.items())

    recipe = checkpoint.recipe
    decided = (recipe.evaluation.size, recipe.evaluation.resize, recipe.training.workers, recipe.monitor.log_every)
    right = {
        "recipe": "auto" not in decided and None not in (recipe.data.mean, recipe.data.std),
        "step": type(checkpoint.step) is int and 0 <= checkpoint.step < 2**62,
        "pictures": type(checkpoint.pictures) is int and 0 < checkpoint.pictures < 2**62,
        "model": named(checkpoint.model, torch.Tensor),
        "optimiser": named(checkpoint.optimiser, object),
        "scaler": named(checkpoint.scaler, object),
        "label_state": named(checkpoint.label_state, torch.Tensor),
        "digest": isinstance(checkpoint.digest, str),
        "versions": named(checkpoint.versions, str),
    }
    return [name for name, fits in right.items() if not fits]


def step_of(path: Path) -> int:
    """The step that the name of a checkpoint says."""
    return int(path.stem.removeprefix("step-"))


def newest_checkpoint(folder: Path, *, last: int | None = None) -> Checkpoint | None:
    """The newest readable checkpoint of a folder; a damaged one is passed over with a warning.

    Args:
        folder: of the checkpoints.
        last: the last step that it may be of.

    Raises:
        ValueError: there are checkpoints and none can be read.
    """
    paths = [path for path in checkpoint_paths(folder) if last is None or step_of(path) <= last]
    for path in reversed(paths):
        try:
            return read_checkpoint(path)
        except ValueError as error:
            if not path.is_file():  # a run that goes on has given it up meanwhile, and written a newer one
                return newest_checkpoint(folder, last=last)
            warnings.warn(f"{error}. Going back to the checkpoint before it", stacklevel=2)
    if paths:
        raise ValueError(f"no checkpoint in '{folder}' can be read ({len(paths)} tried); the run cannot continue")
    return None
