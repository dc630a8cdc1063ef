"""Start or continue a run: prepare its folder, its pictures, its model, and train."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mira.data import PictureSource
from mira.data.cache import CachedSource
from mira.distributed import Ranks, end_with_launcher, process_group, started_again
from mira.files import cache_folder, remove_temporaries
from mira.model import Mira
from mira.run_lock import AFTER_RESTART, only_one
from mira.training.auto_recipe import parse_budget
from mira.training.begin import begin
from mira.training.checkpoint import Checkpoint, digest, newest_checkpoint
from mira.training.collapse import Collapsed
from mira.training.ended import read_ended
from mira.training.keeper import BEST
from mira.training.loop import train
from mira.training.mend import mend
from mira.training.metrics import read_metrics
from mira.training.online import OnlineKnn
from mira.training.own_recipe import CHANGEABLE, asked_in_vain, keep_recipe_file
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
        or_resume: continue the run that `out` already holds, with its own recipe; of `overrides` only what
            `own_recipe.CHANGEABLE` names counts then, and the rest is said. So it is also when torchrun or SLURM have
            started this command before.
        quiet: show no progress.

    Returns:
        The run's folder.

    Raises:
        ValueError: the recipe, the pictures or the folder cannot be used; the message says what to do.
        TrainingStopped: the loss is no longer finite, or labels or features collapsed.
        TooManyUnreadable: more pictures than `data.max_unreadable` cannot be read.
        WorkerDied: a process that prepares batches has ended or hangs; the state is saved, continue with `resume`.
        Interrupted: SIGINT, SIGTERM, SIGHUP or SIGUSR1; continue with `resume`.
        RankLost: another of the processes that train together has ended.
        FirstRankFailed: another of these, on rank 0, which says it.
    """
    folder, overrides = RunFolder(Path(out)), list(overrides)
    with _together(folder) as ranks:
        if (or_resume or started_again()) and ranks.from_first(lambda: folder.holds_run):
            changes = [override for override in overrides if override.startswith(CHANGEABLE)]
            return _continue(folder, changes, quiet, ranks, asked=(data, recipe, overrides))
        return _begin(folder, data, recipe, overrides, quiet, ranks, budget=budget, overwrite=overwrite)


