"""Begin a run: decide everything, refuse what cannot be, and only then take the folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mira.data.mixing import shard_mixing
from mira.data.order import shares
from mira.data.remote import is_remote
from mira.data.sources import absolute_spec
from mira.distributed import Ranks
from mira.files import is_temporary, write_text
from mira.model import Mira
from mira.model.backbone import timm_arguments
from mira.training.boards import IDENTITIES, check_boards
from mira.training.mistakes import wrong_overrides
from mira.training.prepare import make_deterministic
from mira.training.progress import say
from mira.training.reading import load_recipe, look_up, parse_overrides, recipe_to_yaml
from mira.training.recipe import Recipe
from mira.training.resolve import preprocessing, resolve, resolve_device
from mira.training.run_folder import RunFolder, open_data
from mira.training.suggest import choices, suggest_recipe
from mira.wording import command, counted

_SMALL_STEM = (
    "the backbone gets MIRA's small stem, for small crops: mira.load_backbone loads its export, timm and torchvision "
    "alone cannot (model.backbone.stem=standard keeps theirs)"
)


def begin(
    folder: RunFolder,
    data: str | Path | None,
    recipe: str | Path | Mapping[str, Any] | Recipe | None,
    *,
    overrides: list[str],
    overwrite: bool,
    quiet: bool,
    ranks: Ranks,
) -> tuple[Recipe, Mira]:
    """Decide everything about a new run and prepare its folder; called on rank 0 alone.

    Args:
        folder: of the run.
        data: as in `pretrain`, like all others.
        recipe: None for one chosen from the pictures; what was chosen is said once nothing can be refused any more.
        overrides: "section.key=value" each.
        overwrite: give up the run that `folder` holds.
        quiet: say nothing.
        ranks: all that will train together.

    Returns:
        The resolved recipe and the model at its start.

    Raises:
        ValueError: as `pretrain`.
    """
    overrides = [*([] if data is None else [f"data.source={_yaml_text(str(data))}"]), *overrides]
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump()
    suggested_for = ""
    if recipe is None:
        recipe, suggested_for = _suggest(overrides)
    chosen = _with_absolute_source(load_recipe(recipe, overrides))
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
    torch.manual_seed(resolved.training.seed)
    sizes = [view.size for view in resolved.crops.views]
    model = Mira(resolved.model, crop_size=sizes[0], other_sizes={*sizes, preprocessing(resolved).size})
    # Everything that can be refused has been; only now is an old run given up. Its recipe goes first: a folder
    # without one is no run, so a crash half-way cannot leave a mixture of two.
    folder.recipe.unlink(missing_ok=True)
    _clear(folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text(folder.recipe, recipe_to_yaml(resolved))
    words = choices(resolved, parse_overrides(overrides)) if suggested_for else []
    if words:
        say(f"chosen for {suggested_for}: {', '.join(words)}", quiet=quiet)
    say(f"{counted(len(source), 'picture')} from {source.name}", quiet=quiet)
    if timm_arguments(resolved.model.backbone, crop_size=sizes[0])[1]:
        say(_SMALL_STEM, quiet=quiet)
    return resolved, model


def _suggest(overrides: list[str]) -> tuple[dict[str, Any], str]:
    """A recipe for the pictures that the overrides name; what they already decide, the suggestion is built around."""
    asked = parse_overrides(overrides)
    if wrong := wrong_overrides(asked):  # all of them, not only those that the choice of a recipe meets
        raise ValueError("the recipe cannot be used:\n" + "\n".join(f"  - {line}" for line in wrong))
    data = asked.get("data", {})
    if isinstance(data, Mapping):  # whether mean and std fit the channels is known only once these are chosen
        data = {key: value for key, value in data.items() if key not in ("mean", "std")}
    epochs, backbone = look_up(asked, "training.epochs"), look_up(asked, "model.backbone.name")
    decided = {"epochs": epochs, "device": look_up(asked, "training.device")}
    probe = load_recipe(
        {
            "data": data,
            "training": {key: value for key, value in decided.items() if value is not None},
            "model": {"prototypes": {"freeze_epochs": 0}} | ({"backbone": {"name": backbone}} if backbone else {}),
            "optimiser": {"warmup_epochs": 0},  # no number of epochs is too small for that
        }
    )
    return suggest_recipe(
        open_data(probe),
        resolve_device(probe.training.device),
        epochs=probe.training.epochs if epochs else None,
        backbone=probe.model.backbone.name if backbone else None,
    )


def _with_absolute_source(recipe: Recipe) -> Recipe:
    """A folder is kept by its full path, so that the run can be resumed and evaluated from anywhere."""
    data = recipe.data.model_copy(update={"source": absolute_spec(recipe.data.source)})
    return recipe.model_copy(update={"data": data})


def _refuse_existing(folder: RunFolder, overwrite: bool) -> None:
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"'{folder.path}' is a file: name a folder for the run")
    if not folder.path.is_dir() or all(is_temporary(path) for path in folder.path.iterdir()):
        return
    if not folder.recipe.is_file():
        raise ValueError(f"'{folder.path}' holds other files: name a new or empty folder for the run")
    if overwrite:
        return
    raise ValueError(
        f"'{folder.path}' already holds a run. Continue it with `{command('pretrain', '--resume', folder.path)}`, or "
        "begin anew with --overwrite, which deletes it"
    )


def _clear(folder: RunFolder) -> None:
    """Remove what a run has written, and nothing else that may lie there."""
    names = ("report.html", IDENTITIES)
    for file in (folder.metrics, folder.skipped, folder.results, folder.crops, *(folder.path / name for name in names)):
        file.unlink(missing_ok=True)
    for inner in (folder.checkpoints, folder.path / "tensorboard", folder.path / "wandb"):
        if inner.is_dir():
            shutil.rmtree(inner)


def _yaml_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
