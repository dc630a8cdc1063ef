import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_pictures

import mira
from mira.distributed import ALONE
from mira.training.auto_recipe import MAX_EPOCHS, choices, choose_recipe, fit_epochs, parse_budget
from mira.training.batches import augmentation, crop_batches
from mira.training.prepare import prepare
from mira.training.reading import load_recipe, parse_overrides
from mira.training.resolve import plan, resolve
from mira.training.run_folder import initial_model
from mira.training.step import train_step, values_at


class Blank:
    """Pictures of one size."""

    name, labels, classes = "blank", None, ()

    def __init__(self, count: int, side: int, channels: int = 3) -> None:
        self._count = count
        self._picture = np.random.default_rng(0).integers(0, 255, (side, side + 7, channels), dtype=np.uint8)

    def __len__(self) -> int:
        return self._count

    def key(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> np.ndarray:
        return self._picture


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("count", [32, 50, 1000, 9469, 1_281_167])
@pytest.mark.parametrize("side", [16, 28, 224, 3000])
@pytest.mark.parametrize("method", ["mira", "sinkhorn", "centring", "softmax"])
def test_every_choice_is_a_recipe_that_can_run(count: int, side: int, device: str, method: str) -> None:
    values, images = choose_recipe(Blank(count, side), torch.device(device), method=method)
    assert images == f"{count} images, short side about {side}"
    for speed in (3.0, 150.0, 1e5):
        for budget in (60.0, 1200.0, None):
            fitted = fit_epochs(values, count, speed, budget)
            recipe = resolve(load_recipe(fitted, ["training.device=cpu"]), pictures=count)
            schedule = plan(recipe, pictures=count)
            assert schedule.warmup < schedule.total
            assert schedule.freeze < schedule.total
            assert recipe.crops.global_crops.size <= max(side, 24)
            assert recipe.assignment.name == method
            assert (recipe.assignment.target_entropy is None) == (method == "softmax")
            epochs = recipe.training.epochs
            if budget is not None and epochs > 1:
                assert schedule.total * recipe.training.batch_size / speed <= budget
                assert epochs == MAX_EPOCHS or (epochs + 2) * count / speed > 0.5 * budget


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5h", 5400)])
def test_budgets_are_times(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "20", "0m", "-5m", "5 minutes", "m", "1e999h", "h20m", 0.0, -5.0, math.nan, math.inf]
)
def test_what_is_no_time_is_refused(text: str | float) -> None:
    with pytest.raises(ValueError, match="20m, 2h or 1h30m"):
        parse_budget(text)


def test_gray_images_get_a_gray_backbone() -> None:
    values, _ = choose_recipe(Blank(100, 50, channels=1), torch.device("cpu"))
    assert values["model"]["backbone"]["channels"] == 1


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match="fewer than 32.*mira embed timm:resnet18"):
        choose_recipe(Blank(31, 50), torch.device("cpu"))


