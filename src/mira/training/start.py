"""Start or continue a run: prepare its folder, its pictures, its model, and train."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mira.data import PictureSource
from mira.data.cache import CachedSource
from mira.distributed import Ranks, end_with_launcher, process_group, started_again
from mira.files import remove_temporaries
from mira.model import Mira
from mira.training.auto_recipe import parse_budget
from mira.training.begin import begin
from mira.training.checkpoint import Checkpoint, digest, newest_checkpoint
from mira.training.collapse import Collapse
from mira.training.loop import train
from mira.training.mend import mend
from mira.training.online import OnlineKnn
from mira.training.prepare import make_deterministic, prepare
from mira.training.progress import say
from mira.training.reading import load_recipe
from mira.training.recipe import Recipe
from mira.training.recorder import Recorder
from mira.training.resolve import plan, preprocessing, resolve
from mira.training.run_folder import RunFolder, empty_model, initial_model, open_data
from mira.training.skipped import SkippedLog
from mira.versions import versions
from mira.wording import counted

CHANGEABLE = ("training.workers", "training.device", "monitor.", "data.max_unreadable", "data.cache_gigabytes")
"""What may differ between a run and its continuation: nothing of it decides what is learned."""


def pretrain(
    data: str | Path | None = None,
    *,
    out: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    overrides: Iterable[str] = (),
    budget: str | float | None = None,
    overwrite: bool = False,
    or_resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Learn a backbone from unlabelled pictures.

    Under torchrun, SLURM's srun or `mira pretrain --processes` every process calls this, and they train together.

    Args:
        data: a folder of pictures, "builtin:fashion" or "torchvision:NAME"; None for the recipe's own.
        out: the run's folder; made if need be.
        recipe: a built-in name, a YAML file, a mapping or a `Recipe`; None for one chosen from the number and the
            size of the pictures, which is printed.
        overrides: "section.key=value" each.
        budget: how long the run may take, as "20m", "2h" or in seconds, where no recipe is named; the epochs are
            chosen by it. None is about 20 minutes on a CPU; on a GPU, a number of images shown.
        overwrite: begin anew where `out` already holds a run, which is then lost.
        or_resume: continue the run that `out` already holds, with its own recipe (of `overrides` only what
            `CHANGEABLE` names counts then). So it is also when torchrun or SLURM have started this command before.
        quiet: show no progress.

    Returns:
        The run's folder.

    Raises:
        ValueError: the recipe, the pictures or the folder cannot be used; the message says what to do.
        TrainingStopped: the loss is no longer finite, or labels or features collapsed.
        TooManyUnreadable: more pictures than `data.max_unreadable` cannot be read.
        Interrupted: SIGINT, SIGTERM or SIGUSR1; continue with `resume`.
        RankLost: another of the processes that train together has ended.
        FirstRankFailed: another of these, on rank 0, which says it.
    """
    folder, overrides = RunFolder(Path(out)), list(overrides)
    with _together() as ranks:
        if or_resume or started_again():
            begun = ranks.from_first(folder.recipe.is_file)
            if begun:
                return resume(out, overrides=[o for o in overrides if o.startswith(CHANGEABLE)], quiet=quiet)
        model: Mira | None = None

        def decide() -> Recipe:
            nonlocal model
            resolved, model = begin(
                folder,
                data,
                recipe,
                overrides=overrides,
                budget=parse_budget(budget) if isinstance(budget, str) else budget,
                overwrite=overwrite,
                quiet=quiet,
                ranks=ranks,
            )
            return resolved

        resolved = ranks.from_first(decide)
        make_deterministic(resolved)
        return _run(folder, resolved, model or empty_model(resolved), None, quiet, ranks)


