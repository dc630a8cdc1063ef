"""Training a detector: SGD over a fixed number of steps, deterministic on the CPU and resumable."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD
from torch.utils.data import Dataset

from mira.data import UnreadablePicture, batch_indices, steps_per_epoch
from mira.data.uniforms import hashed, uniforms
from mira.data.workers import BatchLoader
from mira.evaluation.detection.data import DetectionSet
from mira.evaluation.detection.settings import DetectionSettings
from mira.evaluation.saved_state import SavedState

Example = tuple[Float[Tensor, "C H W"], dict[str, Tensor]]
"""A picture in [0, 1], and its boxes, classes and masks as torchvision's detectors take them."""


class Examples(Dataset[list[Example]]):
    """The batch of each step: a function of the seed and the step alone.

    An epoch is a permutation of the pictures with an object, drawn from (seed, epoch) and cut into whole batches; what
    is left over, less than a batch, is dropped, other pictures in every epoch. A picture is turned over, left to right,
    half of the time, drawn from (seed, epoch, picture).

    Raises:
        ValueError: no object to learn from, or fewer pictures than a batch has.
    """

    def __init__(self, source: DetectionSet, *, batch_size: int, seed: int, masks: bool) -> None:
        self._source, self._batch_size, self._seed, self._masks = source, batch_size, seed, masks
        self._usable = source.usable()
        if not len(self._usable):
            raise ValueError(f"{source.origin} has no object to learn from: all are crowds, or there are none.")
        self._per_epoch = steps_per_epoch(len(self._usable), batch_size)

    def __len__(self) -> int:
        """The pictures that have something to learn from."""
        return len(self._usable)

    def __getitem__(self, step: int) -> list[Example]:
        rows = batch_indices(len(self._usable), self._batch_size, seed=self._seed, step=step)
        pictures = self._usable[rows]
        flips = uniforms(self._seed, step // self._per_epoch, pictures, draws=1)[:, 0] < 0.5
        return [self._example(int(index), bool(flip)) for index, flip in zip(pictures, flips, strict=True)]

    def _example(self, index: int, flip: bool) -> Example:
        try:
            pixels = self._source.read(index)
        except UnreadablePicture as error:
            raise ValueError(
                f"a picture of {self._source.origin} cannot be read ({error}): mend it or take it out."
            ) from error
        picture = torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)
        boxes, labels = map(torch.from_numpy, self._source.boxes(index))
        target = {"boxes": boxes, "labels": labels}
        if self._masks:
            target["masks"] = torch.from_numpy(self._source.masks(index))
        if flip:
            picture = picture.flip(2)
            target["boxes"] = torch.stack(
                [picture.shape[2] - boxes[:, 2], boxes[:, 1], picture.shape[2] - boxes[:, 0], boxes[:, 3]], dim=1
            )
            if self._masks:
                target["masks"] = target["masks"].flip(2)
        return picture, target


def train_detector(
    model: nn.Module,
    examples: Examples,
    settings: DetectionSettings,
    *,
    seed: int,
    device: torch.device,
    workers: int = 0,
    state: SavedState,
    save_every: int,
    report: Callable[[int], None] = lambda step: None,
) -> None:
    """Train in place; afterwards the model is in evaluation mode and ready for test pictures.

    Args:
        state: where to go on from, and what the state is written to every `save_every` steps and at the end.
        report: told after every step how many were taken.

    Raises:
        ValueError: the loss is no finite number, or a picture does not fit its annotations.
    """
    model.to(device)
    frozen = settings.normalisation == "frozen"
    optimiser = SGD(
        _parameter_groups(model, settings.weight_decay, frozen), settings.learning_rate, momentum=settings.momentum
    )
    first = 0
    if (before := state.read()) is not None:
        first = before["step"]
        model.load_state_dict(before["model"])
        optimiser.load_state_dict(before["optimiser"])
    _train_mode(model, frozen)
    with _draws_of_its_own(device):
        steps = range(first, settings.iterations)
        for step, batch in zip(steps, BatchLoader(examples, steps, workers=workers), strict=True):
            # Boxes to learn from and sizes of pictures are drawn by torchvision from the global generator.
            torch.manual_seed(int(hashed(seed, step)))
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, settings)
            pictures = [picture.to(device) for picture, _ in batch]
            targets = [{name: value.to(device) for name, value in target.items()} for _, target in batch]
            loss = sum(model(pictures, targets).values())
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the loss is {loss.item()} after {step} steps: lower the learning rate "
                    f"({settings.learning_rate:g} for {settings.batch_size} pictures to a step), or warm up longer."
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            done = step + 1
            if done % save_every == 0 or done == settings.iterations:
                state.write({"step": done, "model": model.state_dict(), "optimiser": optimiser.state_dict()})
            report(done)
        if not frozen and settings.iterations:
            _measure_statistics(model, examples, settings, seed=seed, device=device, workers=workers)
    model.eval()
    model.transform.min_size = (settings.test_size,)  # type: ignore[union-attr]


def learning_rate(step: int, settings: DetectionSettings) -> float:
    """The rate of a step: a linear warm-up from a thousandth, then a tenth after each drop."""
    rate = settings.learning_rate * 0.1 ** sum(step >= share * settings.iterations for share in settings.drops)
    if step < settings.warmup:
        rate *= 0.001 + 0.999 * step / settings.warmup
    return rate


def _parameter_groups(model: nn.Module, weight_decay: float, frozen: bool) -> list[dict[str, object]]:
    """Weights, and those of normalisation layers, which do not decay and may be frozen."""
    of_norms = [
        parameter
        for module in model.modules()
        if isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm)
        for parameter in module.parameters(recurse=False)
    ]
    if frozen:
        for parameter in of_norms:
            parameter.requires_grad_(False)
    known = {id(parameter) for parameter in of_norms}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups: list[dict[str, object]] = [{"params": others, "weight_decay": weight_decay}]
    return groups if frozen else [*groups, {"params": of_norms, "weight_decay": 0.0}]


def _train_mode(model: nn.Module, frozen: bool) -> None:
    model.train()
    if frozen:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


@torch.no_grad()
def _measure_statistics(
    model: nn.Module,
    examples: Examples,
    settings: DetectionSettings,
    *,
    seed: int,
    device: torch.device,
    workers: int,
) -> None:
    """Means and variances of batch normalisation over many batches ("precise BN", as in MoCo's configuration).

    Running averages lag behind the weights and forget all but the last batches.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms or not settings.precise_batches:
        return
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the plain average over all batches
    steps = range(settings.iterations, settings.iterations + settings.precise_batches)
    for step, batch in zip(steps, BatchLoader(examples, steps, workers=workers), strict=True):
        torch.manual_seed(int(hashed(seed, step)))
        pictures, _ = model.transform([picture.to(device) for picture, _ in batch])  # type: ignore[operator]
        model.backbone(pictures.tensors)  # type: ignore[operator]
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum


@contextmanager
def _draws_of_its_own(device: torch.device) -> Iterator[None]:
    """The global generators afterwards are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
