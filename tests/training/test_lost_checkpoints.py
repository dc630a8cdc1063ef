"""A resume never deletes what was learned or measured; it says what is missing, ignored or edited."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import mira
from mira.cli import main
from mira.files import remove
from mira.training import start
from mira.training.checkpoint import checkpoint_paths, read_checkpoint
from mira.training.run_folder import RunFolder


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def without_checkpoints(run: Path, how: str) -> None:
    if how == "only the best is kept":
        shutil.move(checkpoint_paths(run / "checkpoints")[-1], run / "checkpoints/best.pt")
    if how == "all are moved away":
        shutil.move(run / "checkpoints", run.parent / "elsewhere")
    for path in checkpoint_paths(run / "checkpoints"):
        path.unlink()
    if how == "all that tells is the metrics":
        (run / "ended.json").unlink()
        (run / "results.jsonl").unlink(missing_ok=True)
        (run / "checkpoints/best.pt").unlink(missing_ok=True)
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(lines[:5]))  # a checkpoint was due at step 4


@pytest.mark.parametrize(
    "how", ["deleted", "only the best is kept", "all are moved away", "all that tells is the metrics"]
)
@pytest.mark.parametrize("way", ["--resume", "--or-resume", "restart by torchrun", "restart by SLURM"])
def test_a_run_whose_checkpoints_are_gone_is_refused_and_left_as_it_is(
    how: str, way: str, run: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (run / "report.html").write_text("kept")
    without_checkpoints(run, how)
    before = contents(run)
    command = ["pretrain", str(picture_folder), "--recipe", str(run / "recipe.yaml"), "--out", str(run), "--quiet"]
    if way == "--resume":
        command = ["pretrain", "--resume", str(run), "--quiet"]
    elif way == "--or-resume":
        command.append(way)
    else:
        monkeypatch.setenv("SLURM_RESTART_COUNT" if "SLURM" in way else "TORCHELASTIC_RESTART_COUNT", "1")
    assert main(command) == 2
    assert "the checkpoints of the run in" in capsys.readouterr().err
    assert contents(run) == before


def test_a_run_stopped_before_its_first_checkpoint_begins_once_more_and_keeps_what_is_there(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    remove(run / "checkpoints")
    (run / "ended.json").unlink()
    (run / "report.html").write_text("kept")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:4]))  # killed between the line of step 4 and its checkpoint
    mira.resume(run)
    assert "begins once more" in capsys.readouterr().err
    assert (run / "report.html").read_text() == "kept"
    assert checkpoint_paths(run / "checkpoints")[-1].name == "step-00000012.pt"
    clock = ("time", "pictures_per_second", "data_wait")
    again = (run / "metrics.jsonl").read_text().splitlines()
    for one, other in zip(lines, again, strict=True):
        assert {k: v for k, v in json.loads(one).items() if k not in clock} == {
            k: v for k, v in json.loads(other).items() if k not in clock
        }


def test_a_crash_in_the_middle_of_overwriting_leaves_a_folder_that_can_be_overwritten(
    run: Path, picture_folder: Path, tiny_recipe: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_recipe["training"]["epochs"] = 1
    (run / "report.html").write_text("old")
    files = len(RunFolder(run).own)
    for crash in (0, 1, 2, files - 1):
        folder = run.with_name(f"run{crash}")
        shutil.copytree(run, folder)
        count = 0

        def fail_at(path: Path, crash: int = crash) -> None:
            nonlocal count
            count += 1
            if count > crash:
                raise KeyboardInterrupt
            remove(path)

        with monkeypatch.context() as patch:
            patch.setattr("mira.training.begin.remove", fail_at)
            with pytest.raises(KeyboardInterrupt):
                mira.pretrain(picture_folder, out=folder, recipe=tiny_recipe, overwrite=True, quiet=True)
        if crash:  # no mixture: what was overwritten is not gone on with
            with pytest.raises(ValueError, match=r"there is no run|checkpoints of the run in .* are gone"):
                mira.resume(folder, quiet=True)
        if crash != 1:
            mira.pretrain(picture_folder, out=folder, recipe=tiny_recipe, overwrite=True, quiet=True)
            assert not (folder / "report.html").exists()
            assert checkpoint_paths(folder / "checkpoints")[-1].name == "step-00000004.pt"


def test_a_run_without_its_recipe_is_a_run_and_gets_it_back(run: Path, picture_folder: Path, tiny_recipe: dict) -> None:
    whole = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").unlink()
    with pytest.raises(ValueError, match="already holds a run"):
        mira.pretrain(picture_folder, out=run, recipe=tiny_recipe, quiet=True)
    mira.pretrain(picture_folder, out=run, recipe=tiny_recipe, or_resume=True, quiet=True)
    assert (run / "recipe.yaml").read_text() == whole


@pytest.mark.parametrize("edit", ["training: {epochs: 99}", "", "[broken"])
def test_an_edited_recipe_is_said_and_the_runs_own_shown(edit: str, run: Path) -> None:
    own = (run / "recipe.yaml").read_text()
    content = own if edit.startswith("[") else ""
    if edit.startswith("training"):
        content = own.replace("  epochs: 3\n", "  epochs: 99\n").replace("  workers: 0\n", "  workers: 1\n")
        assert content != own
    (run / "recipe.yaml").write_text(content + ("" if edit.startswith("training") else edit))
    page = mira.write_report(run).read_text()
    assert "3 of 3" in page
    assert " of 99" not in page
    with pytest.warns(UserWarning, match=r"recipe\.yaml' was edited \(.*(training\.epochs=|no recipe)"):
        mira.resume(run, quiet=True)
    assert (run / "recipe.yaml").read_text() == own


def test_what_or_resume_ignores_is_said_and_what_it_does_not_is_not(
    run: Path, picture_folder: Path, tiny_recipe: dict, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    recipe = tmp_path / "tiny.yaml"
    tiny_recipe["data"] = {"labels": "folder", "split": "all"}
    tiny_recipe["monitor"]["knn_every"] = 1
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    same = {"out": run, "recipe": recipe, "or_resume": True, "quiet": True}
    mira.pretrain(picture_folder, overrides=["training.workers=1", "training.batch_size=16"], **same)
    assert not [one for one in recwarn if "ignored" in str(one.message)]
    with pytest.warns(UserWarning, match=r"ignored: optimiser\.learning_rate=1\.0, training\.epochs=9$"):
        mira.pretrain(picture_folder, overrides=["training.epochs=9", "optimiser.learning_rate=1.0"], **same)
    with pytest.warns(UserWarning, match=r"ignored: data\.source=builtin:fashion"):
        mira.pretrain("builtin:fashion", out=run, or_resume=True, quiet=True)


def test_evaluating_while_a_run_gives_up_old_checkpoints(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mira.training import checkpoint

    newest = checkpoint_paths(run / "checkpoints")[-1]
    usual = checkpoint.read_checkpoint
    calls = 0

    def pruned_meanwhile(path: Path) -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.rename(path.with_name("step-00000016.pt"))
        return usual(path)

    monkeypatch.setattr(checkpoint, "read_checkpoint", pruned_meanwhile)
    found = checkpoint.newest_checkpoint(run / "checkpoints")
    assert found is not None
    assert found.step == 12
    assert not newest.exists()


def test_own_files_are_all_that_a_run_leaves(run: Path) -> None:
    mira.write_report(run)
    assert set(run.iterdir()) <= set(RunFolder(run).own)
    assert read_checkpoint(checkpoint_paths(run / "checkpoints")[-1]).step == 12
    assert start.CHANGEABLE