def resume(out: str | Path, *, overrides: Iterable[str] = (), quiet: bool = False) -> Path:
    """Continue a run from its newest readable checkpoint, as if it had never stopped.

    The number of processes may be another than before: the batch and its order stay, so that results are equal up to
    rounding. With the same number, and on a CPU, they are the same bits.

    Args:
        out: the run's folder.
        overrides: of settings that do not decide what is learned (`own_recipe.CHANGEABLE`).
        quiet: show no progress.

    Raises:
        ValueError: no run there, another process trains into it, its checkpoints are gone, its data set has another
            size now, or a setting that may not change.
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
    if not folder.path.exists():
        raise ValueError(_NO_RUN.format(folder.path))
    with _together(folder) as ranks:
        return _continue(folder, overrides, quiet, ranks)


_NO_RUN = "there is no run in '{}' to continue: name the folder given to --out"
_Asked = tuple[str | Path | None, str | Path | Mapping[str, Any] | Recipe | None, list[str]]


@contextmanager
def _together(folder: RunFolder) -> Iterator[Ranks]:
    """Meet the other processes; no other run may write into the folder meanwhile."""
    end_with_launcher()
    patience = {"patience": AFTER_RESTART} if started_again() else {}
    with process_group() as ranks, ExitStack() as stack:
        ranks.from_first(lambda: stack.enter_context(only_one(folder.path, **patience)))
        yield ranks


def _begin(
    folder: RunFolder,
    data: str | Path | None,
    recipe: str | Path | Mapping[str, Any] | Recipe | None,
    overrides: list[str],
    quiet: bool,
    ranks: Ranks,
    *,
    budget: str | float | None = None,
    overwrite: bool = False,
    again: bool = False,
) -> Path:
    model: Mira | None = None

    def decide() -> Recipe:
        nonlocal model
        resolved, model = begin(
            folder,
            data,
            recipe,
            overrides=overrides,
            budget=None if budget is None else parse_budget(budget),
            overwrite=overwrite,
            quiet=quiet,
            ranks=ranks,
            again=again,
        )
        return resolved

    resolved = ranks.from_first(decide)
    make_deterministic(resolved)
    return _run(folder, resolved, model or empty_model(resolved), None, quiet, ranks)


def _continue(
    folder: RunFolder, overrides: list[str], quiet: bool, ranks: Ranks, *, asked: _Asked | None = None
) -> Path:
    checkpoint = ranks.from_first(lambda: _find(folder, overrides, asked))
    if checkpoint is None:
        if ranks.first:
            say(f"the run in {folder.path} stopped before its first checkpoint: it begins once more", quiet=quiet)
        return _begin(folder, None, folder.recipe, overrides, quiet, ranks, again=True)
    make_deterministic(checkpoint.recipe)
    total = plan(checkpoint.recipe, pictures=checkpoint.pictures).total
    if checkpoint.step >= total and ranks.first:
        say(_finished(folder, checkpoint.recipe.training.epochs), quiet=quiet)
    return _run(folder, checkpoint.recipe, empty_model(checkpoint.recipe), checkpoint, quiet, ranks)


def _find(folder: RunFolder, overrides: list[str], asked: _Asked | None) -> Checkpoint | None:
    """The newest checkpoint, its recipe resolved for this machine, on rank 0; None for a run that had none yet."""
    checkpoint = newest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        if not folder.recipe.is_file():
            raise ValueError(_NO_RUN.format(folder.path))
        if trace := _trace_of_checkpoints(folder):
            raise ValueError(
                f"the checkpoints of the run in '{folder.path}' are gone ({trace}): put them back into "
                f"'{folder.checkpoints}', or begin anew with --overwrite, which deletes what is left of it"
            )
        return None
    if asked is not None and (vain := asked_in_vain(checkpoint.recipe, *asked)):
        warnings.warn(
            f"the run in '{folder.path}' goes on with its own recipe; ignored: {', '.join(vain)}", stacklevel=2
        )
    if edited := keep_recipe_file(folder.recipe, checkpoint.recipe):
        warnings.warn(
            f"'{folder.recipe}' was edited ({', '.join(edited)}): a run that has begun keeps its recipe, so the file "
            "is written anew. For another recipe start a new run in another folder",
            stacklevel=2,
        )
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


def _trace_of_checkpoints(folder: RunFolder) -> str:
    """What shows that a run without checkpoints once had some; empty where nothing does."""
    for path in (folder.checkpoints / BEST, folder.results):
        if path.is_file() and path.stat().st_size:
            return f"but '{path.relative_to(folder.path)}' is there"
    ended = read_ended(folder.ended)
    if ended is not None and ended.step and ended.how in ("finished", "interrupted"):
        return f"it was {ended.how} at step {ended.step}, with a checkpoint"
    for line in reversed(read_metrics(folder.metrics)):
        step, epoch = line["step"], line.get("epoch", 0.0)
        if epoch > 0:
            due = round(load_recipe(folder.recipe).monitor.checkpoint_every * round(step / epoch))
            # At the step itself the line of metrics was written before the checkpoint.
            return f"metrics.jsonl goes to step {step}" if step > max(due, 1) else ""
    return ""


def _run(
    folder: RunFolder, recipe: Recipe, model: Mira, checkpoint: Checkpoint | None, quiet: bool, ranks: Ranks
) -> Path:
    while True:
        try:
            _train(folder, recipe, model, checkpoint, quiet, ranks)
        except Collapsed as stopped:
            recipe, checkpoint = ranks.from_first(partial(mend, folder, recipe, stopped, quiet=quiet))
            model = initial_model(recipe) if checkpoint is None and ranks.first else empty_model(recipe)
        else:
            return folder.path


def _train(
    folder: RunFolder, recipe: Recipe, model: Mira, checkpoint: Checkpoint | None, quiet: bool, ranks: Ranks
) -> None:
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
    images = _cached(source, recipe)
    train(state, images, recipe, schedule, device, skipped=skipped, recorder=recorder, ranks=ranks)


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
    limit = int(data.cache_gigabytes * 2**30)
    return CachedSource(source, cache_folder("pictures"), short_side=data.cache_size, limit=limit, workers=workers)


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
