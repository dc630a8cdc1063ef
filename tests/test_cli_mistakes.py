"""What the command line answers to what people type by mistake, and what its help says."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mira
from mira.cli import main
from mira.cli.evaluate import protocol_parser
from mira.errors import EXIT_UNUSABLE
from mira.evaluation.protocols import PROTOCOLS
from mira.training.mistakes import nearest_key


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What is printed about a command that cannot be used."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as ended:
        code = ended.code
    assert code == EXIT_UNUSABLE
    return capsys.readouterr().err


def test_the_command_alone_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "learn a backbone" in capsys.readouterr().out


def test_settings_typed_as_options_are_shown_as_settings(capsys: pytest.CaptureFixture[str]) -> None:
    printed = refused(capsys, "pretrain", "folder", "--epochs", 3, "--batch-size=64", "--lr", "--nonsense", 1)
    assert printed.startswith("usage: mira pretrain")
    for words in (
        "write training.epochs=3",
        "write training.batch_size=64",
        "learning_rate=VALUE",
        "option --nonsense",
    ):
        assert words in printed
    assert refused(capsys, "results", "--epochs", 3).startswith("usage: mira results")


def test_a_setting_without_a_value_is_no_folder(capsys: pytest.CaptureFixture[str], picture_folder: Path) -> None:
    for words in ([picture_folder, "training.epochs"], ["training.epochs"]):
        assert "'training.epochs' is a setting and needs a value" in refused(capsys, "pretrain", *words)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("training.lr", ".learning_rate"),
        ("epochs", "training.epochs"),
        ("batchsize", "training.batch_size"),
        ("trainig.epochs", "training.epochs"),
        ("num_workers", "training.workers"),
    ],
)
def test_the_nearest_setting(typed: str, meant: str) -> None:
    assert (nearest_key(typed) or "").endswith(meant)


def test_no_setting_is_near_nonsense() -> None:
    assert nearest_key("quiett") is None


@pytest.mark.parametrize("recipe", [None, "tiny.yaml"])
def test_every_wrong_key_is_told_at_once(
    recipe: str | None,
    capsys: pytest.CaptureFixture[str],
    picture_folder: Path,
    tiny_recipe: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_recipe))
    words = ["training.lr=3", "foo=1", "model.backbone.name=resnet19", "training.epochs=x"]
    printed = refused(capsys, "pretrain", picture_folder, *(["--recipe", recipe] if recipe else []), *words)
    for key in ("training.lr", "foo", "resnet19", "training.epochs"):
        assert key in printed


@pytest.mark.parametrize("option", [["--workers", "-1"], ["--batch-size", "0"], ["--batch-size", "many"]])
def test_numbers_of_options_are_checked_by_their_name(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    printed = refused(capsys, "embed", "run", "data", "--out", "x.npz", *option)
    assert f"argument {option[0]}: must be a whole number" in printed


def test_from_python_numbers_are_checked_too(finished_run: Path, picture_folder: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        mira.embed(finished_run, picture_folder, batch_size=0)
    with pytest.raises(ValueError, match="workers must be 0 or more"):
        mira.embed(finished_run, picture_folder, workers=-1)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where nobody can write")
def test_a_place_where_nothing_can_be_written_is_named_as_typed(
    finished_run: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = refused(capsys, "embed", finished_run, picture_folder, "--out", "/proc/x.npz", "--quiet")
    assert "'/proc/x.npz'" in printed
    assert "Errno" not in printed
    assert "tmp" not in printed
    printed = refused(capsys, "pretrain", picture_folder, "--recipe", "demo", "--out", "/proc/x", "data.labels=auto")
    assert "'/proc/x' cannot be written to (No such file or directory)" in printed
    assert "Errno" not in printed


def test_errors_of_the_system_begin_with_the_file_and_hold_nothing_that_a_terminal_obeys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "images/\x1b[31m.png")

    monkeypatch.setattr("mira.export", locked, raising=False)
    printed = refused(capsys, "export", "run", "--out", "w.safetensors")
    assert printed == "mira: 'images/\\x1b[31m.png' cannot be used: permission denied\n"


def test_printed_commands_can_be_pasted(
    tiny_recipe: dict, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mit Leerzeichen (é)"
    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump(tiny_recipe | {"training": {**tiny_recipe["training"], "epochs": 1}})
    )
    command = ["pretrain", str(picture_folder), "--recipe", str(tmp_path / "tiny.yaml"), "--out", str(out), "--quiet"]
    assert main(command) == 0
    printed = capsys.readouterr().out.partition("look at it with: ")[2]
    assert shlex.split(printed) == ["mira", "report", str(out)]
    assert f"`{shlex.join(['mira', 'pretrain', '--resume', str(out)])}`" in refused(capsys, *command)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_help_texts_are_whole(protocol, capsys: pytest.CaptureFixture[str]) -> None:
    text = protocol_parser([protocol]).format_help()
    for leftover in ("%%", "default: )", "None", "666666", "False"):
        assert leftover not in text


def test_help_of_evaluate_shows_what_every_protocol_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    printed = capsys.readouterr().out
    for option in ("--floors", "--seeds", "--test", "--no-cache"):
        assert option in printed


def test_help_of_the_benchmarks_measures_nothing() -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage:")
    assert "==" not in done.stdout


@pytest.mark.parametrize("mended", [True, False])
def test_export_says_where_timm_needs_mira_first(
    mended: bool,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mira._torchvision.MENDED", mended)
    monkeypatch.setattr("mira.model.exported.timm_call", lambda path: f"timm.create_model(..., '{path}')")
    assert main(["export", str(finished_run), "--out", str(tmp_path / "w.safetensors")]) == 0
    assert ("after `import mira`" in capsys.readouterr().out) == mended
