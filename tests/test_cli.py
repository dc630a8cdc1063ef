"""The command line as a person uses it: what it prints, writes and returns."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_pictures

import mira
from mira.cli import main
from mira.errors import EXIT_STOPPED, EXIT_UNUSABLE
from mira.evaluation import subject as subject_module
from mira.evaluation.results import Result, append_results, read_results
from mira.model.exported import timm_call

import timm  # isort: skip  (mira has mended torchvision by now)


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose results are this test's."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_embed_writes_names_features_and_labels(finished_run: Path, picture_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    command = ["embed", str(finished_run), str(picture_folder), "--labels", "folder", "--out", str(out), "--quiet"]
    assert main(command) == 0
    with np.load(out) as content:
        assert content["features"].shape == (64, 16)
        assert content["keys"][0] == "class0/0000.png"
        assert set(content["labels"]) == {0, 1}
        features = mira.embed(finished_run, picture_folder)
        np.testing.assert_array_equal(features.features.numpy(), content["features"])


def test_embed_names_what_it_leaves_out(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = write_pictures(tmp_path / "pictures", 4)
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    assert main(["embed", str(finished_run), str(pictures), "--out", str(tmp_path / "f.parquet"), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "4 pictures, 16 numbers each" in printed.out
    assert "broken.jpg" in printed.err


def test_the_exported_backbone_is_the_teacher_in_timm_and_in_mira(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    standard = mira.load_run(finished_run).recipe.model.backbone
    assert main(["export", str(finished_run), "--out", str(out)]) == 0
    ours, run = mira.load_backbone(out), mira.load_run(finished_run)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x), run.backbone(x))
    assert ours.preprocessing == run.preprocessing
    assert ours.num_features == 16
    assert not ours.training
    assert standard.name == "resnet18"
    assert mira.load_backbone(finished_run).state_dict().keys() == ours.state_dict().keys()


def test_an_export_with_the_standard_stem_loads_in_timm(
    tiny_recipe: dict, picture_folder: Path, tmp_path: Path
) -> None:
    tiny_recipe["model"]["backbone"]["stem"] = "standard"
    tiny_recipe["training"]["epochs"] = 1
    run = mira.pretrain(picture_folder, out=tmp_path / "run", recipe=tiny_recipe, quiet=True)
    path = mira.export(run, tmp_path / "weights.safetensors")
    call = timm_call(path)
    assert call is not None
    theirs = eval(call, {"timm": timm}).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(theirs(x), mira.load_backbone(path)(x))


def evaluate(run: Path, *words: str, protocols: str = "knn") -> list[Result]:
    """What `mira evaluate` adds to the run's results."""
    file = run / "results.jsonl"
    before = len(read_results(file))
    assert main(["evaluate", protocols, str(run), *words, "--workers", "0", "--quiet"]) == 0
    return read_results(file)[before:]


def test_evaluate_prints_the_floors_and_keeps_the_results(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = mira.load_run(run).checkpoint.model
    found = evaluate(
        run,
        "--k",
        "5",
        "--fractions",
        "1",
        "0.5",
        "--floors",
        "--clusters",
        "--shift",
        "2",
        "--seeds",
        "0",
        "1",
    )
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("MIRA", "raw pixels", "random", "k-means", "moved by ≤ 2 px", "±"))
    assert {one.features for one in found} == {"MIRA", "raw pixels", "random backbone"}
    assert {one.protocol for one in found} == {"knn", "clusters"}
    assert {one.seed for one in found} == {0, 1}
    after = mira.load_run(run).checkpoint.model
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_its_checkpoint_and_its_export_are_one_backbone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (one,) = evaluate(run, "--k", "3", "--fractions", "1")
    data = mira.load_run(run).recipe.data.source
    exported = mira.export(run, tmp_path / "weights.safetensors")
    (checkpoint,) = sorted((run / "checkpoints").iterdir())[-1:]
    for path in (checkpoint, exported):
        command = ["evaluate", "knn", str(path), data, "--labels", "folder", "--k", "3", "--fractions", "1"]
        assert main([*command, "--workers", "0"]) == 0
        assert "kept in results.jsonl" in capsys.readouterr().err
    for other in read_results(tmp_path / "results.jsonl"):
        assert (other.checkpoint_hash, other.value, other.settings) == (one.checkpoint_hash, one.value, one.settings)
        assert other.checkpoint != one.checkpoint