@pytest.mark.parametrize("asked", [{"recipe": "demo"}, {"overrides": ["training.epochs=2"]}])
def test_a_budget_beside_what_decides_the_epochs_is_refused(asked: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training\.epochs"):
        mira.pretrain("builtin:fashion", out=tmp_path / "run", budget="5m", **asked)


def test_a_folder_without_a_recipe_runs_and_says_what_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mira.training.auto_recipe.MEASURED", 0.5)
    folder = write_pictures(tmp_path / "images", 64, side=24)
    run = mira.pretrain(folder, out=tmp_path / "run", budget=3.0, overrides=["training.workers=0"])
    recipe = mira.load_run(run).recipe
    assert recipe.name == "auto"
    said = capsys.readouterr().err
    assert "chosen for 64 images, short side about 24: resnet18, global crops of 24 pixels, 32 prototypes" in said
    assert f"{recipe.training.epochs} epoch" in said
    assert "this takes about" in said
    assert "images/s" in said
    again = mira.pretrain(folder, out=tmp_path / "again", overrides=["training.epochs=2"])
    assert mira.load_run(again).recipe.training.epochs == 2
    assert "2 epochs" not in capsys.readouterr().err  # that was not chosen


def test_a_choice_is_built_around_what_is_asked() -> None:
    values, _ = choose_recipe(Blank(100, 64), torch.device("cpu"), epochs=1, backbone="convnext_atto")
    recipe = load_recipe(values)
    assert recipe.training.epochs == 1
    assert recipe.optimiser.warmup_epochs < 1
    assert recipe.model.backbone.options == {}


def test_what_was_asked_for_is_not_said_to_be_chosen() -> None:
    values, _ = choose_recipe(Blank(5000, 224), torch.device("cpu"))
    asked = ["training.epochs=1", "crops.local_crops={count: 0}", "optimiser.warmup_epochs=0", "training.batch_size=32"]
    asked += ["model.prototypes.freeze_epochs=0"]
    assert choices(load_recipe(values), {}) == [
        "resnet18",
        "global crops of 40 pixels",
        "256 prototypes",
        "batches of 64",
        "400 epochs",
    ]
    assert choices(load_recipe(values, asked), parse_overrides(asked)) == [
        "resnet18",
        "global crops of 40 pixels",
        "256 prototypes",
    ]


def test_a_mistyped_setting_is_refused_before_anything_is_said_to_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 40, side=24)
    with pytest.raises(ValueError, match="did you mean 'training.epochs'"):
        mira.pretrain(pictures, out=tmp_path / "run", overrides=["training.epoch=2"])
    assert capsys.readouterr().err == ""


class Photographs(Blank):
    """Images with the spectrum of photographs (amplitudes fall with frequency), colors and a large shape each."""

    def __init__(self, count: int, side: int) -> None:
        super().__init__(count, side)
        rng = np.random.default_rng(0)
        rows, columns = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
        falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / side)
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, 3, side, side))) * falloff).real
        noise /= noise.std((2, 3), keepdims=True)
        mixing = np.eye(3) * 0.3 + rng.normal(size=(count, 3, 3)) * 0.5
        color = rng.normal(size=(count, 3, 1, 1)) * 40
        y, x = np.mgrid[:side, :side] / side
        center, radius = rng.uniform(0.2, 0.8, (count, 2, 1, 1)), rng.uniform(0.1, 0.4, (count, 1, 1))
        shape = np.hypot(y - center[:, 0], x - center[:, 1]) < radius
        images = 128 + 40 * np.einsum("ncd,ndhw->nchw", mixing, noise) + color * (1 + shape[:, None])
        self._images = images.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def read(self, index: int) -> np.ndarray:
        return self._images[index]


def label_information(overrides: list[str]) -> list[float]:
    """Of 60 steps of the recipe that is chosen for 300 images, as if it were to run for 100 epochs."""
    source = Photographs(300, 24)
    values, _ = choose_recipe(source, torch.device("cpu"), epochs=100)
    small = ["model.backbone.options={layers: [1,1,1,1], channels: [16,32,64,128]}", "training.workers=0"]
    recipe = resolve(load_recipe(values, [*small, *overrides]), pictures=len(source))
    schedule, device = plan(recipe, pictures=len(source)), torch.device("cpu")
    state = prepare(initial_model(recipe), recipe, device, ALONE, checkpoint=None)
    to_views, information = augmentation(recipe, device), []
    for step, batch in enumerate(crop_batches(recipe, source, last_step=60)):
        output = train_step(
            state.model,
            state.optimiser,
            to_views(batch),
            values_at(step, recipe, schedule),
            recipe,
            label_state=state.label_state,
        )
        state.label_state = output.label_state
        information.append(output.metrics["label_mi"].item() / math.log(32))
    return information


@pytest.mark.slow
def test_the_recipe_of_a_strangers_folder_keeps_its_labels_alive() -> None:
    kept = label_information([])
    assert min(kept[5:]) > kept[0]
    assert np.mean(kept[-10:]) > 0.4
    published = label_information(
        ["assignment={name: mira, teacher_temperature: 0.225, beta: [0.75, 0.6667], target_entropy: null}"]
    )
    assert published[-1] < 0.25 * published[0]  # on a network that has not learned, the published temperature decays
