"""The ways to labels in a run: what each computes, what it remembers, and that a run with it resumes bit for bit."""

from pathlib import Path

import pytest
import torch

import mira
from mira.assignment import assign, centre_and_sharpen, sinkhorn, softmax_labels
from mira.errors import TrainingStopped
from mira.training.assignment_settings import METHODS, CentringSettings, MiraSettings, SinkhornSettings
from mira.training.checkpoint import checkpoint_paths, read_checkpoint
from mira.training.health import Health
from mira.training.labelling import beta_at, first_label_state, make_labels, teacher_temperature_at
from mira.training.metrics import read_metrics
from mira.training.schedules import Plan

NAMES = [method().name for method in METHODS]
PLAN = Plan(steps_per_epoch=10, total=100, warmup=10, freeze=0)


def run_with(name: str, picture_folder: Path, recipe: dict, out: Path, **settings) -> Path:
    recipe["assignment"] = {"name": name, **settings}
    recipe["monitor"] |= {"checkpoint_every": 0.25, "keep_checkpoints": 100}
    recipe["training"]["epochs"] = 2
    return mira.pretrain(picture_folder, out=out, recipe=recipe, quiet=True)


def forget_after(run: Path, step: int) -> None:
    for path in checkpoint_paths(run / "checkpoints"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_each_method_resumes_bit_for_bit(name, picture_folder, tiny_recipe, tmp_path):
    run = run_with(name, picture_folder, tiny_recipe, tmp_path / "run")
    last = checkpoint_paths(run / "checkpoints")[-1]
    whole = read_checkpoint(last)
    assert whole.step == 8
    assert [value.count_nonzero().item() for value in whole.label_state.values()] == [6] * (name == "centring")
    forget_after(run, 3)
    mira.resume(run, quiet=True)
    again = read_checkpoint(last)
    for one, other in ((whole.model, again.model), (whole.label_state, again.label_state)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert all(("beta" in line) == (name == "mira") for line in lines)
    assert all(line["gap"] >= 0 for line in lines)


@pytest.mark.slow
def test_a_run_that_forgot_its_centre_ends_elsewhere(picture_folder, tiny_recipe, tmp_path):
    run = run_with("centring", picture_folder, tiny_recipe, tmp_path / "run")
    last = checkpoint_paths(run / "checkpoints")[-1]
    whole = read_checkpoint(last)
    forget_after(run, 3)
    newest = checkpoint_paths(run / "checkpoints")[-1]
    content = torch.load(newest, weights_only=True)
    content["label_state"]["centre"].zero_()
    torch.save(content, newest)
    mira.resume(run, quiet=True)
    assert not torch.equal(read_checkpoint(last).model["prototypes.weight"], whole.model["prototypes.weight"])


def test_checkpoints_from_before_there_was_a_choice_are_read_and_continued(picture_folder, tiny_recipe, tmp_path):
    run = run_with("mira", picture_folder, tiny_recipe, tmp_path / "run")
    last = checkpoint_paths(run / "checkpoints")[-1]
    whole = read_checkpoint(last)
    forget_after(run, 3)
    newest = checkpoint_paths(run / "checkpoints")[-1]
    content = torch.load(newest, weights_only=True)
    del content["label_state"], content["recipe"]["assignment"]["name"]
    torch.save(content, newest)
    assert isinstance(read_checkpoint(newest).recipe.assignment, MiraSettings)
    mira.resume(run, quiet=True)
    again = read_checkpoint(last)
    assert all(torch.equal(whole.model[key], again.model[key]) for key in whole.model)


def test_the_prototype_logits_of_a_centred_run_are_centred(picture_folder, tiny_recipe, tmp_path):
    run = mira.load_run(run_with("centring", picture_folder, tiny_recipe, tmp_path / "run"))
    features = torch.randn(4, run.backbone.num_features)
    cosines = run.prototype_logits(features) * 0.07 + run.checkpoint.label_state["centre"]
    assert cosines.abs().max() <= 1 + 1e-5
    run.checkpoint.label_state["centre"].zero_()
    assert torch.allclose(run.prototype_logits(features), cosines / 0.07, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_labels_are_those_of_the_function_with_the_settings_handed_on(method):
    logits = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0))
    settings = method()
    state = {name: value + 0.3 for name, value in first_label_state(settings, 6, torch.device("cpu")).items()}
    before = {name: value.clone() for name, value in state.items()}
    solved, after = make_labels(logits, state, settings, beta=0.7, temperature=0.2, reduce=None)
    expected = {
        "mira": lambda: assign(logits, beta=0.7, temperature=0.2, max_iterations=10, tolerance=None),
        "sinkhorn": lambda: sinkhorn(logits, temperature=0.2, max_iterations=3),
        "centring": lambda: centre_and_sharpen(logits, centre=torch.full((6,), 0.3), temperature=0.2),
        "softmax": lambda: softmax_labels(logits, temperature=0.2),
    }[settings.name]()
    assert torch.equal(solved.probs, expected.probs)
    assert all(torch.equal(before[name], value) for name, value in state.items())
    if settings.name == "centring":
        assert torch.allclose(after["centre"], 0.9 * before["centre"] + 0.1 * logits.mean((0, 1)), atol=1e-6)
    else:
        assert after == {}


def test_schedules_of_the_methods():
    settings = CentringSettings(warmup_epochs=3)
    values = [teacher_temperature_at(step, settings, PLAN) for step in (0, 15, 30, 99)]
    assert values == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert teacher_temperature_at(0, CentringSettings(warmup_epochs=0), PLAN) == 0.07
    assert teacher_temperature_at(0, SinkhornSettings(), PLAN) == 0.05
    assert beta_at(0, MiraSettings(), PLAN) == 0.75
    assert beta_at(0, settings, PLAN) is None


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("mira", r"Raise assignment\.beta"),
        ("sinkhorn", r"Lower assignment\.teacher_temperature \(now 0\.05\)"),
        ("centring", r"Lower assignment\.momentum \(now 0\.9\), lower assignment\.teacher_temperature"),
        ("softmax", r"set assignment\.name=mira"),
    ],
)
def test_the_diagnosis_of_collapse_names_settings_of_the_method(name, remedy):
    def told(metrics: dict[str, float]) -> None:
        health = Health(mira.load_recipe({"assignment": {"name": name}}))
        for _ in range(3):
            health.check_collapse(metrics)

    with pytest.raises(TrainingStopped, match=remedy):
        told({"label_mi": 0.0})
    with pytest.raises(TrainingStopped, match="effective rank") as caught:
        told({"label_mi": 3.0, "feature_rank": 1.0})
    assert ("assignment.beta" in str(caught.value)) == (name == "mira")