def test_protocols_share_one_pass_over_the_pictures(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    extract = subject_module.extract_features

    def counting(backbone, source, **more):
        read.append(len(source))
        return extract(backbone, source, **more)

    monkeypatch.setattr(subject_module, "extract_features", counting)
    evaluate(run, "--no-cache", "--k", "3", "--penalties", "2", protocols="knn,clusters,health,logistic")
    assert len(read) == 2  # training and test pictures, once each
    evaluate(run, "--no-cache", "--k", "3")
    assert len(read) == 4  # forgotten in between
    evaluate(run, "--k", "3")
    kept = len(read)
    evaluate(run, "--k", "4")
    assert len(read) == kept


def test_resume_takes_over_what_is_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(evaluate(run, "--k", "7", "--fractions", "1")) == 1
    assert evaluate(run, "--k", "7", "--fractions", "1", "--resume") == []
    assert "k 7" in capsys.readouterr().out
    assert len(evaluate(run, "--k", "7", "--fractions", "1", "--seeds", "0", "1", "--resume")) == 1
    assert len(evaluate(run, "--k", "7", "--fractions", "1")) == 1


def test_results_shows_one_table_of_many_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_results(
        tmp_path / "a" / "results.jsonl",
        [Result("health", "MIRA", "RankMe", 3.21, {}, "d", 0, 9, checkpoint="a", seed=seed) for seed in (0, 1)],
    )
    assert main(["results", str(tmp_path / "a")]) == 0
    assert "3.21 ± 0.00 (2)" in capsys.readouterr().out
    assert main(["results", str(tmp_path / "a"), "--format", "markdown", "--protocol", "health"]) == 0
    assert "| health, RankMe | 3.21 ± 0.00 (2) |" in capsys.readouterr().out
    assert main(["results", str(tmp_path / "a"), "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("features,checkpoint,hash,")
    assert main(["results", str(tmp_path / "a"), "--protocol", "knn"]) == 2
    assert "there are no results of knn; there are of health." in capsys.readouterr().err


def test_the_feature_cache_can_be_shown_and_cleared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(run, "--k", "3", "--cache", str(tmp_path / "kept"))
    capsys.readouterr()
    assert main(["cache", "--cache", str(tmp_path / "kept")]) == 0
    assert "in 2 files" in capsys.readouterr().out
    assert main(["cache", "clear", "--cache", str(tmp_path / "kept")]) == 0
    assert list((tmp_path / "kept").iterdir()) == []


def test_report(finished_run: Path, tmp_path: Path) -> None:
    assert main(["report", str(finished_run), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text("utf-8").lower().startswith("<!doctype html>")


def test_recipes_can_be_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["recipes", "demo"]) == 0
    assert "batch_size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pretrain"], "name a folder of pictures"),
        (["pretrain", "nowhere/at/all"], "does not exist"),
        (["pretrain", "a", "b"], "name one source of pictures, not 2: a, b"),
        (["pretrain", "--recipe", "dmeo"], "Did you mean 'demo'"),
        (["pretrain", "--recipe", "demo", "training.epoch=3"], "did you mean 'training.epochs'"),
        (["pretrain", "PICTURES", "training.device=true"], "training: device is true: write what you mean"),
        (["pretrain", "PICTURES", "training.device=gpu"], "there is no usable device 'gpu' here"),
        (["pretrain", "PICTURES", "training.device=meta"], "there is no usable device 'meta' here"),
        (["pretrain", "PICTURES", "training=3"], "training: must hold keys and values, such as {key: value}, not 3"),
        (["pretrain", "PICTURES", "data=train"], "data: must hold keys and values"),
        (["pretrain", "PICTURES", "model.backbone=resnet50"], "model.backbone: must hold keys and values"),
        (["pretrain", "PICTURES", "training.epochs=many"], "training.epochs: must be a whole number, not 'many'"),
        (["pretrain", "PICTURES", "training.workers=-1"], "training.workers: must be 'auto' or be greater than or"),
        (["pretrain", "PICTURES", "teacher.momentum=0.9"], "teacher.momentum: must be a list in brackets"),
        (["pretrain", "PICTURES", "monitor.boards=[wand]"], "monitor.boards.0: must be 'tensorboard'"),
        (["pretrain", "PICTURES", "crops.global_crops.scale=[1]"], "crops.global_crops.scale.1: a value is missing"),
        (["pretrain", "--resume", "nowhere"], "there is no run in"),
        (["pretrain", "--resume", "x", "--recipe", "demo"], "--resume takes the run's folder alone"),
        (["pretrain", "builtin:fashoin"], "there is no built-in set"),
        (["evaluate", "knn", "nowhere"], "there is no run and no weights file 'nowhere'"),
        (["evaluate", "nkn", "nowhere"], "there is no protocol 'nkn': did you mean 'knn'?"),
        (["evaluate", "knn", "nowhere", "--k", "many"], "knn: k must be a whole number, not 'many'"),
        (["evaluate", "knn,transfer", "random:resnet18", "."], "measured on the same pictures"),
        (["evaluate", "knn", "random:resnet18"], "random:resnet18 has no pictures of its own: name some"),
        (["evaluate", "knn", "random:resnet18", "."], "no pictures below"),
        (["results"], "there is no file or folder 'runs'"),
        (["embed", "nowhere.safetensors", ".", "--out", "f.npz"], "no weights file"),
        (["embed", "nowhere", ".", "--out", "f.csv"], "written as .npz or .parquet"),
        (["export", "nowhere", "--out", "w.safetensors"], "there is no run"),
        (["report", "nowhere"], "is no run"),
        (["recipes", "nothing"], "no built-in recipe"),
    ],
)
def test_mistakes_get_a_sentence_and_an_exit_code(
    arguments: list[str],
    sentence: str,
    picture_folder: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(picture_folder) if word == "PICTURES" else word for word in arguments]
    assert main(arguments) == EXIT_UNUSABLE
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["--traceback", "recipes", "no"], ["recipes", "no", "--traceback"], ["evaluate", "knn", "no", "--traceback"]],
)
def test_traceback_lets_the_error_through_wherever_it_stands(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="there is no"):
        main(arguments)


