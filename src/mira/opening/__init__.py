"""Open whatever can be evaluated: our runs and exports, published weights of libraries, other people's checkpoints."""

from pathlib import Path

from mira.evaluation.subject import Subject
from mira.model.foreign.layouts import RUN
from mira.opening.files import open_path
from mira.opening.libraries import LIBRARIES
from mira.opening.opened import Opened, change_preprocessing

__all__ = ["Opened", "open_checkpoint", "open_subject"]


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
    interpolation: str | None = None,
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
        interpolation: "bicubic" or "bilinear", of the resizing; None for what the weights were published with.

    Raises:
        ValueError: nothing of that name, a file that cannot be read, weights that do not fit (each name is listed), a
            layout or architecture that cannot be told, or an input that the backbone does not take.
    """
    return open_checkpoint(
        checkpoint,
        which=which,
        architecture=architecture,
        layout=layout,
        size=size,
        resize=resize,
        mean=mean,
        std=std,
        interpolation=interpolation,
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
    interpolation: str | None = None,
) -> Opened:
    """`open_subject`, and what was found: layout, branch, architecture, and what was left out of the file."""
    if which not in {"teacher", "student"}:
        raise ValueError(f"which must be 'teacher' or 'student', not '{which}'")
    kind, _, name = str(checkpoint).partition(":")
    if kind in LIBRARIES:
        opened = LIBRARIES[kind](name)
        own_architecture = True
    else:
        opened = open_path(Path(checkpoint), which, architecture, layout)
        own_architecture = opened.layout in {RUN.name, "export"}
    if own_architecture and (architecture is not None or layout not in {"auto", opened.layout}):
        raise ValueError(
            f"'{checkpoint}' says itself what it holds: architecture and layout are for other people's files"
        )
    opened.subject.backbone.eval().requires_grad_(False)
    return change_preprocessing(opened, size=size, resize=resize, mean=mean, std=std, interpolation=interpolation)
