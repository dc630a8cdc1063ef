"""Start or continue a run: prepare its folder, its pictures, its model, and train."""

import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mira.data import CropDataset, PictureSource
from mira.files import is_temporary, remove_temporaries, write_text
from mira.model import Mira
from mira.training.checkpoint import Checkpoint, digest, newest_checkpoint, versions
from mira.training.loop import TrainState, train
from mira.training.online import OnlineKnn
from mira.training.optimiser import create_optimiser
from mira.training.reading import load_recipe, parse_overrides, recipe_to_yaml
from mira.training.recipe import Recipe
from mira.training.resolve import plan, preprocessing, resolve, resolve_device
from mira.training.run_folder import RunFolder, empty_model, open_data
from mira.training.skipped import SkippedLog
from mira.training.suggest import suggest_recipe

CHANGEABLE = ("training.workers", "training.device", "monitor.", "data.max_unreadable")
"""What may differ between a run and its continuation: nothing of it decides what is learned."""


def pretrain(
    data: str | Path | None = None,
    *,
    out: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    overrides: Iterable[str] = (),
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Learn a backbone from unlabelled pictures.

    Args:
        data: a folder of pictures, "builtin:fashion" or "torchvision:NAME"; None for the recipe's own.
        out: the run's folder; made if need be.
        recipe: a built-in name, a YAML file, a mapping or a `Recipe`; None for one chosen from the number and the
            size of the pictures, which is printed.
        overrides: "section.key=value" each.
        overwrite: begin anew where `out` already holds a run, which is then lost.
        quiet: show no progress.

    Returns:
        The run's folder.

    Raises:
        ValueError: the recipe, the pictures or the folder cannot be used; the message says what to do.
        TrainingStopped: the loss is no longer finite, or labels or features collapsed.
        TooManyUnreadable: more pictures than `data.max_unreadable` cannot be read.
        Interrupted: SIGINT or SIGTERM; continue with `resume`.
    """
    overrides = [*overrides, *([] if data is None else [f"data.source={_yaml_text(str(data))}"])]
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump()
    elif recipe is None:
        recipe, sentence = _suggest(overrides)
        _say(f"chosen for {sentence}", quiet)
    chosen = _with_absolute_source(load_recipe(recipe, overrides))
    folder = RunFolder(Path(out))
    _refuse_existing(folder, overwrite)
    source = open_data(chosen)
    resolved = resolve(chosen, pictures=len(source))
    _say(f"{len(source)} pictures from {source.name}", quiet)
    _prepare_torch(resolved)
    torch.manual_seed(resolved.training.seed)
    sizes = [view.size for view in resolved.crops.views]
    model = Mira(resolved.model, crop_size=sizes[0], other_sizes={*sizes, preprocessing(resolved).size})
    # Everything that can be refused has been; only now is an old run given up. Its recipe goes first: a folder
    # without one is no run, so a crash half-way cannot leave a mixture of two.
    folder.recipe.unlink(missing_ok=True)
    _clear(folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text(folder.recipe, recipe_to_yaml(resolved))
    return _run(folder, resolved, source, model, None, quiet)


def resume(out: str | Path, *, overrides: Iterable[str] = (), quiet: bool = False) -> Path:
    """Continue a run from its newest readable checkpoint, as if it had never stopped.

    Args:
        out: the run's folder.
        overrides: of settings that do not decide what is learned (`CHANGEABLE`).
        quiet: show no progress.

    Raises:
        ValueError: no run there, its data set has another size now, or a setting that may not change.
    """
    overrides = list(overrides)
    for override in overrides:
        key = override.partition("=")[0]
        if not key.startswith(CHANGEABLE):
            raise ValueError(
                f"'{key}' cannot change in a run that has begun; only these can: {', '.join(CHANGEABLE)}. "
                "Start a new run in another folder"
            )
    folder = RunFolder(Path(out))
    checkpoint = newest_checkpoint(folder.checkpoints) if folder.path.is_dir() else None
    if checkpoint is None:
        if folder.recipe.is_file():  # stopped before its first checkpoint
            return pretrain(out=out, recipe=folder.recipe, overrides=overrides, overwrite=True, quiet=quiet)
        raise ValueError(f"there is no run in '{folder.path}' to continue: name the folder given to --out")
    recipe = load_recipe(checkpoint.recipe.model_dump(), overrides)
    source = open_data(recipe)
    if len(source) != checkpoint.pictures or digest(source) != checkpoint.digest:
        raise ValueError(
            f"the run began with {checkpoint.pictures} pictures and '{source.name}' now has {len(source)}, or other "
            "names: put the pictures back, or start a new run in another folder"
        )
    changed = [name for name, value in versions().items() if checkpoint.versions.get(name) != value]
    if changed:
        warnings.warn(f"other versions than before of {', '.join(changed)}: the last bits may differ", stacklevel=2)
    recipe = resolve(recipe, pictures=len(source))
    _prepare_torch(recipe)
    return _run(folder, recipe, source, empty_model(recipe), checkpoint, quiet)


def _run(
    folder: RunFolder,
    recipe: Recipe,
    source: PictureSource,
    model: Mira,
    checkpoint: Checkpoint | None,
    quiet: bool,
) -> Path:
    for path in (folder.path, folder.checkpoints):
        remove_temporaries(path)
    schedule = plan(recipe, pictures=len(source))
    device = torch.device(recipe.training.device)
    layout = torch.channels_last if recipe.training.channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    state = TrainState(model, create_optimiser(model, recipe.optimiser))
    if checkpoint is not None:
        model.load_state_dict(checkpoint.model)
        state.optimiser.load_state_dict(checkpoint.optimiser)
        state.step = checkpoint.step
    dataset = CropDataset(source, recipe.crops, seed=recipe.training.seed, max_unreadable=recipe.data.max_unreadable)
    skipped = SkippedLog(folder.skipped, total=len(source), allowed=recipe.data.max_unreadable)
    knn = None
    if source.labels is not None and recipe.monitor.knn_every > 0:
        try:
            knn = OnlineKnn(
                source,
                preprocessing(recipe),
                pictures=recipe.monitor.knn_pictures,
                device=device,
                precision=recipe.training.precision,
            )
        except ValueError as error:  # what only watches must not stop a run
            warnings.warn(f"no k-NN while training: {error}", stacklevel=2)
    train(state, dataset, recipe, schedule, folder, skipped=skipped, knn=knn, quiet=quiet)
    return folder.path


def _suggest(overrides: list[str]) -> tuple[dict[str, Any], str]:
    """A recipe for the pictures that the overrides name; what they already decide, the suggestion is built around."""
    asked = parse_overrides(overrides)
    probe = {"data": {k: v for k, v in asked.get("data", {}).items() if k not in ("mean", "std")}}
    device = resolve_device(asked.get("training", {}).get("device", "auto"))
    source = open_data(load_recipe(probe))
    backbone = asked.get("model", {}).get("backbone", {}).get("name")
    return suggest_recipe(source, device, epochs=asked.get("training", {}).get("epochs"), backbone=backbone)


def _with_absolute_source(recipe: Recipe) -> Recipe:
    """A folder is kept by its full path, so that the run can be resumed and evaluated from anywhere."""
    source = recipe.data.source
    if source.startswith(("builtin:", "torchvision:")):
        return recipe
    data = recipe.data.model_copy(update={"source": str(Path(source).expanduser().absolute())})
    return recipe.model_copy(update={"data": data})


def _say(sentence: str, quiet: bool) -> None:
    if not quiet:
        print(sentence, file=sys.stderr)


def _prepare_torch(recipe: Recipe) -> None:
    if recipe.training.deterministic:
        # cuBLAS asks for this before its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


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
        f"'{folder.path}' already holds a run. Continue it with `mira pretrain --resume {folder.path}`, or begin "
        "anew with --overwrite, which deletes it"
    )


def _clear(folder: RunFolder) -> None:
    """Remove what a run has written, and nothing else that may lie there."""
    for file in (folder.metrics, folder.skipped, folder.results, folder.path / "report.html"):
        file.unlink(missing_ok=True)
    for inner in (folder.checkpoints, folder.path / "tensorboard"):
        if inner.is_dir():
            shutil.rmtree(inner)


def _yaml_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
