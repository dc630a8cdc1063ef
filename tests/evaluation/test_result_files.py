import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from mira.evaluation.results import LEARNED, PIXELS, Result, append_results, read_results
from mira.evaluation.table import print_results, tabulate

SETTINGS = {"k": 20, "temperature": 0.07, "fraction": 0.1, "shift": 0}
ONE = Result("knn", LEARNED, "top-1", 71.25, SETTINGS, "builtin:fashion", 1000, 2000)
NONE = replace(ONE, settings=SETTINGS | {"k": 200}, value=None, note="why — “unicode”")


def test_what_is_written_is_read_back_in_order(tmp_path) -> None:
    path = tmp_path / "run" / "results.jsonl"
    full = replace(ONE, versions={"torch": "2"}, seconds=1.5, time="now", task="t", checkpoint_hash="h", seed=4)
    append_results(path, [ONE, NONE])
    append_results(path, [full])
    append_results(path, [])
    assert read_results(path) == [ONE, NONE, full]
    assert len(path.read_text().splitlines()) == 3


def test_no_file_is_no_results(tmp_path) -> None:
    assert read_results(tmp_path / "results.jsonl") == []


def test_what_is_no_number_is_not_kept(tmp_path) -> None:
    with pytest.raises(ValueError, match="knn: the top-1 is nan, not a number"):
        append_results(tmp_path / "results.jsonl", [ONE, replace(ONE, value=float("nan"))])
    assert not (tmp_path / "results.jsonl").exists()


def test_lines_of_version_0_1_are_still_read(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    common = {"features": LEARNED, "metric": "top-1", "value": 71.25, "seed": 0, "data": "builtin:fashion"}
    common |= {"query_size": 2000, "unreadable": 3, "checkpoint": "c", "note": "", "time": "t", "mira": "0.1.0"}
    knn = common | {"protocol": "k-NN", "k": 20, "temperature": 0.07, "fraction": 0.1, "shift": 2, "bank_size": 1000}
    clusters = common | {"protocol": "k-means", "metric": "NMI", "k": 10, "temperature": None, "fraction": 1.0}
    clusters |= {"shift": 0, "bank_size": 0}
    path.write_text(f"{json.dumps(knn)}\n{json.dumps(clusters)}\n")
    first, second = read_results(path)
    versions = {"mira-ssl": "0.1.0"}
    assert first == replace(
        ONE, settings=SETTINGS | {"shift": 2}, unreadable=3, checkpoint="c", time="t", versions=versions
    )
    assert (second.protocol, second.settings) == ("clusters", {"clusters": "k-means", "k": 10, "shift": 0})
    assert [row.title for row in tabulate([second, first])] == [
        "k-means, 10 clusters",
        "k-NN, 10 % of labels (1,000), moved by ≤ 2 px",
    ]


def test_a_line_cut_off_by_a_killed_process_spoils_nothing(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [ONE])
    with path.open("a") as file:
        file.write('{"protocol": "knn", "feat')
    assert read_results(path) == [ONE]
    append_results(path, [NONE])
    assert read_results(path) == [ONE, NONE]


def test_damaged_and_foreign_lines_are_passed_over(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [ONE])
    path.write_bytes(path.read_bytes() + b'\n[1, 2]\n"text"\n{}\n{"settings": 3}\n\xff\xfe\n')
    assert read_results(path) == [ONE]


def _append_often(path: Path, seed: int) -> None:
    for _ in range(40):
        append_results(path, [replace(ONE, seed=seed)] * 5)


def test_processes_that_write_at_once_do_not_mix_lines(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_append_often, args=(path, seed)) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    found = read_results(path)
    assert len(path.read_text().splitlines()) == len(found) == 600
    assert {seed: sum(one.seed == seed for one in found) for seed in range(3)} == dict.fromkeys(range(3), 200)


class TestTabulate:
    def test_the_last_result_of_a_setting_and_seed_counts(self) -> None:
        (row,) = tabulate([ONE, replace(ONE, value=80.0)])
        assert row.cells[LEARNED].mean == 80.0
        assert row.cells[LEARNED].deviation is None
        assert row.best == frozenset()  # alone it beats nothing

    def test_seeds_are_averaged(self) -> None:
        (row,) = tabulate([ONE, replace(ONE, value=73.25, seed=1), replace(ONE, value=75.25, seed=2)])
        assert (row.cells[LEARNED].mean, row.cells[LEARNED].deviation) == (73.25, 2.0)
        assert str(row.cells[LEARNED]) == "73.2 ± 2.0"

    def test_two_states_of_a_run_never_share_a_table(self) -> None:
        early = [replace(ONE, settings=SETTINGS | {"k": k}, checkpoint="step 1") for k in (10, 20)]
        floor = replace(ONE, features=PIXELS, checkpoint="16 x 16", value=75.0)
        (row,) = tabulate([*early, floor, replace(ONE, checkpoint="step 2", value=90.0)])
        assert {name: cell.mean for name, cell in row.cells.items()} == {PIXELS: 75.0, LEARNED: 90.0}
        assert row.best == {LEARNED}

    def test_rows_name_what_differs(self) -> None:
        titles = lambda *found: [row.title for row in tabulate(found)]  # noqa: E731
        assert titles(ONE) == ["k-NN, 10 % of labels (1,000)"]
        moved, plain = titles(replace(ONE, settings=SETTINGS | {"shift": 2}), ONE)[::-1]
        assert (plain, moved) == ("k-NN, 10 % of labels (1,000)", "k-NN, 10 % of labels (1,000), moved by ≤ 2 px")
        assert titles(ONE, replace(ONE, data="elsewhere"))[1].endswith(", elsewhere")

    def test_other_protocols_are_told_apart_by_what_was_set_and_not_by_what_they_chose(self) -> None:
        found = [
            Result("linear", kind, "top-1", 50.0, {"epochs": epochs}, "d", 10, 10, chosen={"l2": chosen + epochs})
            for kind, chosen in ((LEARNED, 0.1), (PIXELS, 0.3))
            for epochs in (10, 100)
        ]
        rows = tabulate(found)
        assert [row.title for row in rows] == ["linear probe, epochs 10", "linear probe, epochs 100"]
        assert all(set(row.cells) == {LEARNED, PIXELS} for row in rows)
        assert [row.title for row in tabulate(found[:1])] == ["linear probe"]

    def test_equal_as_printed_is_equally_good_and_health_has_no_best(self) -> None:
        pair = [replace(ONE, value=71.249), replace(ONE, features=PIXELS, value=71.151)]
        (row,) = tabulate(pair)
        assert row.best == {LEARNED, PIXELS}
        (row,) = tabulate([replace(one, protocol="health") for one in pair])
        assert row.best == frozenset()

    def test_nothing_is_said_to_be_nothing(self, capsys) -> None:
        print_results([], Console(width=80))
        assert "There are no results to show" in capsys.readouterr().out
