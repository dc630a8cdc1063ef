"""Whatever happens, a resumed run ends with the bits of the uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import mira
from mira.training.checkpoint import checkpoint_paths, newest_checkpoint


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return {"step": torch.tensor(checkpoint.step), **checkpoint.model}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def metrics(run: Path) -> list[dict]:
    """Lines of metrics without what a clock decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "pictures_per_second", "data_wait")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_recipe: dict) -> Path:
    tiny_recipe["monitor"]["checkpoint_every"] = 0.25
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    return path


def start(arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "mira.cli", "pretrain", "--quiet", *arguments]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)


def kill_group(process: subprocess.Popen) -> None:
    """Kill -9 the process and its workers, as a machine that goes down would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_kill_and_resume_until_the_end(picture_folder: Path, recipe_file: Path, tmp_path: Path) -> None:
    mira.pretrain(picture_folder, out=tmp_path / "whole", recipe=recipe_file, quiet=True)
    broken = tmp_path / "broken"
    process = start([str(picture_folder), "--recipe", str(recipe_file), "--out", str(broken), "training.workers=1"])
    kills = 0
    seen = 0
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[1]
            break
        newest = checkpoint_paths(broken / "checkpoints")
        step = int(newest[-1].stem.removeprefix("step-")) if newest else 0
        # Each life makes some progress and ends at a moment of its own: right after a checkpoint, or later.
        if kills < 4 and step >= seen + 2:
            time.sleep(0.013 * kills)
            kill_group(process)
            kills += 1
            seen = step
            process = start(["--resume", str(broken)])
        time.sleep(0.002)
    assert kills == 4
    assert_same_bits(weights(tmp_path / "whole"), weights(broken))
    assert metrics(tmp_path / "whole") == metrics(broken)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    picture_folder: Path, recipe_file: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    mira.pretrain(picture_folder, out=whole, recipe=recipe_file, overrides=["training.epochs=1"], quiet=True)
    broken.mkdir()
    (broken / "recipe.yaml").write_bytes((whole / "recipe.yaml").read_bytes())
    (broken / "metrics.jsonl").write_text('{"step": 1, "lo')
    mira.resume(broken, quiet=True)
    assert_same_bits(weights(whole), weights(broken))
    assert metrics(whole) == metrics(broken)


def test_workers_do_not_change_a_bit(picture_folder: Path, recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["training.epochs=1"]
    for workers in (0, 2):
        mira.pretrain(
            picture_folder,
            out=tmp_path / str(workers),
            recipe=recipe_file,
            overrides=[*overrides, f"training.workers={workers}"],
            quiet=True,
        )
    assert_same_bits(weights(tmp_path / "0"), weights(tmp_path / "2"))


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    picture_folder: Path, recipe_file: Path, tmp_path: Path
) -> None:
    run = mira.pretrain(picture_folder, out=tmp_path / "run", recipe=recipe_file, quiet=True)
    whole = weights(run)
    newest = checkpoint_paths(run / "checkpoints")[-1]
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="Going back to the checkpoint before"):
        mira.resume(run, quiet=True)
    assert_same_bits(whole, weights(run))


@pytest.mark.parametrize("to_the_whole_group", [False, True])
def test_sigterm_writes_a_checkpoint_and_says_how_to_go_on(
    to_the_whole_group: bool, picture_folder: Path, tiny_recipe: dict, tmp_path: Path
) -> None:
    # Schedulers signal the process group: the loader's workers get it as well.
    tiny_recipe["training"]["workers"] = 2 if to_the_whole_group else 0
    tiny_recipe["training"]["epochs"] = 200
    tiny_recipe["monitor"]["checkpoint_every"] = 1000
    file = tmp_path / "long.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe))
    run = tmp_path / "run"
    process = start([str(picture_folder), "--recipe", str(file), "--out", str(run)])
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    if to_the_whole_group:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"continue with: mira pretrain --resume {run}" in message
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step >= 3


def test_what_may_not_change(picture_folder: Path, finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'training\.batch_size' cannot change .* data.cache_gigabytes"):
        mira.resume(finished_run, overrides=["training.batch_size=8"])
    with pytest.raises(ValueError, match="there is no run in"):
        mira.resume(tmp_path)


def test_other_pictures_are_noticed(tiny_recipe: dict, tmp_path: Path) -> None:
    from tiny import write_pictures

    tiny_recipe["training"]["epochs"] = 1
    pictures = write_pictures(tmp_path / "pictures", 32)
    run = mira.pretrain(pictures, out=tmp_path / "run", recipe=tiny_recipe, quiet=True)
    next(pictures.rglob("*.png")).unlink()
    with pytest.raises(ValueError, match="began with 32 pictures and .* now has 31"):
        mira.resume(run)


def test_what_a_killed_save_left_behind_is_removed(
    finished_run: Path, picture_folder: Path, tiny_recipe: dict, tmp_path: Path
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    half = run / "checkpoints" / ".step-00000004.123.tmp.pt"
    half.write_bytes(b"half")
    mira.resume(run, quiet=True)
    assert not half.exists()
    only_half = tmp_path / "new"
    only_half.mkdir()
    (only_half / ".recipe.7.tmp.yaml").write_text("nam")
    with pytest.raises(ValueError, match="there is no run in"):
        mira.resume(only_half)
    mira.pretrain(picture_folder, out=only_half, recipe=tiny_recipe, overrides=["training.epochs=1"], quiet=True)


def test_renamed_pictures_are_noticed(tiny_recipe: dict, tmp_path: Path) -> None:
    from tiny import write_pictures

    tiny_recipe["training"]["epochs"] = 1
    pictures = write_pictures(tmp_path / "pictures", 32)
    run = mira.pretrain(pictures, out=tmp_path / "run", recipe=tiny_recipe, quiet=True)
    first = next(pictures.rglob("*.png"))
    first.rename(first.with_name("other.png"))
    with pytest.raises(ValueError, match="or other names"):
        mira.resume(run)
