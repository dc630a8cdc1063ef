"""`mira results`: many runs as one table."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import mira
from mira.evaluation.naming import shortest
from mira.evaluation.results import LEARNED, PIXELS, RANDOM, Result, append_results
from mira.evaluation.summary import as_csv, as_markdown, find_results, print_summary, summarise
from mira.evaluation.table import Cell, newest

SETTINGS = {"k": 20, "temperature": 0.07, "fraction": 1.0, "shift": 0}
ONE = Result(
    "knn", LEARNED, "top-1", 70.0, SETTINGS, "d", 100, 200, checkpoint="/runs/a at step 9", checkpoint_hash="f"
)
KNN, RANK = "k-NN, 100 % of labels (100), k 20", "health, RankMe"


@pytest.fixture
def results() -> list[Result]:
    seeds = [replace(ONE, seed=seed, value=value) for seed, value in enumerate((70.0, 72.0, 74.0))]
    other = replace(ONE, checkpoint="/runs/b|c at step 9", value=80.0)
    rank = replace(ONE, protocol="health", metric="RankMe", settings={}, value=12.345)
    floor = replace(ONE, features=PIXELS, checkpoint="16 x 16", value=50.0)
    return [*seeds, other, rank, floor]


def test_a_row_for_each_backbone_and_a_column_for_each_measurement(results) -> None:
    summary = summarise(results)
    assert summary.columns == (KNN, RANK)
    assert list(summary.rows) == [
        (PIXELS, "16 x 16"),
        (LEARNED, "/runs/a at step 9"),
        (LEARNED, "/runs/b|c at step 9"),
    ]
    cell = summary.rows[LEARNED, "/runs/a at step 9"][KNN]
    assert (cell.mean, cell.deviation, len(cell.results)) == (72.0, 2.0, 3)
    assert RANK not in summary.rows[PIXELS, "16 x 16"]


def test_data_and_moves_have_columns_of_their_own(results) -> None:
    moved = replace(ONE, settings=SETTINGS | {"shift": 2})
    assert summarise([ONE, moved]).columns == (KNN, "k-NN, 100 % of labels (100), moved by ≤ 2 px, k 20")
    assert summarise([ONE, replace(ONE, data="e")]).columns == (f"{KNN[:-6]}, d, k 20", f"{KNN[:-6]}, e, k 20")


def test_seeds_of_a_smaller_set_of_the_same_name_are_left_out(results) -> None:
    again = replace(results[0], test_size=900, value=40.0, time="2027")
    cell = summarise([*results, again]).rows[LEARNED, "/runs/a at step 9"][KNN]
    assert (len(cell.results), cell.mean) == (1, 40.0)


def test_settings_that_differ_are_named_and_no_others(results) -> None:
    warm = replace(ONE, settings=SETTINGS | {"temperature": 0.1})
    columns = summarise([ONE, warm, replace(warm, features=PIXELS, seed=1)]).columns
    assert columns == (f"{KNN[:-6]}, temperature 0.07, k 20", f"{KNN[:-6]}, temperature 0.1, k 20")
    # Two subjects, each with settings of its own: still two measurements.
    probe = replace(ONE, protocol="linear", settings={"epochs": 100, "batch_size": 256}, chosen={"learning_rate": 0.3})
    short = replace(probe, checkpoint="/runs/b", settings={"epochs": 10, "batch_size": 256}, chosen={})
    assert summarise([probe, short]).columns == ("linear probe, epochs 100, top-1", "linear probe, epochs 10, top-1")
    assert summarise([probe, replace(short, settings=probe.settings)]).columns == ("linear probe, top-1",)
    few = replace(ONE, protocol="semi-supervised", settings={"fraction": 0.01, "learning_rate": 0.02})
    more = replace(few, settings={"fraction": 0.1, "learning_rate": 0.01})
    assert summarise([few, more]).columns == (
        "fine-tuning, 1 % of labels (100), top-1",
        "fine-tuning, 10 % of labels (100), top-1",
    )


def test_another_input_size_or_precision_is_another_row_and_never_another_seed(results) -> None:
    read = {"size": 64, "resize": 73, "interpolation": "bicubic"}
    one, large = (replace(ONE, preprocessing=read | {"size": size}) for size in (64, 96))
    half = replace(one, seed=1, precision="bfloat16")
    assert list(summarise([one, large, half]).rows) == [
        (LEARNED, f"/runs/a at step 9, {words}")
        for words in (
            "64 px of 73, bicubic, float32",
            "96 px of 73, bicubic, float32",
            "64 px of 73, bicubic, bfloat16",
        )
    ]
    assert newest([one, large, half]) == [half]


def test_markdown(results) -> None:
    head, rule, knn, rank, empty, legend = as_markdown(summarise(results)).splitlines()
    assert head == "|  | raw pixels (16 x 16) | MIRA (a at step 9) | MIRA (b\\|c at step 9) |"
    assert rule == "| --- | ---: | ---: | ---: |"
    assert knn == f"| {KNN} | 50.0 | 72.0 ± 2.0 (3) | 80.0 |"
    assert rank in (f"| {RANK} | – | {value} | – |" for value in ("12.35", "12.34"))
    assert (empty, legend[:7]) == ("", "Percent")


def test_csv_is_one_line_for_each_cell(results) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(summarise(results)))))
    assert len(lines) == 4
    (one,) = [line for line in lines if line["checkpoint"] == "/runs/a at step 9" and line["protocol"] == "knn"]
    assert one == {
        "features": LEARNED,
        "checkpoint": "/runs/a at step 9",
        "hash": "f",
        "protocol": "knn",
        "data": "d",
        "measurement": KNN,
        "mean": "72",
        "sd": "2",
        "seeds": "3",
        "runs": "1",
    }


def test_the_terminal_shows_everything(results) -> None:
    text = io.StringIO()
    many = [
        replace(ONE, checkpoint=f"/runs/{name} at step 9", value=float(value)) for value, name in enumerate("defghij")
    ]
    print_summary(summarise([*results, *many]), Console(file=text, width=80))
    words = ("72.0 ± 2.0 (3)", "80.0", "50.0", "RankMe", "a at step 9", "j at step 9", "k-NN, 100 % of labels (100)")
    assert all(word in text.getvalue() for word in words)
    assert all(len(line) <= 80 for line in text.getvalue().splitlines())


def test_names_are_as_short_as_they_can_be() -> None:
    assert shortest(["/a/b/val", "/a/c/val", "/d/test", "torchvision:X", "/a/b/val"]) == {
        "/a/b/val": "b/val",
        "/a/c/val": "c/val",
        "/d/test": "test",
        "torchvision:X": "torchvision:X",
    }
    assert shortest(["/a/val, learned from /a/train"]) == {"/a/val, learned from /a/train": "val, learned from train"}
    # A random backbone is named after the run whose architecture it has: that is no reason to write out either's path.
    both = ["/runs/cmp/a at step 9", "the architecture of /runs/cmp/a at step 9", "/runs/other/b at step 9"]
    assert list(shortest(both).values()) == ["a at step 9", "the architecture of a at step 9", "b at step 9"]
    assert shortest(["/a", "/b/a"]) == {"/a": "/a", "/b/a": "b/a"}


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        append_results(tmp_path / "runs" / name / "results.jsonl", [replace(ONE, checkpoint=name)])
    append_results(tmp_path / "mine.jsonl", [replace(ONE, checkpoint="c")])
    found = find_results([tmp_path / "runs", tmp_path / "mine.jsonl", tmp_path / "runs" / "a"])
    assert [one.checkpoint for one in found] == ["a", "b", "c"]


def test_nothing_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there are no results in .*: `mira evaluate knn RUN` makes some"):
        find_results([tmp_path])
    with pytest.raises(ValueError, match="there is no file or folder"):
        find_results([tmp_path / "nowhere"])


def test_lists_training_sets_and_normalisations_are_never_mixed() -> None:
    one = replace(ONE, protocol="semi-supervised", settings={"fraction": 0.01, "list": "1percent.txt (aaaa)"})
    other = replace(one, seed=1, settings={"fraction": 0.1, "list": "10percent.txt (bbbb)"})
    assert summarise([one, other]).columns == (
        "fine-tuning, 1percent.txt (aaaa) (100), top-1",
        "fine-tuning, 10percent.txt (bbbb) (100), top-1",
    )
    read = {"size": 64, "resize": 73, "interpolation": "bicubic", "mean": [0.5], "std": [0.2]}
    grey, colour = (replace(ONE, seed=seed, preprocessing=read | {"mean": [seed / 2]}) for seed in (0, 1))
    assert len(summarise([grey, colour]).rows) == 2


def test_the_newest_counts_whatever_file_it_is_in(tmp_path: Path) -> None:
    append_results(tmp_path / "a" / "results.jsonl", [replace(ONE, value=60.0, time="2026-02-01T00:00:00+00:00")])
    append_results(tmp_path / "b" / "results.jsonl", [replace(ONE, value=90.0, time="2026-01-01T00:00:00+00:00")])
    [cells] = summarise(find_results([tmp_path])).rows.values()
    assert cells[KNN].mean == 60.0


def run(number: int, value: float, **more) -> Result:
    made = {"pretraining": {"recipe": "f00d", "seed": number, "step": 9}}
    place = {"checkpoint": f"/runs/s{number} at step 9", "checkpoint_hash": f"hash{number}"}
    return replace(ONE, value=value, **place | made | more)


def test_runs_that_differ_in_their_seed_alone_are_one_column() -> None:
    runs = [run(number, value, seed=draw) for number, value in enumerate((70.0, 72.0, 80.0)) for draw in (0, 1)]
    summary = summarise(runs)
    [(row, cells)] = summary.rows.items()
    assert row == (LEARNED, "/runs/s0 at step 9 and 2 other seeds")
    # Draws of the evaluation are no other runs: three values, not six.
    assert (cells[KNN].mean, cells[KNN].deviation, cells[KNN].runs) == (74.0, pytest.approx(28**0.5), 3)
    assert "| MIRA (s0 at step 9 and 2 other seeds) |" in as_markdown(summary)
    assert "74.0 ± 5.3 (3 runs)" in as_markdown(summary)
    (line,) = csv.DictReader(io.StringIO(as_csv(summary)))
    assert (line["seeds"], line["runs"], line["sd"]) == ("2", "3", "5.2915")


@pytest.mark.parametrize(
    "other",
    [
        run(1, 72.0, pretraining={"recipe": "beef", "seed": 1, "step": 9}),
        run(1, 72.0, pretraining={"recipe": "f00d", "seed": 1, "step": 8}),
        run(1, 72.0, pretraining={"recipe": "f00d", "seed": 0, "step": 9}),  # a copy, or the same made again
        run(1, 72.0, pretraining={}),  # of an earlier version
        run(1, 72.0, features="Sinkhorn"),
    ],
)
def test_other_runs_have_a_column_of_their_own(other: Result) -> None:
    assert len(summarise([run(0, 70.0), other]).rows) == 2


def test_a_run_that_was_measured_by_an_earlier_version_too_is_one_run() -> None:
    [cells] = summarise([run(0, 70.0, pretraining={}), run(0, 72.0, seed=1)]).rows.values()
    assert (cells[KNN].runs, cells[KNN].mean) == (1, 71.0)


def test_random_backbones_that_are_the_same_are_one_column() -> None:
    def drawn(of: str, seed: int, content: str) -> Result:
        return replace(
            ONE, features=RANDOM, checkpoint=f"the architecture of /runs/{of}", checkpoint_hash=content, seed=seed
        )

    same = [drawn("a", 0, "x"), drawn("a", 1, "y"), drawn("b", 0, "x"), drawn("b", 1, "y"), drawn("b", 2, "z")]
    [(row, cells)] = summarise(same).rows.items()
    assert row == (RANDOM, "the architecture of /runs/a")
    assert (len(cells[KNN].results), cells[KNN].runs) == (3, 1)
    assert len(summarise([drawn("a", 0, "x"), drawn("b", 0, "other")]).rows) == 2


def test_a_rounding_error_below_zero_is_zero() -> None:
    assert str(Cell((replace(ONE, protocol="clusters", value=-1e-9),))) == "0.0"
    assert str(Cell((replace(ONE, value=-0.3),))) == "-0.3"


def test_runs_know_their_recipe_and_seed(tiny_recipe: dict, picture_folder: Path, tmp_path: Path) -> None:
    tiny_recipe["training"]["epochs"] = 1
    found = []
    for seed, more in ((0, []), (1, ["monitor.log_every=2", "training.workers=1"]), (2, ["training.batch_size=8"])):
        out = tmp_path / str(seed)
        overrides = [f"training.seed={seed}", *more]
        mira.pretrain(picture_folder, out=out, recipe=tiny_recipe, overrides=overrides, quiet=True)
        found.append(mira.evaluate(out, "knn", labels="folder", k=5, fractions=1.0)[0].pretraining)
    assert [one["seed"] for one in found] == [0, 1, 2]
    assert found[0]["recipe"] == found[1]["recipe"] != found[2]["recipe"]
