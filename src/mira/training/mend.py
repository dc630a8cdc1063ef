"""Let a collapsed run go on once: back to the last good checkpoint, with what helps against the collapse."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from mira.files import write_text
from mira.training.checkpoint import (
    Checkpoint,
    checkpoint_paths,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
    step_of,
)
from mira.training.collapse import Collapsed
from mira.training.keeper import BEST
from mira.training.metrics import MetricsLog
from mira.training.progress import say
from mira.training.reading import load_recipe, recipe_to_yaml
from mira.training.recipe import Recipe
from mira.training.run_folder import RunFolder


def mend(folder: RunFolder, recipe: Recipe, stopped: Collapsed, *, quiet: bool) -> tuple[Recipe, Checkpoint | None]:
    """Change a run's recipe and take it back; called on rank 0 alone, while nothing else writes to its folder.

    The metrics so far are kept as `collapsed.jsonl`; what happened stands in the recipe's description. The new recipe
    says to stop at the next collapse, so a run is mended once. Killed in between, the run is mended when resumed.

    Returns:
        The recipe and the checkpoint to go on with; None to begin at step 0.

    Raises:
        Collapsed: `stopped` again, where the recipe says to stop or nothing is known to help.
    """
    collapse, remedies = stopped.collapse, " ".join(stopped.collapse.remedies)
    # Another method is another experiment: that is for the person to decide.
    if recipe.monitor.on_collapse != "mend" or not remedies or "assignment.name=" in remedies:
        raise stopped
    checkpoint = newest_checkpoint(folder.checkpoints, last=collapse.last_good)
    step = checkpoint.step if checkpoint else 0
    mended = load_recipe(recipe.model_dump(), [*collapse.remedies, "monitor.on_collapse=stop"])
    sentence = f"{collapse.sentence[0].upper()}{collapse.sentence[1:]}"
    note = f"{recipe.description} {sentence}. It went on from step {step} with {remedies}."
    mended = mended.model_copy(update={"description": note.strip()})
    shutil.copyfile(folder.metrics, folder.collapsed)
    if checkpoint is not None:
        state = mended.assignment.initial_state(mended.model.prototypes.count, torch.device("cpu"))
        checkpoint = replace(checkpoint, recipe=mended, label_state=state | checkpoint.label_state)
        save_checkpoint(folder.checkpoints, checkpoint)
    write_text(folder.recipe, recipe_to_yaml(mended))
    MetricsLog(folder.metrics, step=step).close()  # what it holds beyond is in the copy
    # Last of all: whoever kills this before finds the collapsed run, which collapses and is mended again.
    best = folder.checkpoints / BEST
    if best.is_file() and _beyond(best, step):
        best.unlink()
    for path in checkpoint_paths(folder.checkpoints):
        if step_of(path) > step:
            path.unlink()
    say(f"{sentence}. The run {f'goes back to step {step}' if step else 'begins again'} with {remedies}", quiet=quiet)
    return mended, checkpoint


def _beyond(path: Path, step: int) -> bool:
    """Whether a checkpoint is of a later step, or of nobody knows which."""
    try:
        return read_checkpoint(path).step > step
    except ValueError:
        return True
