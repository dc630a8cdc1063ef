"""Let a collapsed run go on once: back to the last good checkpoint, with what helps against the collapse."""

import shutil
from dataclasses import replace

import torch

from mira.files import write_text
from mira.training.checkpoint import Checkpoint, checkpoint_paths, read_checkpoint, save_checkpoint
from mira.training.collapse import Collapsed
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
    collapse = stopped.collapse
    if recipe.monitor.on_collapse != "mend" or not collapse.remedies:
        raise stopped
    mended = load_recipe(recipe.model_dump(), [*collapse.remedies, "monitor.on_collapse=stop"])
    shutil.copyfile(folder.metrics, folder.collapsed)
    for path in reversed(checkpoint_paths(folder.checkpoints)):  # newest first: a kill leaves a run without a gap
        if read_checkpoint(path).step > collapse.last_good:
            path.unlink()
    good = checkpoint_paths(folder.checkpoints)
    checkpoint = read_checkpoint(good[-1]) if good else None
    step = checkpoint.step if checkpoint else 0
    note = f"{collapse.sentence}; it went on from step {step} with {' '.join(collapse.remedies)}."
    mended = mended.model_copy(update={"description": f"{recipe.description} {note[0].upper()}{note[1:]}".strip()})
    if checkpoint is not None:
        state = mended.assignment.initial_state(mended.model.prototypes.count, torch.device("cpu"))
        checkpoint = replace(checkpoint, recipe=mended, label_state=state | checkpoint.label_state)
        save_checkpoint(folder.checkpoints, checkpoint)
    MetricsLog(folder.metrics, step=step).close()  # what it holds beyond is in the copy
    write_text(folder.recipe, recipe_to_yaml(mended))
    where = f"goes back to step {step}" if step else "begins again"
    say(f"{note.partition(';')[0]}: the run {where} with {' '.join(collapse.remedies)}", quiet=quiet)
    return mended, checkpoint