def resume(out: str | Path, *, overrides: Iterable[str] = (), quiet: bool = False) -> Path:
    """Continue a run from its newest readable checkpoint, as if it had never stopped.

    The number of processes may be another than before: the batch and its order stay, so that results are equal up to
    rounding. With the same number, and on a CPU, they are the same bits.

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
    with _together() as ranks:
        checkpoint = ranks.from_first(lambda: _find(folder, overrides))
        if checkpoint is None:  # stopped before its first checkpoint
            return pretrain(out=out, recipe=folder.recipe, overrides=overrides, overwrite=True, quiet=quiet)
        make_deterministic(checkpoint.recipe)
        total = plan(checkpoint.recipe, pictures=checkpoint.pictures).total
        if checkpoint.step >= total and ranks.first:
            say(_finished(folder, checkpoint.recipe.training.epochs), quiet=quiet)
        return _run(folder, checkpoint.recipe, empty_model(checkpoint.recipe), checkpoint, quiet, ranks)


@contextmanager
def _together() -> Iterator[Ranks]:
    end_with_launcher()
    with process_group() as ranks:
        yield ranks


def _find(folder: RunFolder, overrides: list[str]) -> Checkpoint | None:
    """The newest checkpoint, its recipe resolved for this machine, on rank 0; None for a run that has none yet."""
    checkpoint = newest_checkpoint(folder.checkpoints) if folder.path.is_dir() else None
    if checkpoint is None:
        if folder.recipe.is_file():
            return None
        raise ValueError(f"there is no run in '{folder.path}' to continue: name the folder given to --out")
    recipe = load_recipe(checkpoint.recipe.model_dump(), overrides)
    source = open_data(recipe)
    if len(source) != checkpoint.pictures or digest(source) != checkpoint.digest:
        raise ValueError(
            f"the run began with {checkpoint.pictures} pictures and '{source.name}' now has {len(source)}, or other "
            "names: put the pictures back, or start a new run in another folder"
        )
    changed = [name for name, value in versions().items() if checkpoint.versions.get(name, value) != value]
    if changed:
        warnings.warn(f"other versions than before of {', '.join(changed)}: the last bits may differ", stacklevel=2)
    return replace(checkpoint, recipe=resolve(recipe, pictures=len(source)))


def _run(
    folder: RunFolder, recipe: Recipe, model: Mira, checkpoint: Checkpoint | None, quiet: bool, ranks: Ranks
) -> Path:
    while (collapse := _train(folder, recipe, model, checkpoint, quiet, ranks)) is not None:
        recipe, checkpoint = ranks.from_first(partial(mend, folder, recipe, collapse, quiet=quiet))
        model = initial_model(recipe) if checkpoint is None and ranks.first else empty_model(recipe)
    return folder.path


def _train(
    folder: RunFolder, recipe: Recipe, model: Mira, checkpoint: Checkpoint | None, quiet: bool, ranks: Ranks
) -> Collapse | None:
    source = open_data(recipe)
    names = digest(source)
    seen = ranks.gather((len(source), names))
    ranks.from_first(lambda: _refuse_different(seen, source))
    schedule = plan(recipe, pictures=len(source))
    device = ranks.device(recipe.training.device)
    devices = ranks.gather(str(device))
    if ranks.world > 1 and ranks.first:
        say(_company(ranks, devices), quiet=quiet)
    state = prepare(model, recipe, device, ranks, checkpoint=checkpoint)
    recorder = None
    if ranks.first:
        for path in (folder.path, folder.checkpoints):
            remove_temporaries(path)
        knn = _online_knn(source, recipe, device)
        recorder = Recorder(
            folder, recipe, schedule, first=state.step, pictures=len(source), digest=names, knn=knn, quiet=quiet
        )
    skipped = SkippedLog(folder.skipped, total=len(source), allowed=recipe.data.max_unreadable, first=ranks.first)
    return train(
        state, _cached(source, recipe), recipe, schedule, device, skipped=skipped, recorder=recorder, ranks=ranks
    )


def _finished(folder: RunFolder, epochs: int) -> str:
    return (
        f"the run in {folder.path} is finished: {epochs} of {counted(epochs, 'epoch')}. Its schedules have ended with "
        f"it, so more epochs are a new run: --out with another folder and training.epochs={2 * epochs} or so"
    )


def _company(ranks: Ranks, devices: Sequence[str]) -> str:
    """Who trains together, in words."""
    here = "" if ranks.local_world == ranks.world else f" ({ranks.local_world} on this machine)"
    backend = "nccl" if devices[0].startswith("cuda") else "gloo"
    return (
        f"training in {counted(ranks.world, 'process', 'processes')}{here} over {backend}, on "
        f"{', '.join(dict.fromkeys(devices))}, {counted(torch.get_num_threads(), 'thread')} each"
    )


def _cached(source: PictureSource, recipe: Recipe) -> PictureSource:
    data, workers = recipe.data, recipe.training.workers
    if data.cache == "none":
        return source
    assert workers != "auto"
    folder = Path(os.environ.get("MIRA_CACHE") or "~/.cache/mira/pictures").expanduser()
    limit = int(data.cache_gigabytes * 2**30)
    return CachedSource(source, folder, short_side=data.cache_size, limit=limit, workers=workers)


def _refuse_different(seen: list[tuple[int, str]], source: PictureSource) -> None:
    other = next((rank for rank, pictures in enumerate(seen) if pictures != seen[0]), None)
    if other is not None:
        raise ValueError(
            f"rank {other} sees {counted(seen[other][0], 'picture')} in '{source.name}' and rank 0 sees {seen[0][0]}, "
            "or others: every machine needs the same folder"
        )


def _online_knn(source: PictureSource, recipe: Recipe, device: torch.device) -> OnlineKnn | None:
    if source.labels is None or recipe.monitor.knn_every == 0:
        return None
    try:
        return OnlineKnn(
            source,
            preprocessing(recipe),
            pictures=recipe.monitor.knn_pictures,
            device=device,
            precision=recipe.training.precision,
        )
    except ValueError as error:  # what only watches must not stop a run
        warnings.warn(f"no k-NN while training: {error}", stacklevel=2)
        return None
