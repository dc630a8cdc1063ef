"""Open whatever can be evaluated: our runs and exports, published weights of libraries, other people's checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mira.evaluation.floors import random_backbone
from mira.evaluation.results import LEARNED, STUDENT
from mira.evaluation.subject import Subject
from mira.model import create_backbone, default_statistics
from mira.model.exported import is_exported, parse_metadata, read_backbone
from mira.model.foreign.architectures import find_architecture, timm_architecture, timm_data_config
from mira.model.foreign.layouts import RUN
from mira.model.foreign.prototypes import prototype_logits
from mira.model.foreign.torchvision_models import create_torchvision_backbone, find_weights
from mira.model.preprocessing import Preprocessing
from mira.model.weights import put_in, read_weights, select_from
from mira.training.run_folder import empty_model, load_run


@dataclass(frozen=True)
class Opened:
    """What was found behind a name.

    Attributes:
        subject: ready for evaluation.
        layout: how the weights were stored: "run", "export", "timm", "torchvision", "random", or a layout of
            `mira.model.foreign.layouts`.
        branch: which of a checkpoint's networks it is, in its authors' words; empty where there is only one.
        architecture: its name in timm or torchvision.
        left_out: beginnings of all names in the file that are no part of the backbone.
    """

    subject: Subject
    layout: str
    branch: str
    architecture: str
    left_out: tuple[str, ...] = ()


def open_subject(
    checkpoint: str | Path,
    *,
    which: str = "teacher",
    architecture: str | None = None,
    layout: str = "auto",
    size: int | None = None,
    resize: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Subject:
    """Open a backbone for evaluation, in evaluation mode on the CPU.

    Args:
        checkpoint: a run's folder or checkpoint; a weights file (.safetensors, or PyTorch's under any name) of ours or
            of a layout in docs/weights.md; "timm:NAME" or "torchvision:NAME[@WEIGHTS]" for published weights;
            "random:NAME[@SEED]" for an untrained architecture of timm.
        which: "teacher" or "student", where the file has both.
        architecture: of a weights file, a name of timm or torchvision; None to tell it by names and shapes.
        layout: of a weights file; "auto" recognises it by its names.
        size: side of the input in pixels; None for what the weights were made for.
        resize: short side before the centre crop; None for what belongs to the size.
        mean: per channel on the 0-1 scale; None for what the weights expect, ImageNet's where the file does not say.
        std: likewise.

    Raises:
        ValueError: nothing of that name, a file that cannot be read, weights that do not fit (each name is listed), a
            layout or architecture that cannot be told, or an input that the backbone does not take.
    """
    return open_checkpoint(
        checkpoint, which=which, architecture=architecture, layout=layout, size=size, resize=resize, mean=mean, std=std
    ).subject


def open_checkpoint(
    checkpoint: str | Path,
    *,
    which: str = "teacher",
    architecture: str | None = None,
    layout: str = "auto",
    size: int | None = None,
    resize: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Opened:
    """`open_subject`, and what was found: layout, branch, architecture, and what was left out of the file."""
    if which not in {"teacher", "student"}:
        raise ValueError(f"which must be 'teacher' or 'student', not '{which}'")
    kind, _, name = str(checkpoint).partition(":")
    if kind in _LIBRARIES:
        opened = _LIBRARIES[kind](name)
        own_architecture = True
    else:
        opened = _open_path(Path(checkpoint), which, architecture, layout)
        own_architecture = opened.layout in {RUN.name, "export"}
    if own_architecture and (architecture is not None or layout not in {"auto", opened.layout}):
        raise ValueError(
            f"'{checkpoint}' says itself what it holds: architecture and layout are for other people's files"
        )
    preprocessing = _changed(opened.subject.preprocessing, size, resize, mean, std)
    if preprocessing.size != opened.subject.preprocessing.size:
        _check_size(opened, preprocessing)
    opened.subject.backbone.eval().requires_grad_(False)
    return replace(opened, subject=replace(opened.subject, preprocessing=preprocessing))


def _open_path(path: Path, which: str, architecture: str | None, layout: str) -> Opened:
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
        name=path.name.removesuffix(".tar").rpartition(".")[0]
        + (", student" if branches and which == "student" else ""),
        backbone=backbone,
        preprocessing=Preprocessing(network.side, round(network.side * 256 / 224), 3, *default_statistics(3)),
        checkpoint=f"{path.resolve()} ({selection.layout.name}, {selection.branch.name})",
        prototype_logits=prototype_logits(tensors, selection.branch, temperature=selection.layout.temperature),
        untrained=network.build,
    )
    branch = selection.branch.name if branches else ""
    return Opened(subject, selection.layout.name, branch, network.name, selection.left_out)


def _open_run(path: Path, which: str) -> Opened:
    run = load_run(path, which=which)
    subject = Subject(
        name=LEARNED if which == "teacher" else STUDENT,
        backbone=run.backbone,
        preprocessing=run.preprocessing,
        checkpoint=f"{path.resolve()} at step {run.step}",
        prototype_logits=run.prototype_logits,
        untrained=lambda: empty_model(run.recipe).student.backbone,
    )
    return Opened(subject, RUN.name, which, run.recipe.model.backbone.name, RUN.left_out)


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


def _open_timm(name: str) -> Opened:
    network = timm_architecture(name, pretrained=True)
    spec = f"timm:{name}"
    backbone = _fetched(network.build, spec)
    untrained = timm_architecture(name).build
    return Opened(Subject(spec, backbone, _timm_preprocessing(name), spec, untrained=untrained), "timm", "", name)


def _open_torchvision(spec: str) -> Opened:
    name, _, version = spec.partition("@")
    weights = find_weights(name, version or "DEFAULT")
    backbone, classifier = _fetched(lambda: create_torchvision_backbone(name, weights), f"torchvision:{spec}")
    expected = weights.transforms()
    preprocessing = Preprocessing(
        expected.crop_size[0], expected.resize_size[0], 3, tuple(expected.mean), tuple(expected.std)
    )
    subject = Subject(
        name=f"torchvision:{spec}",
        backbone=backbone,
        preprocessing=preprocessing,
        checkpoint=f"torchvision:{name}@{weights.name}",
        untrained=lambda: create_torchvision_backbone(name)[0],
    )
    return Opened(subject, "torchvision", "", name, (classifier,))


def _open_random(spec: str) -> Opened:
    name, _, seed = spec.partition("@")
    if seed and not seed.isdigit():
        raise ValueError(
            f"'random:{spec}': write random:NAME or random:NAME@SEED with a whole number, as in random:{name}@0"
        )
    build = timm_architecture(name).build
    subject = Subject(
        name=f"random:{spec}",
        backbone=random_backbone(build, seed=int(seed or 0)),
        preprocessing=_timm_preprocessing(name),
        checkpoint=f"random:{name}@{int(seed or 0)}",
        untrained=build,
    )
    return Opened(subject, "random", "", name)


_LIBRARIES: dict[str, Callable[[str], Opened]] = {
    "timm": _open_timm,
    "torchvision": _open_torchvision,
    "random": _open_random,
}


def _timm_preprocessing(name: str) -> Preprocessing:
    config = timm_data_config(name)
    channels, _, size = config["input_size"]
    # Rounded as timm's own evaluation does.
    resize = int(size / config["crop_pct"])
    return Preprocessing(size, resize, channels, tuple(config["mean"]), tuple(config["std"]))


def _fetched(build: Callable[[], Any], spec: str) -> Any:
    """`build()`, which may have to download; what a network or its absence raises becomes a sentence."""
    try:
        return build()
    except ValueError:
        raise
    except Exception as error:  # the clients of the hubs raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the weights of '{spec}' are not on this machine and could not be fetched ({reason}). Open it once with a "
            "network, or give the path of a file that you have, with architecture"
        ) from error


def _changed(
    own: Preprocessing,
    size: int | None,
    resize: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Preprocessing:
    """The preprocessing with what was asked for instead; a new size keeps the proportion of size to resize."""
    size = own.size if size is None else size
    if resize is None:
        resize = own.resize * size // own.size
    new = Preprocessing(size, resize, own.channels, tuple(mean or own.mean), tuple(std or own.std))
    if not 1 <= size <= resize:
        raise ValueError(f"1 <= size <= resize is needed, not size {size} and resize {resize}")
    if len(new.mean) != own.channels or len(new.std) != own.channels or min(new.std) <= 0:
        raise ValueError(f"mean and std need one value for each of {own.channels} channels, std positive ones")
    return new


@torch.inference_mode()
def _check_size(opened: Opened, preprocessing: Preprocessing) -> None:
    backbone: nn.Module = opened.subject.backbone.eval()
    try:
        backbone(torch.zeros(1, preprocessing.channels, preprocessing.size, preprocessing.size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{opened.architecture} does not take pictures of {preprocessing.size} pixels ({reason}): leave out size"
        ) from None
