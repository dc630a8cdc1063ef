"""A run from outside: its folder, its refusals, its diagnoses."""

import json
import math
from pathlib import Path

import pytest
import torch

import mira
from mira.errors import TooManyUnreadable, TrainingStopped
from mira.training.checkpoint import checkpoint_paths, read_checkpoint
from mira.training.metrics import MetricsLog, RunningMean, read_metrics
from mira.training.skipped import SkippedLog


def test_the_folder_of_a_finished_run(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert {"recipe.yaml", "metrics.jsonl", "checkpoints", "crops.png"} <= names
    lines = read_metrics(finished_run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    last = lines[-1]
    assert last["epoch"] == 3.0
    assert 0 <= last["label_mi"] <= last["label_mi_max"] == math.log(6)
    assert 0 <= last["knn"] <= 100
    assert 1 <= last["feature_rank"] <= 16
    assert [path.name for path in checkpoint_paths(finished_run / "checkpoints")] == [
        "step-00000008.pt",
        "step-00000012.pt",
    ]
    assert not list(finished_run.rglob("*.tmp*"))


def test_a_checkpoint_holds_what_it_takes(finished_run: Path) -> None:
    checkpoint = read_checkpoint(finished_run / "checkpoints" / "step-00000012.pt")
    assert checkpoint.step == 12
    assert checkpoint.pictures == 64
    assert checkpoint.recipe == mira.load_recipe(finished_run / "recipe.yaml")
    assert checkpoint.versions["torch"] == torch.__version__.partition("+")[0] or checkpoint.versions["torch"]


def test_an_existing_run_is_not_overwritten_unasked(finished_run: Path, tiny_recipe: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already holds a run. Continue it with `mira pretrain --resume"):
        mira.pretrain("builtin:fashion", out=finished_run, recipe=tiny_recipe)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds other files"):
        mira.pretrain("builtin:fashion", out=tmp_path, recipe=tiny_recipe, overwrite=True)


def test_nothing_is_lost_when_overwriting_with_an_unusable_recipe(finished_run: Path, tiny_recipe: dict) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    tiny_recipe["training"]["batch_size"] = 100_000
    with pytest.raises(ValueError, match=r"set training\.batch_size"):
        mira.pretrain("builtin:fashion", out=finished_run, recipe=tiny_recipe, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(
    picture_folder: Path, tiny_recipe: dict, tmp_path: Path
) -> None:
    tiny_recipe["optimiser"] = {"name": "sgd", "learning_rate": 1e30, "warmup_epochs": 1.9, "warmup_from": 0.0}
    tiny_recipe["monitor"]["checkpoint_every"] = 0.25
    with pytest.raises(TrainingStopped, match=r"ower optimiser\.learning_rate \(now 1e\+30\)"):
        mira.pretrain(picture_folder, out=tmp_path / "run", recipe=tiny_recipe, quiet=True)
    for path in checkpoint_paths(tmp_path / "run" / "checkpoints"):
        assert all(value.isfinite().all() for value in read_checkpoint(path).model.values())


def test_unreadable_pictures_are_named_once_and_too_many_stop(tmp_path: Path) -> None:
    path = tmp_path / "skipped.txt"
    log = SkippedLog(path, total=100, allowed=0.02)
    log.add([(3, "a.jpg\tempty"), (5, "b.jpg\ttruncated"), (3, "a.jpg\tempty")])
    log.add([(3, "a.jpg\tempty")])
    assert path.read_text() == "a.jpg\tempty\nb.jpg\ttruncated\n"
    path.write_bytes(path.read_bytes() + "ü.jpg\thalf a li".encode()[:-1])  # killed while writing
    log = SkippedLog(path, total=100, allowed=0.02)
    assert len(log) == 2
    with pytest.raises(TooManyUnreadable, match="3 of 100 pictures cannot be read, more than the allowed 2%"):
        log.add([(9, "ü.jpg\thalf a line")])
    assert path.read_text("utf-8").splitlines()[2] == "ü.jpg\thalf a line"


def test_a_run_on_a_folder_with_bad_files_names_them(picture_folder: Path, tiny_recipe: dict, tmp_path: Path) -> None:
    from tiny import write_pictures

    pictures = write_pictures(tmp_path / "pictures", 60)
    bad = [pictures / "class0" / name for name in ("zero.png", "text.jpg")]
    bad[0].write_bytes(b"")
    bad[1].write_text("not a picture")
    tiny_recipe["training"]["epochs"] = 2
    tiny_recipe["training"]["batch_size"] = 31  # every picture is visited
    run = mira.pretrain(pictures, out=tmp_path / "run", recipe=tiny_recipe, quiet=True)
    named = sorted(line.partition("\t")[0] for line in (run / "skipped.txt").read_text().splitlines())
    assert named == ["class0/text.jpg", "class0/zero.png"]
    tiny_recipe["data"] = {"max_unreadable": 0.01}
    with pytest.raises(TooManyUnreadable, match="named in"):
        mira.pretrain(pictures, out=tmp_path / "strict", recipe=tiny_recipe, quiet=True)


def test_means_are_over_the_steps_since_the_last_line() -> None:
    mean = RunningMean()
    for value in (1.0, 2.0, 6.0):
        mean.add({"loss": torch.tensor(value), "gap": torch.tensor(2 * value)})
    assert mean.read() == {"loss": 3.0, "gap": 6.0}
    mean.add({"loss": torch.tensor(5.0)})
    assert mean.read() == {"loss": 5.0}
    assert mean.read() == {}


def test_resuming_drops_lines_of_steps_that_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"step": 6, "l')
    MetricsLog(path, step=3).close()
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]


def test_prototype_logits_are_cosines_over_the_temperature(finished_run: Path) -> None:
    run = mira.load_run(finished_run)
    logits = run.prototype_logits(torch.randn(10, run.backbone.num_features))
    assert logits.shape == (10, 6)
    assert logits.abs().max() <= 1 / run.recipe.assignment.teacher_temperature + 1e-5


def test_labels_of_one_class_do_not_stop_a_run(tiny_recipe: dict, tmp_path: Path) -> None:
    from tiny import write_pictures

    pictures = write_pictures(tmp_path / "pictures", 32, classes=1)
    tiny_recipe["training"]["epochs"] = 1
    tiny_recipe["monitor"]["knn_every"] = 1
    tiny_recipe["data"] = {"labels": "folder"}
    with pytest.warns(UserWarning, match="no k-NN while training"):
        run = mira.pretrain(pictures, out=tmp_path / "run", recipe=tiny_recipe, quiet=True)
    assert "knn" not in read_metrics(run / "metrics.jsonl")[-1]


def test_labels_do_not_change_what_is_trained_on(tiny_recipe: dict, picture_folder: Path) -> None:
    from mira.training.run_folder import open_data

    for labels in ("auto", "folder"):
        tiny_recipe["data"] = {"source": str(picture_folder), "labels": labels}
        assert len(open_data(mira.load_recipe(tiny_recipe))) == 64
