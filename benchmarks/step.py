"""A training step beside a plain eager one: crop by crop, 30 elementwise iterations, loops over tensors.

`python -m benchmarks.step`. Both steps start from the same model and see the same pictures; they take turns. On a CUDA
device the recipe is the published one at batch 256 in bfloat16, otherwise that of `imagenette-cpu` in float32.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from mira.model import Mira, update_teacher
from mira.training import Recipe, load_recipe
from mira.training.optimiser import create_optimiser
from mira.training.resolve import plan
from mira.training.step import StepValues, train_step, values_at

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "RTX 4090": 165e12}
"""Dense bfloat16 matrix multiplications per second times two, from the makers' data sheets."""


def pictures(recipe: Recipe, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [view.size for view in recipe.crops.views]
    views = [torch.randn(recipe.training.batch_size, 3, size, size, generator=generator) for size in sizes]
    return [view.to(device) for view in views]


class PlainStep:
    """What one writes first."""

    def __init__(self, model: Mira, recipe: Recipe, values: StepValues) -> None:
        self.model, self.recipe, self.values = model.to(memory_format=torch.contiguous_format), recipe, values
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.buffers = [torch.zeros_like(p) for p in self.parameters]

    def __call__(self, views: list[Tensor]) -> float:
        model, settings, values = self.model, self.recipe.assignment, self.values
        half = self.recipe.training.precision == "bfloat16"
        with torch.no_grad():
            for slow, quick in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
                slow.mul_(values.momentum).add_(quick, alpha=1 - values.momentum)
        with torch.autocast(views[0].device.type, dtype=torch.bfloat16, enabled=half):
            student = [model.student([view], "single")[0][0] for view in views]
            with torch.no_grad():
                teacher = [model.teacher([view], "single")[0][0] for view in views[:2]]
        predictions = [torch.log_softmax(model.prototypes(s) / settings.student_temperature, -1) for s in student]
        loss = torch.zeros((), device=views[0].device)
        for target, projection in enumerate(teacher):
            with torch.no_grad():
                labels = thirty(model.prototypes(projection) / settings.teacher_temperature, values.beta)
            others = [p for place, p in enumerate(predictions) if place != target]
            loss = loss - sum((labels * p).sum(-1).mean() for p in others) / len(others) / len(teacher)
        for p in self.parameters:
            p.grad = None
        loss.backward()
        with torch.no_grad():
            for p, buffer in zip(self.parameters, self.buffers, strict=True):
                assert p.grad is not None
                direction = p.grad
                if p.ndim > 1:
                    direction = direction + 1e-6 * p
                    ratio = 0.001 * p.norm() / direction.norm()
                    direction = direction * ratio
                buffer.mul_(0.9).add_(direction)
                p.sub_(values.learning_rate * buffer)
        return float(loss.detach())  # as loops that print every step do


def thirty(logits: Tensor, beta: float) -> Tensor:
    log_u = torch.zeros_like(logits[:1])
    for _ in range(31):
        labels = torch.softmax((logits - beta * log_u) / (1 - beta), -1)
        log_u = beta * log_u + (1 - beta) * labels.mean(0, keepdim=True).log()
    return torch.softmax((logits - beta * log_u) / (1 - beta), -1)


def our_step(model: Mira, recipe: Recipe, values: StepValues) -> Callable[[list[Tensor]], None]:
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser: Optimizer = create_optimiser(model, recipe.optimiser)

    def step(views: list[Tensor]) -> None:
        train_step(
            model, optimiser, [view.contiguous(memory_format=torch.channels_last) for view in views], values, recipe
        )

    return step


def flops(model: Mira, views: list[Tensor]) -> int:
    """Of a step: the student's forward and backward over all crops, the teacher's forward over the global ones."""
    counter = FlopCounterMode(display=False)
    with counter:
        torch.stack(model.student(views)[0]).sum().backward()
        with torch.no_grad():
            model.teacher(views[:2])
        update_teacher(model, 1.0)
    return int(counter.get_total_flops())


def main(batch_size: int | None = None, steps: int = 7) -> None:
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    name = "imagenet-resnet50-400ep-multicrop" if gpu else "imagenette-cpu"
    overrides = [
        f"training.batch_size={batch_size or (256 if gpu else 64)}",
        "training.crop_batching=by_size",
        f"training.precision={'bfloat16' if gpu else 'float32'}",
        "optimiser.name=lars",
    ]
    recipe = load_recipe(name, overrides)
    values = values_at(20, recipe, plan(recipe, pictures=10_000))
    torch.manual_seed(0)
    model = Mira(recipe.model, crop_size=recipe.crops.global_crops.size).to(device).train()
    views = pictures(recipe, device)
    work = flops(copy.deepcopy(model), [view[:2] for view in views]) / 2 * recipe.training.batch_size
    runs = {
        "plain eager step": PlainStep(copy.deepcopy(model), recipe, values),
        "train_step": our_step(model, recipe, values),
    }
    where = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    crops = ", ".join(str(view.shape[-1]) for view in views)
    print(f"step: {name}, {recipe.model.backbone.name}, batch {recipe.training.batch_size}, crops {crops}; {where}")
    times: dict[str, list[float]] = {key: [] for key in runs}
    for round_ in range(steps + 2):
        for key, run in runs.items():
            start = time.perf_counter()
            run(views)
            if gpu:
                torch.cuda.synchronize()
            if round_ > 1:
                times[key].append(time.perf_counter() - start)
    base = statistics.median(times["plain eager step"])
    peak = next((value for key, value in PEAKS.items() if gpu and key in where), None)
    for key, samples in times.items():
        seconds = statistics.median(samples)
        share = f", {work / seconds / peak:.0%} of the matrix peak" if peak else ""
        print(
            f"  {key:<18} {1e3 * seconds:9.1f} ms  {recipe.training.batch_size / seconds:8.1f} pictures/s"
            f"  {base / seconds:5.2f} x{share}"
        )
    if gpu:
        print(f"  peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB (both steps)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args()
    main(options.batch_size, options.steps)
