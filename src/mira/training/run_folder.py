"""A run's folder: where things lie, and how a finished or unfinished run is opened again."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mira.data import PictureSource, open_source, pretraining_split
from mira.model import Mira, Preprocessing
from mira.model.head import PrototypeLogits
from mira.training.boards import IDENTITIES
from mira.training.checkpoint import Checkpoint, checkpoint_paths, newest_checkpoint, read_checkpoint
from mira.training.recipe import Recipe
from mira.training.resolve import preprocessing


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def collapsed(self) -> Path:
        """The metrics of a run before it was mended."""
        return self.path / "collapsed.jsonl"

    @property
    def skipped(self) -> Path:
        """Names of unreadable pictures and why."""
        return self.path / "skipped.txt"

    @property
    def results(self) -> Path:
        """One evaluation a line."""
        return self.path / "results.jsonl"

    @property
    def crops(self) -> Path:
        """The crops of the first batch as the network sees them."""
        return self.path / "crops.png"

    @property
    def checkpoints(self) -> Path:
        """`step-<number>.pt`."""
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        """The page that `mira report` writes."""
        return self.path / "report.html"

    @property
    def ended(self) -> Path:
        """How the run ended, until it goes on."""
        return self.path / "ended.json"

    @property
    def own(self) -> tuple[Path, ...]:
        """All that a run writes: the checkpoints first, and the recipe, without which it is no run, next."""
        logs = (self.metrics, self.collapsed, self.skipped, self.results)
        files = (self.recipe, *logs, self.crops, self.report, self.ended)
        return (self.checkpoints, *files, *(self.path / name for name in (IDENTITIES, "tensorboard", "wandb")))

    @property
    def holds_run(self) -> bool:
        """Whether there is a run to continue: its recipe, or, where somebody removed that, a checkpoint."""
        return self.recipe.is_file() or bool(checkpoint_paths(self.checkpoints))


@dataclass(frozen=True)
class LoadedRun:
    """A run, opened for use.

    Attributes:
        folder: None when a single checkpoint file was opened.
        recipe: resolved.
        step: of the checkpoint.
        backbone: the teacher's (or the student's, where asked for), in evaluation mode on the CPU.
        preprocessing: what the backbone expects of a picture.
        prototype_logits: from features to prototypes, at the teacher's temperature.
        checkpoint: where the weights came from.
    """

    folder: RunFolder | None
    recipe: Recipe
    step: int
    backbone: nn.Module
    preprocessing: Preprocessing
    prototype_logits: PrototypeLogits
    checkpoint: Checkpoint

    def open_data(self, split: str = "auto") -> PictureSource:
        """The pictures the run was trained on, or another split of them."""
        return open_data(self.recipe, split)


def open_data(recipe: Recipe, split: str = "auto") -> PictureSource:
    """The recipe's pictures; split "auto" is the one it trains on."""
    data = recipe.data
    if split == "auto":
        split = data.split
    if split == "auto":
        split = pretraining_split(data.source)
    return open_source(
        data.source,
        split=split,
        labels=data.labels,
        channels=recipe.model.backbone.channels,
        copies_gigabytes=data.cache_gigabytes,
    )


def load_run(path: str | Path, *, which: str = "teacher") -> LoadedRun:
    """Open a run folder at its newest checkpoint, or a checkpoint file.

    Args:
        path: the folder given to `--out`, or one of its `checkpoints/step-*.pt`.
        which: "teacher" (the protocols' default) or "student".

    Raises:
        ValueError: there is no run, or its checkpoints cannot be read.
    """
    path = Path(path)
    folder = RunFolder(path) if path.is_dir() else None
    if folder is not None:
        checkpoint = newest_checkpoint(folder.checkpoints)
        if checkpoint is None:
            raise ValueError(f"'{path}' holds no checkpoint of a run: name the folder given to --out")
    elif path.is_file():
        checkpoint = read_checkpoint(path)
    else:
        raise ValueError(f"there is no run '{path}'")
    if which not in {"teacher", "student"}:
        raise ValueError(f"which must be 'teacher' or 'student', not '{which}'")
    recipe = checkpoint.recipe
    model = empty_model(recipe)
    centre = checkpoint.label_state.get("centre")
    try:
        model.load_state_dict(checkpoint.model)
        if centre is not None and centre.shape != model.prototypes.weight.shape[:1]:
            raise ValueError(f"centre has shape {list(centre.shape)}")
        held = checkpoint.label_state.get("temperature")
        if held is not None and not (held.numel() == 1 and 0 < float(held) < math.inf):
            raise ValueError(f"the teacher temperature is {held.tolist()}")
    except (RuntimeError, ValueError) as error:  # of another timm, with other names of layers, or of nobody
        raise ValueError(f"the weights in '{path}' do not fit its own recipe: {_first_lines(error)}") from None
    model.eval().requires_grad_(False)
    network = model.teacher if which == "teacher" else model.student
    temperature = recipe.assignment.teacher_temperature if held is None else float(held)
    prototype_logits = PrototypeLogits(
        network.projector, model.prototypes.weight, temperature=temperature, centre=centre
    ).eval()
    return LoadedRun(
        folder, recipe, checkpoint.step, network.backbone, preprocessing(recipe), prototype_logits, checkpoint
    )


def initial_model(recipe: Recipe) -> Mira:
    """The model at the start of a run: a function of the resolved recipe, and of published weights where it names some.

    Raises:
        ValueError: the backbone cannot be built, or does not take crops of the recipe's sizes.
    """
    torch.manual_seed(recipe.training.seed)
    sizes = [view.size for view in recipe.crops.views]
    return Mira(recipe.model, crop_size=sizes[0], other_sizes={*sizes, preprocessing(recipe).size})


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:500]


def empty_model(recipe: Recipe) -> Mira:
    """The recipe's model for weights that are loaded next: nothing is fetched."""
    settings = recipe.model.model_copy(update={"backbone": recipe.model.backbone.untrained()})
    return Mira(settings, crop_size=recipe.crops.global_crops.size)
