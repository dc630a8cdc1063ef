"""Begin a run: decide everything, refuse what cannot be, and only then take the folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mira.data import PictureSource
from mira.data.mixing import shard_mixing
from mira.data.names import path_text
from mira.data.order import shares
from mira.data.remarks import remarks
from mira.data.remote import is_remote
from mira.data.sources import absolute_spec
from mira.distributed import Ranks
from mira.files import is_temporary, remove, write_text
from mira.model import Mira
from mira.model.backbone import timm_arguments
from mira.run_lock import LOCK
from mira.training.assignment_methods import SoftmaxSettings
from mira.training.auto_recipe import CPU_BUDGET, START_UP, choices, choose_recipe, fit_epochs, measure_speed
from mira.training.boards import check_boards
from mira.training.loop import beyond_device_memory
from mira.training.mistakes import wrong_overrides
from mira.training.prepare import make_deterministic
from mira.training.progress import say
from mira.training.reading import Override, load_recipe, look_up, parse_overrides, recipe_to_yaml
from mira.training.recipe import Recipe
from mira.training.resolve import resolve, resolve_device
from mira.training.run_folder import RunFolder, initial_model, open_data
from mira.wording import command, counted, duration

_SMALL_STEM = (
    "the backbone gets MIRA's small stem, for small crops: mira.load_backbone loads its export, timm and torchvision "
    "alone cannot (model.backbone.stem=standard keeps theirs)"
)

_SOFTMAX = "assignment.name=softmax is there only for comparison: nothing keeps its pseudo-labels from collapse"


def begin(
    folder: RunFolder,
    data: str | Path | None,
    recipe: str | Path | Mapping[str, Any] | Recipe | None,
    *,
    overrides: list[str],
    budget: float | None,
    overwrite: bool,
    quiet: bool,
    ranks: Ranks,
    again: bool = False,
) -> tuple[Recipe, Mira]:
    """Decide everything about a new run and prepare its folder; called on rank 0 alone.

    Args:
        folder: of the run.
        data: as in `pretrain`, like all others.
        recipe: None for one chosen from the pictures; what was chosen is said once nothing can be refused any more.
        overrides: "section.key=value" each.
        budget: seconds that the run may take, for a recipe that is chosen; None for the usual time.
        overwrite: give up the run that `folder` holds.
        quiet: say nothing.
        ranks: all that will train together.
        again: the run in `folder` was stopped before its first checkpoint and begins once more; nothing of it is
            deleted.

    Returns:
        The resolved recipe and the model at its start.

    Raises:
        ValueError: as `pretrain`.
    """
    changes: list[Override] = [*([] if data is None else [("data.source", path_text(data))]), *overrides]
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump()
    _refuse_unused(budget, recipe, overrides)
    chosen_for = ""
    if recipe is None:
        recipe, chosen_for = _choose(changes)
    chosen = _with_absolute_source(load_recipe(recipe, changes))
    if not again:
        _refuse_existing(folder, overwrite)
    if is_remote(chosen.data.source):
        say(
            f"looking for the pictures in {chosen.data.source}: the first time this fetches everything once",
            quiet=quiet,
        )
    source = open_data(chosen)
    resolved = resolve(chosen, pictures=len(source), processes=ranks.local_world)
    if resolved.data.cache == "none":
        shard_mixing(source, resolved.data.mix_shards)  # is there room?
    check_boards(resolved.monitor.boards)
    shares(resolved.training.batch_size, world=ranks.world, parts=resolved.training.accumulate)
    make_deterministic(resolved)
    if chosen_for and isinstance(recipe, dict) and look_up(parse_overrides(changes), "training.epochs") is None:
        fitted, expected = _fit_epochs(recipe, resolved, source, budget, quiet=quiet, ranks=ranks)
        chosen = _with_absolute_source(load_recipe(fitted, changes))
        resolved = resolve(chosen, pictures=len(source), processes=ranks.local_world)
    else:
        expected = ""
    model = initial_model(resolved)
    # Everything that can be refused has been; only now is an old run given up. Its checkpoints go first, all at once,
    # so a crash half-way cannot leave a mixture of two runs.
    for path in folder.own if not again else ():
        remove(path)
    write_text(folder.recipe, recipe_to_yaml(resolved))
    words = choices(resolved, parse_overrides(changes)) if chosen_for else []
    if words:
        say(f"chosen for {chosen_for}: {', '.join(words)}", quiet=quiet)
    if expected:
        say(expected, quiet=quiet)
    if isinstance(resolved.assignment, SoftmaxSettings):
        say(_SOFTMAX, quiet=quiet)
    say(f"{counted(len(source), 'picture')} from {source.name}", quiet=quiet)
    for remark in remarks(source):
        say(remark, quiet=quiet)
    if timm_arguments(resolved.model.backbone, crop_size=resolved.crops.global_crops.size)[1]:
        say(_SMALL_STEM, quiet=quiet)
    return resolved, model


def _refuse_unused(budget: float | None, recipe: object, overrides: list[str]) -> None:
    if budget is None:
        return
    if recipe is not None:
        raise ValueError("a time budget chooses the epochs where no recipe is named; a recipe has training.epochs")
    if look_up(parse_overrides(overrides), "training.epochs") is not None:
        raise ValueError("give a time budget or training.epochs, not both")


def _choose(overrides: list[Override]) -> tuple[dict[str, Any], str]:
    """A recipe for the images that the overrides name; what they already decide, the choice is built around."""
    asked = parse_overrides(overrides)
    if wrong := wrong_overrides(asked):  # all of them, not only those that the choice of a recipe meets
        raise ValueError("the recipe cannot be used:\n" + "\n".join(f"  - {line}" for line in wrong))
    data = asked.get("data", {})
    if isinstance(data, Mapping):  # whether mean and std fit the channels is known only once these are chosen
        data = {key: value for key, value in data.items() if key not in ("mean", "std")}
    epochs, backbone = look_up(asked, "training.epochs"), look_up(asked, "model.backbone.name")
    decided = {"epochs": epochs, "device": look_up(asked, "training.device")}
    method = look_up(asked, "assignment.name")
    probe = load_recipe(
        {
            "data": data,
            "training": {key: value for key, value in decided.items() if value is not None},
            "model": {"prototypes": {"freeze_epochs": 0}} | ({"backbone": {"name": backbone}} if backbone else {}),
            "assignment": {"name": method} if method else {},
            "optimiser": {"warmup_epochs": 0},  # no number of epochs is too small for that
        }
    )
    return choose_recipe(
        open_data(probe),
        resolve_device(probe.training.device),
        epochs=probe.training.epochs if epochs else None,
        backbone=probe.model.backbone.name if backbone else None,
        method=probe.assignment.name,
    )


def _fit_epochs(
    values: dict[str, Any], recipe: Recipe, source: PictureSource, budget: float | None, *, quiet: bool, ranks: Ranks
) -> tuple[dict[str, Any], str]:
    """The chosen values with as many epochs as the time allows, and in words how long the run will take."""
    say("measuring the speed of this machine", quiet=quiet)
    device = ranks.device(recipe.training.device)
    share = max(recipe.training.batch_size // ranks.world, 2 * recipe.training.accumulate)
    own = recipe.model_copy(update={"training": recipe.training.model_copy(update={"batch_size": share})})
    try:
        speed = measure_speed(own, source, device) * ranks.world
    except torch.OutOfMemoryError as error:
        raise ValueError(beyond_device_memory(own, share)) from error
    if budget is None and device.type == "cpu":
        budget = CPU_BUDGET
    fitted = fit_epochs(values, len(source), speed, budget)
    epochs = fitted["training"]["epochs"]
    seconds = START_UP + epochs * len(source) / speed
    words = f"this takes about {duration(seconds)} here, at {speed:,.0f} images/s"
    if budget is not None and seconds > 1.25 * budget:
        return fitted, f"{words}: one epoch is the least, although it takes longer than {duration(budget)}"
    return fitted, f"{words} (--budget 5m or 2h for another time)"


def _with_absolute_source(recipe: Recipe) -> Recipe:
    """A folder is kept by its full path, so that the run can be resumed and evaluated from anywhere."""
    data = recipe.data.model_copy(update={"source": absolute_spec(recipe.data.source)})
    return recipe.model_copy(update={"data": data})


def _refuse_existing(folder: RunFolder, overwrite: bool) -> None:
    there = [path for path in folder.path.iterdir() if not is_temporary(path) and path.name != LOCK]
    if not there:
        return
    if not folder.recipe.is_file() and not set(there) <= set(folder.own):
        raise ValueError(f"'{folder.path}' holds other files: name a new or empty folder for the run")
    if overwrite:
        return
    raise ValueError(
        f"'{folder.path}' already holds a run. Continue it with `{command('pretrain', '--resume', folder.path)}`, or "
        "begin anew with --overwrite, which deletes it"
    )
