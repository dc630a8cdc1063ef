"""Whole runs, single steps and passes over pictures on a CUDA device."""

import copy
import math
from pathlib import Path

import pytest
import torch
from tiny import TINY, write_pictures

import mira
from mira.distributed import Ranks
from mira.evaluation.features import every, extract_features
from mira.model import Mira
from mira.training.metrics import read_metrics
from mira.training.prepare import prepare
from mira.training.recipe import Recipe
from mira.training.resolve import plan
from mira.training.step import train_step, values_at

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 64)


def recipe(**training: object) -> dict:
    changed = copy.deepcopy(TINY)
    changed["training"] |= {"device": "cuda", **training}
    return changed


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def test_the_first_steps_are_those_of_the_cpu(pictures: Path, tmp_path: Path) -> None:
    here, there = (
        mira.pretrain(
            pictures,
            out=tmp_path / device,
            recipe=recipe(device=device) | {"data": {"augment": "workers"}},
            quiet=True,
        )
        for device in ("cpu", "cuda")
    )
    assert losses(there)[0] == pytest.approx(losses(here)[0], rel=1e-3)
    assert losses(there)[:4] == pytest.approx(losses(here)[:4], rel=3e-2)  # TF32 and other orders of sums add up
    assert all("gpu_memory" in line for line in read_metrics(there / "metrics.jsonl") if "loss" in line)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_half_precision_with_colour_on_the_device(
    precision: str, compiled: bool, pictures: Path, tmp_path: Path
) -> None:
    settings = recipe(precision=precision, compile=compiled) | {"data": {"augment": "device"}}
    run = mira.pretrain(pictures, out=tmp_path / "run", recipe=settings, quiet=True)
    assert len(losses(run)) == 12
    assert all(math.isfinite(loss) for loss in losses(run))
    assert math.isfinite(mira.embed(run, pictures, device="cuda").features.sum().item())


def test_deterministic_runs_have_the_same_bits(pictures: Path, tmp_path: Path) -> None:
    runs = [
        mira.pretrain(pictures, out=tmp_path / name, recipe=recipe(deterministic=True), quiet=True)
        for name in ("one", "two")
    ]
    one, two = (mira.load_backbone(run).state_dict() for run in runs)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_step_waits_for_nothing() -> None:
    settings = Recipe.model_validate(recipe(precision="bfloat16"))
    device = torch.device("cuda", 0)
    state = prepare(Mira(settings.model, crop_size=32), settings, device, Ranks(), checkpoint=None)
    state.model.train()
    views = [torch.randn(16, 3, side, side, device=device) for side in (32, 32, 16)]

    def step(number: int) -> None:
        values = values_at(number, settings, plan(settings, pictures=64))
        output = train_step(
            state.model,
            state.optimiser,
            views,
            values,
            settings,
            label_state=state.label_state,
            ranks=Ranks(),
            scaler=state.scaler,
        )
        state.label_state = output.label_state

    step(0)  # the optimiser's state, workspaces and kernels are made now
    step(1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_passes_over_pictures_on_every_gpu(pictures: Path, tmp_path: Path) -> None:
    run = mira.pretrain(pictures, out=tmp_path / "run", recipe=recipe(epochs=1), quiet=True)
    backbone = mira.load_backbone(run)
    source = mira.training.run_folder.load_run(run).open_data("all")
    found = [
        extract_features(backbone, source, preprocessing=backbone.preprocessing, device=device, batch_size=8)
        for device in ("cpu", "cuda:0", every("cuda"))
    ]
    torch.testing.assert_close(found[1].features, found[0].features, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found[2].features, found[1].features, rtol=1e-5, atol=1e-5)