def test_resuming_a_finished_run_says_that_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert f"the run in {run} is finished: 3 of 3 epochs" in capsys.readouterr().err
    assert main(["pretrain", "--resume", str(run), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_one_picture_is_no_plural(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = write_pictures(tmp_path / "pictures", 1)
    assert main(["embed", str(finished_run), str(pictures), "--out", str(tmp_path / "f.npz"), "--quiet"]) == 0
    assert "1 picture, 16 numbers each" in capsys.readouterr().out


def test_a_run_that_stops_itself_has_its_own_exit_code(
    tiny_recipe: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    pictures = write_pictures(tmp_path / "pictures", 32)
    for i in range(4):
        (pictures / f"bad{i}.jpg").write_bytes(b"")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    command = ["pretrain", str(pictures), "--recipe", str(recipe), "--out", str(tmp_path / "run"), "--quiet"]
    assert main(command) == EXIT_STOPPED
    assert "cannot be read" in capsys.readouterr().err
    assert len((tmp_path / "run" / "skipped.txt").read_text().splitlines()) >= 1


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["pretrain", "--help"], ["evaluate", "--help"], ["results", "--help"]]
)
def test_help_answers_without_loading_torch(arguments: list[str]) -> None:
    code = f"import sys; sys.argv = ['mira', *{arguments}]\nfrom mira.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules, 'torch was loaded'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mira" in done.stdout


def test_help_of_evaluate_lists_the_protocols_and_of_one_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "linear-fast" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["evaluate", "knn", "--help"])
    printed = capsys.readouterr().out
    assert "--temperature" in printed
    assert "0.07" in printed


@pytest.mark.parametrize("module", ["mira", "mira.cli"])
def test_python_m(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"mira {mira.__version__}\n"
