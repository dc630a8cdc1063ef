"""Collapse of pseudo-labels, prototypes and features: when it is certain, and how a run is mended."""

import math
import warnings
from pathlib import Path

import pytest

import mira
from mira.errors import TrainingStopped
from mira.training.checkpoint import checkpoint_paths, read_checkpoint
from mira.training.collapse import EARLY_PATIENCE, PATIENCE, Collapse, CollapseMonitor
from mira.training.metrics import read_metrics
from mira.training.recipe import Recipe

FINE = {"label_mi": 3.0, "marginal_entropy": 7.0, "feature_rank": 30.0}
SIGNS = {
    "label_mi": ({"label_mi": 0.01}, "carry 0.010 nats"),
    "marginal_entropy": ({"marginal_entropy": 1.2}, "a few of the 3000 have taken nearly all images"),
    "feature_rank": ({"feature_rank": 1.01}, "effective rank is 1.01"),
}


def readings(monitor: CollapseMonitor, *changes: dict[str, float], first: int = 1) -> list[Collapse | None]:
    return [monitor.check(FINE | change | {"step": first + place}) for place, change in enumerate(changes)]


@pytest.mark.parametrize("sign", SIGNS)
def test_a_collapse_is_certain_after_some_poor_readings_in_a_row(sign: str) -> None:
    poor, sentence = SIGNS[sign]
    monitor = CollapseMonitor(Recipe(), settled=0)
    assert readings(monitor, *[{}] * 5, *[poor] * (PATIENCE - 1), {}) == [None] * (5 + PATIENCE)
    assert not monitor.suspicious
    *before, collapse = readings(monitor, *[poor] * PATIENCE, first=9)
    assert before == [None] * (PATIENCE - 1)
    assert collapse is not None
    assert sentence in collapse.sentence
    assert collapse.last_good == 5 + PATIENCE


MENDS = Recipe(monitor={"on_collapse": "mend"})


@pytest.mark.parametrize("sign", ["label_mi", "marginal_entropy"])
def test_it_is_told_during_the_warm_up_of_runs_that_can_be_mended_unless_it_gets_better(sign: str) -> None:
    monitor = CollapseMonitor(MENDS, settled=1000)
    falling = [{sign: 0.1 - 0.001 * step} for step in range(EARLY_PATIENCE)]
    *before, collapse = readings(monitor, *falling)
    assert before == [None] * (EARLY_PATIENCE - 1)
    assert collapse is not None
    assert collapse.last_good == 0
    assert not any(readings(CollapseMonitor(Recipe(), settled=1000), *falling * 3))
    dip = [{sign: 0.02 + 0.006 * abs(step - 8)} for step in range(25)]
    assert not any(readings(CollapseMonitor(MENDS, settled=1000), *dip[8:]))


@pytest.mark.parametrize("sign", ["label_mi", "marginal_entropy"])
def test_what_was_poor_before_the_end_of_the_warm_up_is_not_held_against_a_run(sign: str) -> None:
    slowly = [{sign: 0.1 + 1e-5 * step} for step in range(22)]
    found = readings(CollapseMonitor(Recipe(), settled=20), *slowly)
    assert not any(found)
    assert readings(CollapseMonitor(Recipe(), settled=20), *slowly, slowly[-1])[-1] is not None  # three after it


def test_features_may_be_alike_while_the_learning_rate_rises() -> None:
    monitor = CollapseMonitor(Recipe(), settled=1000)
    assert not any(readings(monitor, *[{"feature_rank": 1.0}] * 50))


def collapsing(recipe: dict, **monitor: object) -> dict:
    """A recipe whose labels grow alike at once: at this temperature they never say anything."""
    recipe["assignment"] = {"teacher_temperature": 50.0, "beta": [0.0, 0.0]}
    recipe["monitor"] |= {"checkpoint_every": 0.25, "keep_checkpoints": 100} | monitor
    recipe["training"]["epochs"] = 5
    return recipe


def test_a_collapsed_run_stops_with_what_to_type(picture_folder: Path, tiny_recipe: dict, tmp_path: Path) -> None:
    recipe = collapsing(tiny_recipe, on_collapse="stop")
    with pytest.raises(TrainingStopped, match=r"with assignment\.beta=0\.9 assignment\.target_entropy=0\.5"):
        mira.pretrain(picture_folder, out=tmp_path / "run", recipe=recipe, quiet=True)
    assert not (tmp_path / "run" / "collapsed.jsonl").exists()


