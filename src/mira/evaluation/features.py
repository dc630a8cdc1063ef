"""Frozen features: the one pass over pictures that every protocol starts from."""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from mira.data import PictureSource, eval_loader
from mira.model.preprocessing import Preprocessing, normalise
from mira.wording import counted

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, repr=False)
class Features:
    """Features of the readable pictures of a source, in the order of the source.

    Attributes:
        features: float32, as the backbone gave them (not normalised), on the CPU.
        labels: class numbers, or None where the source has none.
        indices: which picture of the source each row is.
        keys: the pictures' names.
        unreadable: (key, reason) of every picture that could not be read and has no row.
        classes: their names, by class number; empty without labels.
    """

    features: Float[Tensor, "N D"]
    labels: Int64[Tensor, " N"] | None
    indices: Int64[Tensor, " N"]
    keys: list[str]
    unreadable: list[tuple[str, str]]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        rows, width = self.features.shape
        parts = [counted(rows, "image"), f"{counted(width, 'number')} each"]
        parts += [counted(len(self.classes), "class", "classes")] if self.classes else []
        parts += [f"{len(self.unreadable)} unreadable"] if self.unreadable else []
        return f"Features({', '.join(parts)})"

    def to(self, device: str | torch.device) -> "Features":
        """The same on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, features=self.features.to(device), labels=labels)

    def rows(self, chosen: Int64[Tensor, " M"]) -> "Features":
        """The chosen rows, in the order asked for."""
        return replace(
            self,
            features=self.features[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            indices=self.indices[chosen],
            keys=[self.keys[row] for row in chosen.tolist()],
        )


@contextmanager
def _frozen(backbone: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode on `device`; afterwards every module's mode and the device are as they were."""
    modes = [(module, module.training) for module in backbone.modules()]
    home = next((tensor.device for tensor in backbone.state_dict().values()), device)
    try:
        backbone.eval().to(device)
        yield
    finally:
        backbone.to(home)
        for module, training in modes:
            module.training = training


def every(device: str | torch.device) -> list[torch.device]:
    """The devices that share a pass over pictures: for "cuda" without a number all GPUs there are, else the one."""
    device = torch.device(device)
    if str(device) == "cuda":
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [device]


def extract_features(
    backbone: nn.Module,
    source: PictureSource,
    *,
    preprocessing: Preprocessing,
    device: str | torch.device | Sequence[str | torch.device] = "cpu",
    batch_size: int = 256,
    workers: int = 0,
    precision: Precision = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Run every picture of `source` once through the frozen backbone.

    The backbone is in evaluation mode meanwhile and is left exactly as it was found: weights, buffers,
    device and the mode of each of its modules.

    Args:
        backbone: maps float [B, C, S, S] to [B, D].
        preprocessing: size, resize, mean and std that the backbone was trained with.
        device: one, or several (as `every` gives them), each with a copy of the backbone: batches go to them in turn.
        batch_size: pictures at a time on a device.
        workers: processes that read pictures.
        precision: "float32", or autocast to "bfloat16" or "float16"; the features are float32 in any case.
        progress: called with (pictures done, pictures in all) after every batch.

    Raises:
        ValueError: the source is empty, none of its pictures can be read, or the backbone's output is no
            [B, D].
    """
    total = len(source)
    if total == 0:
        raise ValueError(f"{source.name} has no pictures to evaluate: name a folder or a split that has some.")
    devices = [torch.device(one) for one in ([device] if isinstance(device, str | torch.device) else device)]
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    rows: Tensor | None = None
    indices = torch.empty(total, dtype=torch.int64)
    unreadable: list[tuple[str, str]] = []
    done = 0
    under_way: deque[tuple[slice, Tensor]] = deque()
    loader = eval_loader(
        source,
        size=preprocessing.size,
        resize=preprocessing.resize,
        interpolation=preprocessing.interpolation,
        batch_size=batch_size,
        workers=workers,
    )
    with _frozen(backbone, devices[0]):
        replicas = [backbone, *(copy.deepcopy(backbone).to(other) for other in devices[1:])]
        for number, batch in enumerate(loader):
            for index, line in batch.unreadable:
                unreadable.append((source.key(index), line.partition("\t")[2] or line))
            count = len(batch.indices)
            if count:
                turn = number % len(devices)
                output = _forward(replicas[turn], batch.pictures.to(devices[turn]), preprocessing, dtype)
                if rows is None:
                    # Made outside inference mode, so that the result may be trained on (a linear probe).
                    rows = torch.empty(total, output.shape[1])
                under_way.append((slice(done, done + count), output))
                if len(under_way) > len(devices):  # a GPU works on while the batch before is fetched
                    _fetch(under_way, rows)
                indices[done : done + count] = batch.indices
                done += count
            if progress is not None:
                progress(done + len(unreadable), total)
        while rows is not None and under_way:
            _fetch(under_way, rows)
    if rows is None:
        raise ValueError(
            f"none of the {total} pictures of {source.name} can be read; the first: {': '.join(unreadable[0])}."
        )
    if done < total:
        rows, indices = rows[:done], indices[:done]
    labels = None if source.labels is None else torch.as_tensor(source.labels)[indices]
    keys = [source.key(index) for index in indices.tolist()]
    return Features(rows, labels, indices, keys, unreadable, tuple(source.classes))


def _fetch(under_way: deque[tuple[slice, Tensor]], rows: Float[Tensor, "N D"]) -> None:
    """Bring the oldest output into its rows; waits for its device."""
    where, output = under_way.popleft()
    rows[where] = output.cpu()


@torch.inference_mode()
def _forward(
    backbone: nn.Module, pictures: UInt8[Tensor, "B C S S"], preprocessing: Preprocessing, dtype: torch.dtype
) -> Float[Tensor, "B D"]:
    channels = preprocessing.channels
    if pictures.shape[1] != channels:
        raise ValueError(
            f"the pictures have {pictures.shape[1]} channel(s) and the backbone expects {channels}: "
            f"open the source with channels={channels}."
        )
    inputs = normalise(pictures, preprocessing.mean, preprocessing.std)
    with torch.autocast(pictures.device.type, dtype=dtype, enabled=dtype is not torch.float32):
        output = backbone(inputs)
    if not isinstance(output, Tensor) or output.ndim != 2:
        found = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the backbone gives {found}, not pooled features [B, D]: create it with num_classes=0 and pooling."
        )
    return output.float()
