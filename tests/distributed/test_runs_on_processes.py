"""Whole runs over processes: the same training as in one, whatever their number before and after a stop."""

import copy
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from processes import on_ranks
from tiny import TINY, write_pictures

import mira
from mira.distributed import Ranks
from mira.training.checkpoint import checkpoint_paths, newest_checkpoint


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = copy.deepcopy(TINY)
    # An optimiser that does not magnify rounding, as Adam does where a gradient is near zero.
    recipe["optimiser"] = {"name": "sgd", "learning_rate": 0.05, "warmup_epochs": 0.5}
    recipe["training"] |= {"epochs": 2}
    recipe["monitor"] |= {"checkpoint_every": 0.5, "keep_checkpoints": 8}
    recipe["data"] = {"labels": "folder"}
    recipe["monitor"]["knn_every"] = 1
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path, recipe_file: Path) -> Path:
    """The run in one process."""
    return mira.pretrain(picture_folder, out=tmp_path_factory.mktemp("run") / "whole", recipe=recipe_file, quiet=True)


def start(ranks: Ranks, data: Path, out: Path, recipe: Path, overrides: tuple[str, ...] = ()) -> None:
    mira.pretrain(data, out=out, recipe=recipe, overrides=overrides, quiet=True)


def go_on(ranks: Ranks, out: Path) -> None:
    mira.resume(out, quiet=True)


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "pictures_per_second", "data_wait", "gap")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 8
    return checkpoint.model


def assert_same_training(run: Path, whole: Path, tolerance: float = 1e-5) -> None:
    ours, theirs = weights(run), weights(whole)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=name)
    for line, expected in zip(metrics(run), metrics(whole), strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-4)


def drop_after(run: Path, step: int) -> None:
    """As if the processes had died between this checkpoint and the next."""
    for path in checkpoint_paths(run / "checkpoints"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_a_run_over_processes_is_the_run_in_one(
    world: int, whole: Path, picture_folder: Path, recipe_file: Path, tmp_path: Path
) -> None:
    on_ranks(world, start, picture_folder, tmp_path / "run", recipe_file)
    assert_same_training(tmp_path / "run", whole)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (4, 2)])
def test_the_number_of_processes_may_change(
    before: int, after: int, whole: Path, picture_folder: Path, recipe_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    on_ranks(before, start, picture_folder, run, recipe_file)
    drop_after(run, 4)
    on_ranks(after, go_on, run)
    assert_same_training(run, whole)


@pytest.mark.slow
def test_the_same_number_of_processes_gives_the_same_bits(
    picture_folder: Path, recipe_file: Path, tmp_path: Path
) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    on_ranks(2, start, picture_folder, run, recipe_file, ("training.workers=1",))
    shutil.copytree(run, again)
    drop_after(again, 2)
    on_ranks(2, go_on, again)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(run).items())


def compile_and_start(ranks: Ranks, data: Path, out: Path, recipe: Path, overrides: tuple[str, ...]) -> int:
    """A compiled run; how many pieces of code have been compiled. The code generator is left to other tests: slow."""
    torch.compile = partial(torch.compile, backend="aot_eager")
    start(ranks, data, out, recipe, (*overrides, "training.compile=true"))
    from torch._dynamo.utils import counters

    return counters["frames"]["ok"]


@pytest.mark.slow
def test_compiled_processes_train_as_uncompiled_ones(picture_folder: Path, recipe_file: Path, tmp_path: Path) -> None:
    little = "model.backbone.options={layers: [2, 0, 0, 0], channels: [8, 8, 8, 8]}"  # to compile
    once = ("training.epochs=1", "monitor.knn_every=0", "crops.local_crops.count=0", little)
    runs = [tmp_path / "plain", tmp_path / "compiled"]
    on_ranks(2, start, picture_folder, runs[0], recipe_file, once)
    assert min(on_ranks(2, compile_and_start, picture_folder, runs[1], recipe_file, once)) > 0
    plain, compiled = (newest_checkpoint(run / "checkpoints").model for run in runs)
    assert list(plain) == list(compiled)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_what_any_rank_cannot_read_is_named(recipe_file: Path, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 64)
    bad = [pictures / "class0" / f"{i:04}.png" for i in range(0, 64, 22)]
    for path in bad:
        path.write_bytes(b"")
    on_ranks(4, start, pictures, tmp_path / "run", recipe_file, ("data.max_unreadable=0.2",))
    named = sorted(line.partition("\t")[0] for line in (tmp_path / "run" / "skipped.txt").read_text().splitlines())
    assert named == sorted(f"class0/{path.name}" for path in bad)


def begin(ranks: Ranks, data: Path, out: Path, recipe: Path, *overrides: str) -> str:
    """The error that this rank sees."""
    try:
        start(ranks, data, out, recipe, overrides)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_what_cannot_be_used_is_said_by_rank_0_and_ends_all(
    picture_folder: Path, recipe_file: Path, tmp_path: Path
) -> None:
    first, *others = on_ranks(4, begin, picture_folder, tmp_path / "run", recipe_file, "training.batch_size=3")
    assert first == "ValueError: batch_size 3 cannot be shared by 4 processes: make it at least 4"
    assert all(other.startswith("FirstRankFailed") for other in others)


def see_other_pictures(ranks: Ranks, folders: list[Path], out: Path, recipe: Path) -> str:
    from mira.training import start as module

    real = module.open_data
    # A machine whose copy of the pictures is not the same.
    module.open_data = lambda _: real(mira.load_recipe(recipe, [f"data.source={folders[ranks.rank]}"]))
    return begin(ranks, folders[0], out, recipe)


def test_machines_with_other_pictures_are_noticed(picture_folder: Path, recipe_file: Path, tmp_path: Path) -> None:
    fewer = write_pictures(tmp_path / "fewer", 63)
    first, second = on_ranks(2, see_other_pictures, [picture_folder, fewer], tmp_path / "run", recipe_file)
    assert "rank 1 sees 63 pictures" in first
    assert "rank 0 sees 64" in first
    assert second.startswith("FirstRankFailed")


@pytest.mark.slow
def test_processes_mend_a_collapsed_run_as_one_does(picture_folder: Path, recipe_file: Path, tmp_path: Path) -> None:
    overrides = (
        "assignment.teacher_temperature=50.0",
        "assignment.beta=0",
        "monitor.on_collapse=mend",
    )
    alone = mira.pretrain(picture_folder, out=tmp_path / "alone", recipe=recipe_file, overrides=overrides, quiet=True)
    on_ranks(2, start, picture_folder, tmp_path / "two", recipe_file, overrides)
    ours, theirs = (newest_checkpoint(run / "checkpoints") for run in (tmp_path / "two", alone))
    assert ours is not None
    assert theirs is not None
    assert ours.step == theirs.step == 8
    assert ours.recipe == theirs.recipe
    assert ours.recipe.assignment.target_entropy == 0.5
    for name, value in theirs.model.items():
        torch.testing.assert_close(ours.model[name], value, rtol=1e-4, atol=1e-4, msg=name)