def test_a_run_is_mended_once(
    picture_folder: Path, tiny_recipe: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = mira.pretrain(picture_folder, out=tmp_path / "run", recipe=collapsing(tiny_recipe, on_collapse="mend"))
    recipe = mira.load_run(run).recipe
    assert recipe == mira.load_recipe(run / "recipe.yaml")
    assert recipe.assignment.target_entropy == 0.5
    assert recipe.assignment.beta == (0.9, 0.9)
    assert recipe.monitor.on_collapse == "stop"
    assert "It went on from step 0 with assignment.beta=0.9 assignment.target_entropy=0.5." in recipe.description
    assert "The run begins again with assignment.beta=0.9" in capsys.readouterr().err
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[-1]["label_mi"] > 0.1 * math.log(6)
    assert read_metrics(run / "collapsed.jsonl")[-1]["label_mi"] < 0.05 * math.log(6)
    fresh = collapsing(tiny_recipe) | {"assignment": recipe.assignment.model_dump()}
    straight = mira.pretrain(picture_folder, out=tmp_path / "straight", recipe=fresh, quiet=True)
    one, other = (read_checkpoint(checkpoint_paths(path / "checkpoints")[-1]).model for path in (run, straight))
    assert all(one[name].equal(value) for name, value in other.items())


def test_it_goes_on_from_the_last_good_checkpoint(picture_folder: Path, tiny_recipe: dict, tmp_path: Path) -> None:
    """Labels are made poor from step 9 on by editing a good run's checkpoint: a collapse in the middle of a run."""
    recipe = collapsing(tiny_recipe, on_collapse="continue") | {"assignment": {"beta": [0.9, 0.9]}}
    run = mira.pretrain(picture_folder, out=tmp_path / "run", recipe=recipe, quiet=True)
    import torch

    paths = checkpoint_paths(run / "checkpoints")
    for path in paths[8:]:
        path.unlink()
    content = torch.load(paths[7], weights_only=True)
    content["recipe"]["assignment"] |= {"teacher_temperature": 50.0, "beta": [0.0, 0.0]}
    content["recipe"]["monitor"]["on_collapse"] = "mend"
    torch.save(content, paths[7])
    mira.resume(run, quiet=True)
    loaded = mira.load_run(run)
    assert loaded.step == 20
    assert "It went on from step 8 with" in loaded.recipe.description
    assert set(loaded.checkpoint.label_state) == {"temperature"}
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == list(range(1, 21))


def test_softmax_is_not_turned_into_another_method(picture_folder: Path, tiny_recipe: dict, tmp_path: Path) -> None:
    recipe = collapsing(tiny_recipe, on_collapse="mend") | {
        "assignment": {"name": "softmax", "teacher_temperature": 50.0}
    }
    with pytest.raises(TrainingStopped, match=r"assignment\.name=mira assignment\.beta=0\.9 assignment\.target"):
        mira.pretrain(picture_folder, out=tmp_path / "run", recipe=recipe, quiet=True)


def test_a_run_that_goes_on_with_collapsed_labels_gives_up_old_checkpoints(
    picture_folder: Path, tiny_recipe: dict, tmp_path: Path
) -> None:
    recipe = collapsing(tiny_recipe, on_collapse="continue", keep_checkpoints=2)
    run = mira.pretrain(picture_folder, out=tmp_path / "run", recipe=recipe, quiet=True)
    assert len(checkpoint_paths(run / "checkpoints")) == 2


@pytest.mark.parametrize("place", ["load_recipe", "write_text", "MetricsLog", "say"])
def test_killed_while_it_is_mended_a_run_is_mended_when_it_goes_on(
    place: str, picture_folder: Path, tiny_recipe: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    recipe = collapsing(tiny_recipe, on_collapse="mend")
    recipe["data"], recipe["monitor"]["knn_every"] = {"labels": "folder"}, 1
    with monkeypatch.context() as patch:
        patch.setattr(f"mira.training.mend.{place}", kill)
        with pytest.raises(Killed):
            mira.pretrain(picture_folder, out=tmp_path / "run", recipe=recipe, quiet=True)
    with warnings.catch_warnings(action="ignore"):
        mira.resume(tmp_path / "run", quiet=True)
    loaded = mira.load_run(tmp_path / "run")
    assert loaded.step == 20
    assert loaded.recipe.assignment.target_entropy == 0.5
