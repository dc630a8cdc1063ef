from pathlib import Path

import pytest
from pydantic import ValidationError

from mira.recipes import builtin_recipes
from mira.training.assignment_methods import METHODS, MiraSettings, SinkhornSettings
from mira.training.reading import load_recipe, recipe_to_yaml
from mira.training.recipe import Recipe
from mira.training.resolve import plan, resolve


def test_the_defaults_are_the_published_recipe() -> None:
    recipe = Recipe()
    assert recipe.model.backbone.name == "resnet50"
    assert recipe.model.prototypes.count == 3000
    assert recipe.assignment.beta == (0.75, 2 / 3)
    assert recipe.optimiser.learning_rate * recipe.training.batch_size / 256 == pytest.approx(4.8)
    assert recipe.optimiser.warmup_from * 4.8 == pytest.approx(0.3)


@pytest.mark.parametrize("name", list(builtin_recipes()))
def test_every_built_in_recipe_reads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    file = tmp_path / "copy.yaml"
    file.write_text(recipe_to_yaml(recipe))
    assert load_recipe(file) == recipe


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainig.epochs=3", "unknown key 'trainig'; did you mean 'training'"),
        ("training.epoch=3", "unknown key 'training.epoch'; did you mean 'training.epochs'"),
        ("epochs=3", "unknown key 'epochs'; did you mean 'training.epochs'"),
        ("training.epochs=ten", "training.epochs:"),
        ("training.epochs=2.5", "training.epochs:"),
        ("training.epochs=0", "training.epochs:"),
        ("assignment.beta=[0.7,1.0]", "assignment.beta.1:"),
        ("assignment.teacher_temperature=0", "assignment.teacher_temperature:"),
        ("optimiser.name=adam", "optimiser.name:"),
        ("optimiser.warmup_epochs=500", "the warm-up must be shorter than the run"),
        ("data.mean=[0.5]", "data.mean has 1 values and model.backbone.channels is 3"),
        ("model.backbone.name=resnet5O", "timm has no architecture 'resnet5O'"),
        ("model.prototypes.freeze_epochs=400", "the prototypes would never learn"),
        ("optimiser.betas=[2,0.9]", "optimiser.betas.0:"),
        ("training.learning_rate=1", "did you mean 'optimiser.learning_rate'"),
        ("assignment.bta=0.7", "unknown key 'assignment.bta'; did you mean 'assignment.beta'"),
        ("assignment.momentum=0.9", "'assignment.momentum' is a setting of centring, and assignment.name is 'mira'"),
        ("assignment.name=sinkhron", "assignment.name: must be one of mira, sinkhorn, centring, softmax"),
        ("assignment=sinkhorn", "assignment: must hold keys and values, such as 'name: mira'"),
    ],
)
def test_a_wrong_setting_names_the_key_and_what_to_write(override: str, expected: str) -> None:
    with pytest.raises(ValueError, match="recipe cannot be used") as caught:
        load_recipe({}, [override])
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "override", "expected"),
    [
        ("sinkhorn", "beta=[0.7,0.7]", "'assignment.beta' is a setting of mira, and assignment.name is 'sinkhorn'"),
        ("sinkhorn", "max_iteration=5", "did you mean 'assignment.max_iterations'"),
        ("centring", "momentum=1.5", "assignment.momentum:"),
        ("centring", "momentm=0.5", "did you mean 'assignment.momentum'"),
        ("softmax", "tolerance=1", "'assignment.tolerance' is a setting of mira and sinkhorn, and assignment.name"),
        ("softmax", "student_temp=1", "did you mean 'assignment.student_temperature'"),
    ],
)
def test_every_way_to_labels_has_only_its_own_settings(name: str, override: str, expected: str) -> None:
    with pytest.raises(ValueError, match="recipe cannot be used") as caught:
        load_recipe({"assignment": {"name": name}}, [f"assignment.{override}"])
    assert expected in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_chooses_its_labels_by_name(method: type, tmp_path: Path) -> None:
    recipe = load_recipe({}, [f"assignment.name={method().name}", "assignment.student_temperature=0.2"])
    assert recipe.assignment == method(student_temperature=0.2)
    file = tmp_path / "copy.yaml"
    file.write_text(recipe_to_yaml(recipe))
    assert load_recipe(file) == recipe
    assert Recipe(assignment=method()).assignment == method()


