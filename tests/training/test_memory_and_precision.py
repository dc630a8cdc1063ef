"""float16, torch.compile, activations computed again, and a device that is too small."""

from pathlib import Path

import pytest
import torch

import mira
from mira.training import loop
from mira.training.checkpoint import newest_checkpoint
from mira.training.metrics import read_metrics


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint.model


@pytest.fixture
def sgd_recipe(tiny_recipe: dict) -> dict:
    tiny_recipe["optimiser"] = {"name": "sgd", "learning_rate": 0.05, "warmup_epochs": 0.5}
    tiny_recipe["training"]["epochs"] = 2
    return tiny_recipe


def test_float16_scales_the_loss_and_keeps_the_scale_over_a_stop(
    picture_folder: Path, sgd_recipe: dict, tmp_path: Path
) -> None:
    sgd_recipe["monitor"]["checkpoint_every"] = 0.25
    sgd_recipe["monitor"]["keep_checkpoints"] = 9
    run = mira.pretrain(
        picture_folder, out=tmp_path / "run", recipe=sgd_recipe, overrides=["training.precision=float16"], quiet=True
    )
    whole = newest_checkpoint(run / "checkpoints")
    assert whole is not None
    assert whole.scaler["scale"] > 1
    sgd_recipe["training"]["epochs"] = 1
    single = mira.pretrain(picture_folder, out=tmp_path / "single", recipe=sgd_recipe, quiet=True)
    first, expected = (read_metrics(folder / "metrics.jsonl")[0] for folder in (run, single))
    assert first["loss"] == pytest.approx(expected["loss"], rel=0.01)
    norms = [line["grad_norm"] for line in read_metrics(run / "metrics.jsonl")]
    # Of the loss, not of the scaled one; 0 where a step was left out, as the first ones are until the scale fits.
    assert 0.1 * expected["grad_norm"] < max(norms) < 10 * expected["grad_norm"]
    for step in (6, 7, 8):
        (run / "checkpoints" / f"step-{step:08}.pt").unlink()
    mira.resume(run, quiet=True)
    again = newest_checkpoint(run / "checkpoints")
    assert again is not None
    assert again.scaler == whole.scaler
    assert all(torch.equal(again.model[name], value) for name, value in whole.model.items())


def test_activations_computed_again_give_the_same_weights(
    picture_folder: Path, sgd_recipe: dict, tmp_path: Path
) -> None:
    runs = [
        mira.pretrain(
            picture_folder,
            out=tmp_path / str(again),
            recipe=sgd_recipe,
            overrides=[f"training.checkpoint_activations={again}"],
            quiet=True,
        )
        for again in ("false", "true")
    ]
    plain, again = map(final_weights, runs)
    for name, value in plain.items():
        # The student's running statistics are moved by both passes; nothing in training reads them.
        if not (name.startswith("student") and ("running" in name or "tracked" in name)):
            torch.testing.assert_close(again[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_a_backbone_that_cannot_is_refused(picture_folder: Path, sgd_recipe: dict, tmp_path: Path) -> None:
    sgd_recipe["model"]["backbone"] = {"name": "dla34"}
    sgd_recipe["crops"] = {"global_crops": {"size": 64}, "local_crops": {"count": 0}}
    sgd_recipe["training"]["checkpoint_activations"] = True
    with pytest.raises(ValueError, match="'dla34' cannot compute its activations again"):
        mira.pretrain(picture_folder, out=tmp_path / "run", recipe=sgd_recipe, quiet=True)


@pytest.mark.slow
def test_compiled_backbones_train_alike_and_keep_their_names(
    picture_folder: Path, sgd_recipe: dict, tmp_path: Path
) -> None:
    sgd_recipe["training"]["epochs"] = 1
    sgd_recipe["optimiser"]["warmup_epochs"] = 0.5
    sgd_recipe["crops"]["local_crops"]["count"] = 0
    sgd_recipe["model"]["backbone"]["options"] = {"layers": [2, 0, 0, 0], "channels": [8] * 4}  # little to compile
    runs = [
        mira.pretrain(
            picture_folder,
            out=tmp_path / str(compiled),
            recipe=sgd_recipe,
            overrides=[f"training.compile={compiled}"],
            quiet=True,
        )
        for compiled in ("false", "true")
    ]
    plain, compiled = map(final_weights, runs)
    assert list(plain) == list(compiled)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_too_little_memory_is_a_sentence(
    picture_folder: Path, sgd_recipe: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(loop, "train_step", too_large)
    sgd_recipe["training"]["accumulate"] = 2
    words = r"too small for 8 pictures at a time.* set training\.accumulate to 4 \(now 2\), or set training\.checkpoint"
    with pytest.raises(ValueError, match=words):
        mira.pretrain(picture_folder, out=tmp_path / "run", recipe=sgd_recipe, quiet=True)


def test_parts_of_two_pictures_at_least(sgd_recipe: dict) -> None:
    sgd_recipe["training"]["accumulate"] = 9
    with pytest.raises(ValueError, match="a part of a batch needs two pictures at least"):
        mira.load_recipe(sgd_recipe)
