"""Methods of assignment in a run: what each computes, its state, and that a run with it resumes bit for bit."""

import math
from pathlib import Path

import pytest
import torch

import mira
from mira.assignment import assign, centre_and_sharpen, sinkhorn, softmax_labels
from mira.training.assignment_methods import (
    METHODS,
    CentringSettings,
    MiraSettings,
    SinkhornSettings,
)
from mira.training.checkpoint import checkpoint_paths, read_checkpoint
from mira.training.collapse import CollapseMonitor
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
    state = {name: value + 0.3 for name, value in settings.initial_state(6, torch.device("cpu")).items()}
    before = {name: value.clone() for name, value in state.items()}
    solved, after = settings.solve(logits, state, beta=0.7, temperature=0.2, reduce=None)
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
    values = [settings.temperature_at(step, PLAN) for step in (0, 15, 30, 99)]
    assert values == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert CentringSettings(warmup_epochs=0).temperature_at(0, PLAN) == 0.07
    assert SinkhornSettings().temperature_at(0, PLAN) == 0.05
    assert MiraSettings().beta_at(0, PLAN) == 0.75
    assert MiraSettings(beta=0.9).beta == (0.9, 0.9)
    assert settings.beta_at(0, PLAN) is None


@pytest.mark.parametrize("method", METHODS)
def test_a_held_temperature_divides_the_logits_and_the_center(method):
    logits = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0))
    fixed, held = method(), method(target_entropy=0.5, teacher_temperature=0.3)
    state = held.initial_state(6, torch.device("cpu"))
    assert state["temperature"].item() == 0.3
    extra = {"centre": torch.linspace(-0.3, 0.3, 6)} if "centre" in state else {}
    solved, _ = held.solve(logits, state | extra, beta=0.7, temperature=99.0, reduce=None)
    expected, _ = fixed.solve(logits, extra, beta=0.7, temperature=0.3, reduce=None)
    torch.testing.assert_close(solved.probs, expected.probs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spread", [1e-3, 0.05, 1.0])
def test_the_entropy_of_labels_comes_to_its_target_from_either_side(method, spread):
    """Whatever the spread of the cosines and the start: the fixed point of the temperature is the target's."""
    logits = spread * torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for start in (0.02, 1.5):
        settings = method(target_entropy=0.5, teacher_temperature=start)
        state = settings.initial_state(16, torch.device("cpu"))
        for _ in range(600):
            solved, state = settings.solve(logits, state, beta=0.7, temperature=1.0, reduce=None)
            entropies = torch.special.entr(solved.probs).sum(-1)
            state = settings.hold_entropy(state, entropies.mean(), 16)
        if state["temperature"] > settings.lowest_temperature:
            assert entropies.mean().item() == pytest.approx(0.5 * math.log(16), rel=1e-2)
        else:  # as sharp as the temperature may make it
            assert entropies.mean().item() > 0.5 * math.log(16)
            assert spread < 1


def test_a_run_that_holds_the_entropy_resumes_bit_for_bit_and_exports_its_temperature(
    picture_folder, tiny_recipe, tmp_path
):
    run = run_with("mira", picture_folder, tiny_recipe, tmp_path / "run", target_entropy=0.4, beta=0.9)
    last = checkpoint_paths(run / "checkpoints")[-1]
    whole = read_checkpoint(last)
    forget_after(run, 3)
    mira.resume(run, quiet=True)
    again = read_checkpoint(last)
    assert torch.equal(whole.label_state["temperature"], again.label_state["temperature"])
    assert all(torch.equal(whole.model[key], again.model[key]) for key in whole.model)
    written = [line["teacher_temperature"] for line in read_metrics(run / "metrics.jsonl")]
    assert written[0] == pytest.approx(0.225)
    assert len(set(written)) == len(written)
    assert mira.load_run(run).prototype_logits.temperature == whole.label_state["temperature"].item()


@pytest.mark.parametrize("method", METHODS)
def test_remedies_can_be_typed_change_something_and_come_to_an_end(method):
    recipe = mira.load_recipe({"assignment": {"name": method().name}})
    for _ in range(3):
        remedies = recipe.assignment.remedies()
        if not remedies or "assignment.name" in remedies[0]:
            break
        changed = mira.load_recipe(recipe.model_dump(), remedies)
        assert changed != recipe
        recipe = changed
    else:
        raise AssertionError("there is always another remedy")


@pytest.mark.parametrize("method", METHODS)
def test_the_diagnosis_of_collapse_names_what_to_type(method):
    recipe = mira.load_recipe({"assignment": {"name": method().name}})
    monitor = CollapseMonitor(recipe, settled=0)
    for step in (1, 2, 3):
        collapse = monitor.check({"step": step, "label_mi": 0.0, "marginal_entropy": 8.0})
    assert collapse is not None
    assert all(remedy in collapse.advice(recipe) for remedy in method().remedies())