def test_without_a_name_it_is_mira() -> None:
    recipe = load_recipe({"assignment": {"teacher_temperature": 0.2}}, ["assignment.beta=[0.5,0.5]"])
    assert recipe.assignment == MiraSettings(teacher_temperature=0.2, beta=(0.5, 0.5))


def test_naming_another_way_begins_its_section_anew() -> None:
    own = load_recipe("imagenet-resnet50-800ep", ["assignment.name=sinkhorn", "assignment.max_iterations=5"])
    assert own.assignment == SinkhornSettings(max_iterations=5)
    same = load_recipe("demo", ["assignment.name=mira"])
    assert same == load_recipe("demo")


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="cannot be used") as caught:
        load_recipe({"training": {"epochs": -1}, "modle": {}, "teacher": {"momentum": [0.9, 2]}})
    assert all(key in str(caught.value) for key in ("training.epochs", "modle", "teacher.momentum.1"))


def test_overrides_are_yaml_and_the_last_one_holds() -> None:
    recipe = load_recipe({}, ["optimiser.weight_decay=1e-4", "training.epochs=20", "training.epochs=30"])
    assert recipe.optimiser.weight_decay == 1e-4
    assert recipe.training.epochs == 30


@pytest.mark.parametrize("text", ["training", "=3", "training.epochs"])
def test_an_override_without_a_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"section\.key=value"):
        load_recipe({}, [text])


def test_unknown_recipes_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'demo'"):
        load_recipe("dmeo")
    with pytest.raises(ValueError, match="no recipe file"):
        load_recipe(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("training: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_recipe(broken)
    broken.write_text("- 1\n- 2")
    with pytest.raises(ValueError, match="keys and values"):
        load_recipe(broken)


def test_a_recipe_is_frozen() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError):
        recipe.name = "other"  # type: ignore[misc]


def test_resolving_decides_everything_and_is_idempotent() -> None:
    resolved = resolve(load_recipe({}, ["training.batch_size=100"]), pictures=1050)
    text = recipe_to_yaml(resolved)
    # What stays open depends on the pictures, or on what is installed where the run goes on.
    for open_setting in ("stem: auto", "split: auto", "labels: auto", "boards: auto"):
        text = text.replace(open_setting, "")
    assert "auto" not in text
    assert resolve(resolved, pictures=1050) == resolved
    steps = plan(resolved, pictures=1050)
    assert (steps.steps_per_epoch, steps.total, steps.warmup, steps.freeze) == (10, 4000, 100, 10)


def test_a_batch_larger_than_the_data_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"set training\.batch_size to 16"):
        resolve(Recipe(), pictures=100)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no usable device 'cuda:99' here"):
        resolve(load_recipe({}, ["training.device=cuda:99", "training.batch_size=4"]), pictures=10)


def test_what_becomes_impossible_by_resolving_is_refused() -> None:
    recipe = load_recipe({}, ["crops.global_crops.size=32", "evaluation.resize=24", "training.batch_size=4"])
    with pytest.raises(ValueError, match=r"evaluation\.resize \(24\) must be at least evaluation\.size \(32\)"):
        resolve(recipe, pictures=10)


def test_a_short_try_of_a_recipe_has_a_start_that_fits_into_it() -> None:
    with pytest.warns(UserWarning, match=r"optimiser\.warmup_epochs is 0\.1 in place of 3"):
        recipe = load_recipe("imagenette-cpu", ["training.epochs=1"])
    assert recipe.optimiser.warmup_epochs == 0.1
    assert recipe.model.prototypes.freeze_epochs == 0
    assert load_recipe("imagenette-cpu", ["training.epochs=5"]).optimiser.warmup_epochs == 3
    with pytest.raises(ValueError, match="the warm-up must be shorter"):  # what was asked for is not changed
        load_recipe("imagenette-cpu", ["training.epochs=2", "optimiser.warmup_epochs=4"])
