"""Where the colour is done, as a recipe says it."""

import pytest
import torch

import mira
from mira.data import open_source
from mira.training.checkpoint import checkpoint_paths, read_checkpoint
from mira.training.reading import load_recipe
from mira.training.resolve import _augment, resolve


def weights(run) -> dict:
    return read_checkpoint(checkpoint_paths(run / "checkpoints")[-1]).model


def test_auto_is_the_device_only_if_it_is_a_gpu():
    assert _augment("auto", torch.device("cpu")) == "workers"
    assert _augment("auto", torch.device("cuda")) == "device"
    recipe = load_recipe({}, ["training.batch_size=16", "training.device=cpu"])
    assert resolve(recipe, pictures=64).data.augment == "workers"
    asked = load_recipe(recipe.model_dump(), ["data.augment=device"])
    assert resolve(asked, pictures=64).data.augment == "device"


@pytest.mark.slow
def test_a_run_that_colours_on_the_device_has_the_same_bits_for_any_number_of_workers(
    picture_folder, tiny_recipe, tmp_path
):
    tiny_recipe["data"] = {"augment": "device", "decode": "scaled", "split": "all"}
    runs = []
    for workers in (0, 2):
        tiny_recipe["training"]["workers"] = workers
        out = tmp_path / f"workers{workers}"
        runs.append(weights(mira.pretrain(picture_folder, out=out, recipe=tiny_recipe, quiet=True)))
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_a_run_from_before_there_was_a_choice_goes_on_as_it_was(finished_run, tmp_path):
    path = checkpoint_paths(finished_run / "checkpoints")[-1]
    content = torch.load(path, weights_only=True)
    for key in ("augment", "decode"):
        del content["recipe"]["data"][key]
    del content["recipe"]["crops"]["jitter"]["hue_space"]
    old = tmp_path / path.name
    torch.save(content, old)
    recipe = read_checkpoint(old).recipe
    assert (recipe.data.augment, recipe.data.decode, recipe.crops.jitter.hue_space) == ("workers", "exact", "hsv")


def test_a_pattern_of_shards_in_a_recipe():
    """Braces are no YAML mapping there."""
    recipe = load_recipe({}, ["data.source='train-{0..3}.tar'"])
    assert recipe.data.source == "train-{0..3}.tar"
    with pytest.raises(ValueError, match=r"there is no file .*train-0.tar"):
        open_source(recipe.data.source)
