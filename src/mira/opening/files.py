"""Files on this machine: our runs and exports, and other people's checkpoints."""

import hashlib
import json
from pathlib import Path
from typing import Any

from mira.evaluation.subject import Subject, Value
from mira.model import create_backbone, default_statistics
from mira.model.exported import is_exported, parse_metadata, read_backbone
from mira.model.foreign.architectures import find_architecture
from mira.model.foreign.layouts import RUN
from mira.model.foreign.prototypes import prototype_logits
from mira.model.preprocessing import Preprocessing
from mira.model.weights import put_in, read_weights, select_from
from mira.opening.opened import Opened
from mira.training.run_folder import LoadedRun, empty_model, load_run

_NO_MATTER: dict[str, Any] = {
    "name": True,
    "description": True,
    "data": {"max_unreadable", "cache_gigabytes", "worker_timeout"},
    "training": {"seed", "device", "workers"},
    "monitor": True,
}
"""Settings that may differ between runs that only repeat each other with another seed."""


def open_path(path: Path, which: str, architecture: str | None, layout: str) -> Opened:
    """A run's folder, a checkpoint or a weights file; raises ValueError as `open_subject`."""
    if path.is_dir():
        return _open_run(path, which)
    if not path.is_file():
        raise ValueError(
            f"there is no run and no weights file '{path}'. Published weights are timm:NAME or "
            "torchvision:NAME[@WEIGHTS], an untrained network is random:NAME"
        )
    tensors, metadata = read_weights(path)
    if is_exported(metadata):
        return _open_export(path, metadata)
    selection = select_from(path, tensors, layout=layout, which=which)
    if selection.layout is RUN:
        return _open_run(path, which)
    network = find_architecture(selection, architecture, path)
    backbone = network.build()
    selection = put_in(backbone, selection, path, classifier=network.classifier)
    branches = selection.layout.teacher is not selection.layout.student
    subject = Subject(
        # Authors evaluate now the one, now the other: the name says which it is.
        name=Path(path.name.removesuffix(".tar")).stem + (f", {selection.branch.name}" if branches else ""),
        backbone=backbone,
        preprocessing=Preprocessing(
            network.side,
            round(network.side * 256 / 224),
            3,
            *default_statistics(3),
            interpolation=selection.layout.interpolation,
        ),
        checkpoint=f"{path.resolve()} ({selection.layout.name}, {selection.branch.name})",
        prototype_logits=prototype_logits(tensors, selection.branch, temperature=selection.layout.temperature),
        untrained=network.build,
    )
    branch = selection.branch.name if branches else ""
    return Opened(subject, selection.layout.name, branch, network.name, selection.left_out)


def _open_run(path: Path, which: str) -> Opened:
    run = load_run(path, which=which)
    subject = Subject(
        name=run.recipe.assignment.title + ("" if which == "teacher" else ", student"),
        backbone=run.backbone,
        preprocessing=run.preprocessing,
        checkpoint=f"{path.resolve()} at step {run.step}",
        prototype_logits=run.prototype_logits,
        untrained=lambda: empty_model(run.recipe).student.backbone,
        pretraining=_pretraining(run),
    )
    return Opened(subject, RUN.name, which, run.recipe.model.backbone.name, RUN.left_out)


def _pretraining(run: LoadedRun) -> dict[str, Value]:
    """What runs that differ in their seed alone have in common, and the seed."""
    settings = json.dumps(run.recipe.model_dump(mode="json", exclude=_NO_MATTER), sort_keys=True)
    digest = hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()
    return {"recipe": digest, "seed": run.recipe.training.seed, "step": run.step}


def _open_export(path: Path, metadata: dict[str, str]) -> Opened:
    settings, crop_size, preprocessing = parse_metadata(metadata, path)
    subject = Subject(
        name=path.stem,
        backbone=read_backbone(path)[0],
        preprocessing=preprocessing,
        checkpoint=str(path.resolve()),
        untrained=lambda: create_backbone(settings, crop_size=crop_size),
    )
    return Opened(subject, "export", "", settings.name)
