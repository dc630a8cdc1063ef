import re
import shlex
import shutil
from pathlib import Path

import pytest

import mira
from mira.cli import main
from mira.errors import EXIT_UNUSABLE
from mira.evaluation.results import read_results
from mira.report.write import write_report


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    return Path(shutil.copytree(finished_run, tmp_path / "my run"))


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text("utf-8"), flags=re.DOTALL))


def test_lies_in_the_run_by_default_and_shows_everything(run: Path) -> None:
    page = write_report(run)
    assert page == run / "report.html"
    text = text_of(page)
    for words in ("my run", "resnet18 with 6 prototypes", "Nearest neighbours", "class0", "Not on this page", "floors"):
        assert words in text
    assert "among all 64 pictures" in text
    assert "12 steps" in text


def test_the_same_run_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    first, again = (write_report(run, tmp_path / name) for name in ("a.html", "b.html"))
    assert first.read_bytes() == again.read_bytes()


def test_a_sample_of_many_pictures_says_so(run: Path) -> None:
    assert "among 20 of 64 pictures" in text_of(write_report(run, pictures=20))


def test_without_checkpoints_there_are_curves_and_a_reason(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    text = text_of(write_report(run))
    assert "Label information" in text
    assert "Prototypes and neighbours:" in text
    assert "holds no checkpoint" in text


def test_just_begun(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    text = text_of(write_report(run))
    assert "Too early to say" in text
    assert "Curves: metrics.jsonl has no line yet" in text


def test_metrics_cut_off_while_being_written(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + '\n{"step": 2, "lo')
    assert "Label information" in text_of(write_report(run))


def test_pictures_that_are_gone_are_said_and_found_again(
    run: Path, tmp_path: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = (run / "recipe.yaml").read_text()
    source = re.search(r"source: (.*)", recipe)
    assert source is not None
    (run / "recipe.yaml").write_text(recipe.replace(source[1], str(tmp_path / "moved")))
    for checkpoint in (run / "checkpoints").iterdir():
        import torch

        content = torch.load(checkpoint, weights_only=True)
        content["recipe"]["data"]["source"] = str(tmp_path / "moved")
        torch.save(content, checkpoint)
    with pytest.warns(UserWarning, match=r"shows no images, because they cannot be read: .*does not exist"):
        text = text_of(write_report(run))
    assert "Prototypes and neighbours:" in text
    assert "does not exist" in text
    assert "Label information" in text
    assert re.search(r"looks healthy.*The page shows no images.*Recipe\s+tiny", text)  # said before all else
    assert main(["report", str(run)]) == EXIT_UNUSABLE
    printed = capsys.readouterr()
    assert str(run / "report.html") in printed.out  # the page is written all the same
    assert shlex.join(["mira", "report", str(run), "DATA"]) in printed.err
    assert main(["report", str(run), str(picture_folder)]) == 0
    assert "Chosen among all 64 pictures" in text_of(run / "report.html")
    assert "cannot be read" not in capsys.readouterr().err


@pytest.mark.parametrize("what", ["missing", "empty", "a file"])
def test_a_folder_that_is_no_run_gets_a_sentence(tmp_path: Path, what: str) -> None:
    path = tmp_path / "there"
    if what == "empty":
        path.mkdir()
    elif what == "a file":
        path.write_text("hello")
    with pytest.raises(ValueError, match="is no run of mira pretrain"):
        write_report(path)
    assert not (path / "report.html").exists()


def test_a_run_of_another_method_is_called_by_its_name(tiny_recipe: dict, picture_folder: Path, tmp_path: Path) -> None:
    tiny_recipe["assignment"] = {"name": "sinkhorn"}
    tiny_recipe["training"]["epochs"] = 1
    run = mira.pretrain(picture_folder, out=tmp_path / "run", recipe=tiny_recipe, quiet=True)
    mira.evaluate(run, "knn", labels="folder", k=5, fractions=1.0, floors=True)
    assert {one.features for one in read_results(run / "results.jsonl")} == {
        "raw pixels",
        "random backbone",
        "Sinkhorn",
    }
    page = write_report(run).read_text("utf-8")
    assert '<th scope="col">Sinkhorn</th>' in page
    assert "MIRA</th>" not in page
    assert mira.opening.open_subject(run, which="student").name == "Sinkhorn, student"


def test_there_is_one_maximum_of_the_label_information(run: Path) -> None:
    text = text_of(write_report(run))
    assert "of 1.79 nats" in text  # log 6: 6 prototypes, batches of 16
    assert "most there can be: 1.79" in text
