"""Results that cannot be written are found out before the first pass, or shown where it only turns out later."""

import errno
import os
from pathlib import Path

import pytest

import mira
from mira.cli import main
from mira.evaluation import results
from mira.evaluation.results import Result, ResultsNotKept, append_results, read_results

ONE = Result("knn", "MIRA", "top-1", 71.25, {"k": 20, "fraction": 0.1}, "d", 1000, 2000)


@pytest.mark.parametrize("name", ["folder", "file/results.jsonl", "/proc/results.jsonl"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(
    name: str, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("mira.apply.run_protocols", lambda *_, **__: pytest.fail("a pass was made"))
    monkeypatch.setattr("mira.apply.extract_features", lambda *_, **__: pytest.fail("a pass was made"))
    path = str(tmp_path / name)
    assert main(["evaluate", "health", str(finished_run), "--results", path, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "results cannot be kept: '" in said
    assert "Name another file with --results" in said
    if name == "folder":
        (tmp_path / "folder.npz").mkdir()
    assert main(["embed", str(finished_run), "builtin:fashion", "--out", f"{path}.npz", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "cannot be written (" in said
    assert "Errno" not in said


def test_what_cannot_be_written_in_the_end_is_shown_first(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "append_lines", full)
    file = str(tmp_path / "r.jsonl")
    assert main(["evaluate", "health", str(finished_run), "--results", file, "--quiet"]) == 2
    shown = capsys.readouterr()
    assert "RankMe" in shown.out
    assert "Not all of these results are kept: name another file with --results" in shown.err
    with pytest.warns(UserWarning, match="shown at the end"), pytest.raises(ResultsNotKept) as kept:
        mira.evaluate(finished_run, "health", results=file)
    assert any(result.metric == "RankMe" for result in kept.value.results)


def test_what_is_no_regular_file_is_written_to(finished_run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", "health", str(finished_run), "--results", os.devnull, "--quiet"]) == 0
    assert "RankMe" in capsys.readouterr().out
    assert not Path("/dev/null.state").exists()


@pytest.mark.parametrize(
    "change",
    [
        b'"value": "x"',
        b'"value": NaN',
        b'"value": 1e999',
        b'"value": true',
        b'"seed": []',
        b'"settings": {"fraction": null, "k": 20}',
        b'"settings": {"k": 20}',
        b'"settings": []',
        b'"features": 5',
        b'"time": 7',
        b'"preprocessing": {"size": 3}',
        b'"data": "\xff"}{',
    ],
)
def test_an_odd_result_hides_no_other_and_is_named(
    change: bytes, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [ONE])
    line = path.read_bytes()
    path.write_bytes(line + line.replace(b"}\n", b", " + change + b"}\n") + line)
    with pytest.warns(UserWarning, match=r"results\.jsonl': line 2 cannot be read"):
        assert read_results(path) == [ONE, ONE]
    for form in ("text", "markdown", "csv"):
        assert main(["results", str(path), "--format", form]) == 0
    assert "71.2" in capsys.readouterr().out
