"""What was run, on what, how long: the report's first lines, from a recipe and the run's own numbers."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from mira.report.charts import number
from mira.report.curves import Metrics, latest, mean, training_seconds
from mira.training.checkpoint import Checkpoint
from mira.training.recipe import Recipe
from mira.wording import duration


def subtitle(recipe: Recipe) -> str:
    """One line: architecture, prototypes, pictures."""
    model = recipe.model
    colour = "grey" if model.backbone.channels == 1 else "colour"
    side = recipe.crops.global_crops.size
    return (
        f"{model.backbone.name} with {model.prototypes.count:,} prototypes, pretrained without labels on "
        f"{recipe.data.source} ({colour}, {side} × {side} px)."
    )


def facts(recipe: Recipe, metrics: Metrics, checkpoint: Checkpoint | None, skipped: int) -> tuple[tuple[str, str], ...]:
    """(name, value) pairs; what is not known is left out."""
    training, optimiser, labels = recipe.training, recipe.optimiser, recipe.assignment
    lines: list[tuple[str, str]] = [("Recipe", recipe.name), ("Data", recipe.data.source)]
    if checkpoint is not None:
        lines.append(("Pictures", f"{checkpoint.pictures:,}"))
    lines.append(("Skipped pictures", f"{skipped:,}"))
    epoch, step = latest(metrics, "epoch"), latest(metrics, "step")
    if epoch is not None and step is not None:
        lines.append(("Epochs", f"{number(round(epoch, 1))} of {training.epochs} ({step:,.0f} steps)"))
    seconds = training_seconds(metrics, training.batch_size)
    if seconds is not None and step is not None:
        lines.append(("Training time", duration(seconds)))
        wait = mean(metrics, "data_wait")
        waiting = f", {100 * wait:.0f} % waiting for data" if wait is not None else ""
        lines.append(("Mean speed", f"{number(step * training.batch_size / seconds)} images/s{waiting}"))
    memory = latest(metrics, "gpu_memory")
    if memory is not None:
        lines.append(("Peak GPU memory", f"{memory:.1f} GiB"))
    lines += [
        ("Batch", f"{training.batch_size:,}"),
        ("Views", f"2 global, {recipe.crops.local_crops.count} local"),
        ("Optimiser", f"{optimiser.name}, peak {number(optimiser.learning_rate * training.batch_size / 256)}"),
        ("Labels", labels.summary()),
        ("Temperatures", f"{labels.student_temperature:g} student, {_teacher_temperature(recipe, metrics)} teacher"),
        ("Device", f"{training.device}, {training.precision}"),
        ("Seed", str(training.seed)),
    ]
    finished = latest(metrics, "time")
    if finished is not None:
        lines.append(("Last written", datetime.fromtimestamp(finished).strftime("%d %B %Y, %H:%M").lstrip("0")))
    if checkpoint is not None:
        used = {name: checkpoint.versions[name] for name in ("mira-ssl", "torch") if name in checkpoint.versions}
        lines.append(("Versions", ", ".join(f"{name} {version}" for name, version in used.items())))
    return tuple(lines)


def settings(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """Every setting as (dotted key, value)."""
    return tuple(_flat(recipe.model_dump(mode="json"), ""))


def _teacher_temperature(recipe: Recipe, metrics: Metrics) -> str:
    labels = recipe.assignment
    if labels.target_entropy is None:
        return f"{labels.teacher_temperature:g}"
    now = latest(metrics, "teacher_temperature")
    return f"{labels.teacher_temperature if now is None else now:.3g} (holds {labels.target_entropy:.0%} of log K)"


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
