"""Checkpoints on the disk: verified, the newest and the best kept, and what happens when the disk is full."""

from pathlib import Path

import pytest
import torch

import mira
from mira.model.weights import verify_checksums
from mira.training import keeper as module
from mira.training.checkpoint import (
    Checkpoint,
    checkpoint_paths,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from mira.training.keeper import CheckpointKeeper
from mira.training.metrics import read_metrics
from mira.training.recipe import Recipe
from mira.training.resolve import resolve

RECIPE = resolve(Recipe(), pictures=4096)


def checkpoint(step: int) -> Checkpoint:
    values = torch.arange(1000.0) + step
    return Checkpoint(step, RECIPE, {"weight": values}, {"state": {0: {"momentum_buffer": -values}}}, 7, "d", {})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    keeper = CheckpointKeeper(tmp_path, keep=2)
    for step in range(1, 6):
        keeper.save(checkpoint(step), best=step == 2)
    keeper.wait()
    assert names(tmp_path) == ["best.pt", "step-00000004.pt", "step-00000005.pt"]
    assert read_checkpoint(tmp_path / "best.pt").step == 2
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 5
    assert torch.equal(newest.optimiser["state"][0]["momentum_buffer"], -torch.arange(1000.0) - 5)


def test_nothing_is_given_up_while_labels_look_poor(tmp_path: Path) -> None:
    keeper = CheckpointKeeper(tmp_path, keep=1)
    for step in (1, 2, 3):
        keeper.save(checkpoint(step), prune=False)
    keeper.wait()
    assert len(names(tmp_path)) == 3


def flip_a_bit(path: Path) -> None:
    """In the middle of a tensor, where nothing but a checksum can notice."""
    content = bytearray(path.read_bytes())
    place = content.find(torch.arange(500.0, 510.0).numpy().tobytes())
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)


def test_a_single_wrong_bit_is_noticed_and_the_one_before_taken(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint(step))
    flip_a_bit(tmp_path / "step-00000002.pt")
    with pytest.raises(ValueError, match=r"step-00000002\.pt' is damaged: the length or checksum"):
        verify_checksums(tmp_path / "step-00000002.pt")
    with pytest.warns(UserWarning, match="Going back to the checkpoint before"):
        newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1


def test_a_damaged_newer_one_costs_no_good_one(tmp_path: Path) -> None:
    """A run went back behind it, and saves at a step before it."""
    save_checkpoint(tmp_path, checkpoint(200))
    flip_a_bit(tmp_path / "step-00000200.pt")
    for step in (100, 150):
        keeper = CheckpointKeeper(tmp_path, keep=1)
        keeper.save(checkpoint(step))
        keeper.wait()
    assert names(tmp_path) == ["step-00000150.pt", "step-00000200.pt"]
    with pytest.warns(UserWarning, match="step-00000200"):
        assert newest_checkpoint(tmp_path).step == 150


def test_a_write_that_went_wrong_is_told_and_costs_no_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = CheckpointKeeper(tmp_path, keep=1)
    keeper.save(checkpoint(1))
    keeper.wait()
    monkeypatch.setattr(module, "flush", flip_a_bit)  # the disk keeps something else than it was given
    keeper.save(checkpoint(2))
    with pytest.raises(ValueError, match=r"step-00000002\.pt' is damaged"):
        keeper.wait()
    assert names(tmp_path) == ["step-00000001.pt", "step-00000002.pt"]
    keeper.wait()  # told once


def test_a_full_disk_is_a_sentence_and_leaves_the_state_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    real = torch.save
    # Linux' /dev/full takes nothing: the real error of a full disk.
    monkeypatch.setattr(torch, "save", lambda content, path: real(content, "/dev/full"))
    with pytest.raises(OSError, match="step 2 cannot be written to .* is the disk full"):
        CheckpointKeeper(tmp_path, keep=1).save(checkpoint(2))
    assert names(tmp_path) == ["step-00000001.pt"]
    assert read_checkpoint(tmp_path / "step-00000001.pt").step == 1


def test_a_run_keeps_its_best_checkpoint_by_knn(finished_run: Path) -> None:
    lines = {line["step"]: line["knn"] for line in read_metrics(finished_run / "metrics.jsonl") if "knn" in line}
    best = read_checkpoint(finished_run / "checkpoints" / "best.pt").step
    assert lines[best] == max(lines.values())
    assert best == next(step for step, knn in lines.items() if knn == lines[best])  # a tie is no improvement
    assert "best.pt" not in [path.name for path in checkpoint_paths(finished_run / "checkpoints")]
    assert mira.load_run(finished_run / "checkpoints" / "best.pt").step == best
