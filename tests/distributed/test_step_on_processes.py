"""Steps over processes, and over parts of a batch, equal steps on the whole batch in one process."""

import copy

import pytest
import torch
from processes import on_ranks
from torch import Tensor

from mira.data.order import shares
from mira.distributed import ALONE, Ranks
from mira.model import Mira
from mira.model.sync_batchnorm import synchronise_batch_norm
from mira.training.optimiser import create_optimiser
from mira.training.recipe import Recipe
from mira.training.schedules import Plan
from mira.training.step import train_step, values_at

PLAN = Plan(steps_per_epoch=2, total=8, warmup=1, freeze=2)
STEPS = 4
RESNET = {"name": "resnet18", "options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}
# Without BatchNorm, a picture's features do not depend on its company: parts of a batch are the batch.
CONVNEXT = {"name": "convnext_atto", "options": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}}


def recipe_of(backbone: dict, *, batch: int, hidden_layers: int = 2, **training: object) -> Recipe:
    return Recipe.model_validate(
        {
            "crops": {"global_crops": {"size": 32}, "local_crops": {"size": 16, "count": 2}},
            "model": {
                "backbone": backbone,
                "head": {"hidden": 12, "layers": hidden_layers, "width": 8},
                "prototypes": {"count": 10, "freeze_epochs": 1},
            },
            "optimiser": {"warmup_epochs": 0.5, "learning_rate": 4.0},
            "training": {"epochs": 4, "batch_size": batch, "precision": "float32", **training},
        }
    )


def views_of(step: int, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(batch, 3, side, side, generator=generator, dtype=torch.float64) for side in (32, 32, 16, 16)]


def some_steps(ranks: Ranks, recipe: Recipe, model: Mira) -> tuple[list[dict[str, float]], Tensor, dict[str, Tensor]]:
    """Metrics of every step, this rank's labels of the last, and the weights after it."""
    batch = recipe.training.batch_size
    model = copy.deepcopy(model).train()
    if ranks.world > 1:
        synchronise_batch_norm(model, ranks.sum)
    optimiser = create_optimiser(model, recipe.optimiser)
    places = shares(batch, rank=ranks.rank, world=ranks.world, parts=recipe.training.accumulate)
    metrics = []
    for step in range(STEPS):
        views = [torch.cat([view[place] for place in places]) for view in views_of(step, batch)]
        output = train_step(model, optimiser, views, values_at(step, recipe, PLAN), recipe, ranks=ranks)
        metrics.append({name: value.item() for name, value in output.metrics.items()})
    return metrics, output.labels, model.state_dict()


def assert_equal_training(parts: list, whole: tuple, tolerance: float) -> None:
    for metrics, _, weights in parts:
        for ours, theirs in zip(metrics, whole[0], strict=True):
            assert ours == pytest.approx(theirs, abs=tolerance, rel=tolerance)
        for name, value in whole[2].items():
            torch.testing.assert_close(weights[name], value, rtol=tolerance, atol=tolerance, msg=name)


def model_of(recipe: Recipe) -> Mira:
    torch.manual_seed(0)
    return Mira(recipe.model, crop_size=32).double()


@pytest.mark.parametrize("crop_batching", ["by_size", "single"])
@pytest.mark.parametrize(("world", "batch"), [(2, 12), (4, 14)])
def test_processes_equal_one_on_the_joined_batch(world: int, batch: int, crop_batching: str) -> None:
    recipe = recipe_of(RESNET, batch=batch, crop_batching=crop_batching)
    model = model_of(recipe)
    whole = some_steps(ALONE, recipe, model)
    parts = on_ranks(world, some_steps, recipe, model)
    assert_equal_training(parts, whole, 1e-8)
    torch.testing.assert_close(torch.cat([labels for _, labels, _ in parts], 1), whole[1], rtol=0, atol=1e-8)
    for _, _, weights in parts:  # the same bits on every rank, so that they cannot drift apart
        assert all(torch.equal(value, parts[0][2][name]) for name, value in weights.items())
    moved = max((whole[2][name] - value).abs().max().item() for name, value in model.state_dict().items())
    assert moved > 0.01


@pytest.mark.parametrize("accumulate", [2, 3])
def test_parts_of_a_batch_equal_the_batch_without_batchnorm(accumulate: int) -> None:
    whole_recipe = recipe_of(CONVNEXT, batch=12, hidden_layers=0)
    model = model_of(whole_recipe)
    whole = some_steps(ALONE, whole_recipe, model)
    cut = recipe_of(CONVNEXT, batch=12, hidden_layers=0, accumulate=accumulate)
    parts = some_steps(ALONE, cut, model)
    assert_equal_training([parts], whole, 1e-9)
    torch.testing.assert_close(parts[1], whole[1], rtol=0, atol=1e-9)


def test_parts_of_a_batch_have_their_own_batchnorm_statistics_and_the_same_labels_problem() -> None:
    whole_recipe = recipe_of(RESNET, batch=12)
    model = model_of(whole_recipe)
    whole, parts = (some_steps(ALONE, recipe_of(RESNET, batch=12, accumulate=n), model) for n in (1, 2))
    assert parts[0][0]["loss"] != pytest.approx(whole[0][0]["loss"], rel=1e-6)
    assert parts[1].sum(-1).allclose(torch.ones(2, 12, dtype=torch.float64))


def test_parts_over_processes_equal_parts_in_one() -> None:
    recipe = recipe_of(RESNET, batch=13, accumulate=2)
    model = model_of(recipe)
    assert_equal_training(on_ranks(3, some_steps, recipe, model), some_steps(ALONE, recipe, model), 1e-8)


def collectives_of_a_step(ranks: Ranks, recipe: Recipe, model: Mira) -> int:
    import torch.distributed as dist

    calls = 0
    real = dist.all_reduce

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        return real(*args, **kwargs)

    dist.all_reduce = counted
    some_steps(ranks, recipe, model)
    return calls


def test_collectives_of_a_step_are_those_of_the_labels_and_two_more() -> None:
    recipe = recipe_of(CONVNEXT, batch=12, hidden_layers=0)
    solver = recipe.assignment.max_iterations + 2
    assert on_ranks(2, collectives_of_a_step, recipe, model_of(recipe)) == [STEPS * (solver + 2)] * 2
