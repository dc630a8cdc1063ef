"""The whole recipe against six recorded steps of the published training, in float64."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mira.assignment.information import entropy, marginal_entropy
from mira.model import Mira
from mira.training.optimiser import create_optimiser
from mira.training.recipe import Recipe
from mira.training.resolve import plan
from mira.training.step import train_step, values_at

FOLDER = Path(__file__).parent / "parity"
RECORD = json.loads((FOLDER / "trajectory.json").read_text())
SETTINGS = RECORD["settings"]


def parity_recipe(crop_batching: str = "single") -> Recipe:
    s = SETTINGS
    return Recipe.model_validate(
        {
            "model": {
                "backbone": {"name": s["arch"], "stem": "standard"},
                "head": {"hidden": s["hid"], "layers": 2, "width": s["d"]},
                "prototypes": {"count": s["K"], "freeze_epochs": s["freeze"]},
            },
            "assignment": {
                "beta": [s["b0"], s["b1"]],
                "teacher_temperature": s["tau_t"],
                "student_temperature": s["tau_s"],
                "max_iterations": s["iters"],
                "accelerate": False,
            },
            "teacher": {"momentum": [s["m0"], s["m1"]]},
            "optimiser": {
                "learning_rate": s["lr"] * 256 / s["B"],
                "warmup_epochs": s["warm"],
                "warmup_from": s["wlr"] / s["lr"],
                "weight_decay": s["wd"],
            },
            "training": {
                "epochs": s["epochs"],
                "batch_size": s["B"],
                "crop_batching": crop_batching,
                "precision": "float32",
                "channels_last": False,
            },
            "crops": {"global_crops": {"size": 32}, "local_crops": {"size": 16, "count": s["nloc"]}},
        }
    )


def hashed_start(name: str, shape: torch.Size) -> torch.Tensor:
    """Start values from the tensor's name, in unsigned 64-bit integers (see parity/README.md)."""
    size = math.prod(shape)
    x = (np.arange(size, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()))) * np.uint64(2654435761)
    x %= np.uint64(2**32)
    x ^= x >> np.uint64(16)
    x = x * np.uint64(2246822519) % np.uint64(2**32)
    x ^= x >> np.uint64(13)
    values = math.sqrt(6 / (size // shape[0])) * (x / 2**31 - 1)
    return torch.from_numpy(values).reshape(shape)


def parity_model(recipe: Recipe) -> Mira:
    model = Mira(recipe.model, crop_size=32).double()
    with torch.no_grad():
        for network in (model.student, model.teacher):
            for prefix, module in (("backbone", network.backbone), ("projector", network.projector)):
                for name, p in module.named_parameters():
                    if p.ndim > 1:
                        p.copy_(hashed_start(f"{prefix}.{name}", p.shape))
            network.projector[-1].bias.zero_()
        model.prototypes.weight.copy_(hashed_start("prototypes", model.prototypes.weight.shape))
    return model.train()


def views_of(step: int) -> list[torch.Tensor]:
    with np.load(FOLDER / "trajectory.npz") as record:
        return [torch.from_numpy(record[f"step{step}_view{v}"].astype(np.float64)) for v in range(4)]


def norm(module: torch.nn.Module) -> float:
    return math.sqrt(sum(p.detach().square().sum().item() for p in module.parameters()))


def total(module: torch.nn.Module) -> float:
    return sum(p.detach().sum().item() for p in module.parameters())


def measure(model: Mira, output, values, step: int) -> dict[str, float]:
    labels = output.labels
    return {
        "loss": output.metrics["loss"].item(),
        "lr": values.learning_rate,
        "beta": values.beta,
        "ema": values.momentum,
        "grad_norm": output.metrics["grad_norm"].item(),
        "ent-target": np.mean([entropy(w).mean().item() for w in labels]),
        "ment-target": np.mean([marginal_entropy(w).item() for w in labels]),
        "mi-target": output.metrics["label_mi"].item(),
        "backbone_norm": norm(model.student.backbone),
        "projector_norm": norm(model.student.projector),
        "prototypes_norm": norm(model.prototypes),
        "prototypes_sum": total(model.prototypes),
        "teacher_backbone_norm": norm(model.teacher.backbone),
        "teacher_projector_sum": total(model.teacher.projector),
        "backbone_conv1_sum": model.student.backbone.conv1.weight.detach().sum().item(),
    }


def largest_differences(recipe: Recipe) -> dict[str, float]:
    """Of every quantity of the record, relative, over the six steps."""
    schedule = plan(recipe, pictures=SETTINGS["B"] * SETTINGS["ipe"])
    model = parity_model(recipe)
    optimiser = create_optimiser(model, recipe.optimiser)
    largest: dict[str, float] = {}
    for step, recorded in enumerate(RECORD["steps"]):
        values = values_at(step, recipe, schedule)
        output = train_step(model, optimiser, views_of(step), values, recipe)
        row = torch.tensor(recorded["target0_row0"], dtype=torch.float64)
        found = measure(model, output, values, step)
        differences = {name: abs(found[name] - recorded[name]) / max(abs(recorded[name]), 1e-12) for name in found}
        differences["labels of a picture"] = float((output.labels[0, 0] - row).abs().max())
        largest = {name: max(value, largest.get(name, 0.0)) for name, value in differences.items()}
    print({name: f"{value:.1e}" for name, value in largest.items()})
    return largest


@pytest.mark.slow
def test_six_steps_of_the_published_training() -> None:
    differences = largest_differences(parity_recipe())
    assert max(differences.values()) <= 1e-8, differences


@pytest.mark.slow
def test_the_default_solver_changes_the_published_steps_by_less_than_single_precision() -> None:
    recipe = parity_recipe()
    default = Recipe().assignment
    faster = recipe.assignment.model_copy(
        update={"accelerate": default.accelerate, "max_iterations": default.max_iterations}
    )
    differences = largest_differences(recipe.model_copy(update={"assignment": faster}))
    assert 1e-9 < max(differences.values()) <= 2e-7, differences


@pytest.mark.slow
def test_crops_of_one_size_together_are_another_training() -> None:
    # BatchNorm then sees the crops of both views: a choice (SwAV's), not an approximation. The README says how far off.
    differences = largest_differences(parity_recipe("by_size"))
    assert 0.01 < differences["loss"] < 0.1
    assert 1e-5 < differences["backbone_norm"] < 1e-3
