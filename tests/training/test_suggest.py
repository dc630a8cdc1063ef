from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_pictures

import mira
from mira.training.reading import load_recipe, parse_overrides
from mira.training.resolve import plan, resolve
from mira.training.suggest import choices, suggest_recipe


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
@pytest.mark.parametrize("count", [32, 1000, 9469, 1_281_167])
@pytest.mark.parametrize("side", [16, 28, 224, 3000])
def test_every_suggestion_is_a_recipe_that_can_run(count: int, side: int, device: str) -> None:
    values, pictures = suggest_recipe(Blank(count, side), torch.device(device))
    recipe = resolve(load_recipe(values, ["training.device=cpu"]), pictures=count)
    schedule = plan(recipe, pictures=count)
    assert schedule.warmup < schedule.total
    assert recipe.crops.global_crops.size <= max(side, 24)
    assert pictures == f"{count} colour pictures, short side about {side}"


def test_grey_pictures_get_a_grey_backbone() -> None:
    values, _ = suggest_recipe(Blank(100, 50, channels=1), torch.device("cpu"))
    assert values["model"]["backbone"]["channels"] == 1


def test_too_few_pictures() -> None:
    with pytest.raises(ValueError, match="fewer than 32"):
        suggest_recipe(Blank(31, 50), torch.device("cpu"))


@pytest.mark.slow
def test_a_folder_without_a_recipe_runs_and_says_what_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 40, side=24)
    run = mira.pretrain(pictures, out=tmp_path / "run", overrides=["training.epochs=2"])
    assert mira.load_run(run).recipe.name == "suggested"
    said = capsys.readouterr().err
    assert (
        "chosen for 40 colour pictures, short side about 24: resnet18, global crops of 24 pixels, 32 prototypes" in said
    )
    assert "2 epochs" not in said  # that was not chosen
    assert "MIRA's small stem" in said


def test_a_suggestion_is_built_around_what_is_asked() -> None:
    values, _ = suggest_recipe(Blank(100, 64), torch.device("cpu"), epochs=1, backbone="convnext_atto")
    recipe = load_recipe(values)
    assert recipe.training.epochs == 1
    assert recipe.optimiser.warmup_epochs < 1
    assert recipe.model.backbone.options == {}


def test_what_was_asked_for_is_not_said_to_be_chosen() -> None:
    values, _ = suggest_recipe(Blank(5000, 224), torch.device("cpu"))
    asked = ["training.epochs=1", "crops.local_crops={count: 0}", "optimiser.warmup_epochs=0", "training.batch_size=32"]
    asked += ["model.prototypes.freeze_epochs=0"]
    assert choices(load_recipe(values), {}) == [
        "resnet18",
        "global crops of 64 pixels",
        "local crops of 24",
        "64 prototypes",
        "batches of 128",
        "80 epochs",
    ]
    assert choices(load_recipe(values, asked), parse_overrides(asked)) == [
        "resnet18",
        "global crops of 64 pixels",
        "64 prototypes",
    ]


def test_a_mistyped_setting_is_refused_before_anything_is_said_to_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 40, side=24)
    with pytest.raises(ValueError, match="did you mean 'training.epochs'"):
        mira.pretrain(pictures, out=tmp_path / "run", overrides=["training.epoch=2"])
    assert capsys.readouterr().err == ""
