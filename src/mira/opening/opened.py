"""What was found behind a name, and the input that it is to be given."""

from dataclasses import dataclass, replace
from typing import cast, get_args

import torch
from torch import nn

from mira.evaluation.subject import Subject
from mira.model.preprocessing import LARGEST_SIDE, Interpolation, Preprocessing
from mira.wording import counted


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


def change_preprocessing(
    opened: Opened,
    *,
    size: int | None,
    resize: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    interpolation: str | None,
) -> Opened:
    """The same with another input; None keeps what the weights were made for.

    A new size keeps the proportion of size to resize.

    Raises:
        ValueError: values that contradict each other, or a size that the backbone does not take.
    """
    own = opened.subject.preprocessing
    size = own.size if size is None else size
    if resize is None:
        resize = own.resize * size // own.size
    if interpolation not in (None, *get_args(Interpolation)):
        raise ValueError(f"interpolation must be {' or '.join(get_args(Interpolation))}, not '{interpolation}'")
    new = replace(
        own,
        size=size,
        resize=resize,
        mean=tuple(mean or own.mean),
        std=tuple(std or own.std),
        interpolation=cast(Interpolation, interpolation or own.interpolation),
    )
    if not 1 <= size <= resize <= LARGEST_SIDE:
        raise ValueError(
            f"1 <= size <= resize <= {LARGEST_SIDE} pixels is needed, not size {str(size)[:20]} and resize "
            f"{str(resize)[:20]}"
        )
    if len(new.mean) != own.channels or len(new.std) != own.channels or not min(new.std) > 0:
        raise ValueError(
            f"mean and std need one value for each of {counted(own.channels, 'channel')}, std positive ones"
        )
    if size != own.size:
        _check_size(opened, new)
    return replace(opened, subject=replace(opened.subject, preprocessing=new))


@torch.inference_mode()
def _check_size(opened: Opened, preprocessing: Preprocessing) -> None:
    backbone: nn.Module = opened.subject.backbone.eval()
    try:
        backbone(torch.zeros(1, preprocessing.channels, preprocessing.size, preprocessing.size))
    except Exception as error:  # whatever an architecture raises for a size
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{opened.architecture} does not take pictures of {preprocessing.size} pixels ({reason}): leave out size"
        ) from None
