import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from mira.evaluation.results import LEARNED, PIXELS, Result, append_results, read_results
from mira.evaluation.table import print_results, tabulate

ONE = Result("k-NN", LEARNED, "top-1", 71.25, 20, 0.07, 0.1, 0, 0, "builtin:fashion", 1000, 2000)
NONE = replace(ONE, k=200, value=None, note="why — “unicode”")


def test_what_is_written_is_read_back_in_order(tmp_path) -> None:
    path = tmp_path / "run" / "results.jsonl"
    append_results(path, [ONE, NONE])
    append_results(path, [replace(ONE, value=72.0)])
    append_results(path, [])
    assert read_results(path) == [ONE, NONE, replace(ONE, value=72.0)]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 3
    assert all(line["time"] and line["mira"] for line in lines)


def test_no_file_is_no_results(tmp_path) -> None:
    assert read_results(tmp_path / "results.jsonl") == []


def test_a_line_cut_off_by_a_killed_process_spoils_nothing(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [ONE])
    with path.open("a") as file:
        file.write('{"protocol": "k-NN", "feat')
    assert read_results(path) == [ONE]
    append_results(path, [NONE])
    assert read_results(path) == [ONE, NONE]


def test_damaged_and_foreign_lines_are_passed_over(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [ONE])
    path.write_bytes(path.read_bytes() + b'\n[1, 2]\n"text"\n{}\n\xff\xfe\n')
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
    def test_the_last_result_of_a_setting_counts(self) -> None:
        (row,) = tabulate([ONE, replace(ONE, value=80.0)])
        assert row.cells[LEARNED].value == 80.0
        assert row.best == frozenset()  # alone it beats nothing

    def test_two_states_of_a_run_never_share_a_table(self) -> None:
        early = [replace(ONE, k=k, checkpoint="step 1") for k in (10, 20)]
        floor = replace(ONE, features=PIXELS, checkpoint="step 1", value=75.0)
        (row,) = tabulate([*early, floor, replace(ONE, checkpoint="step 2", value=90.0)])
        assert {name: cell.value for name, cell in row.cells.items()} == {PIXELS: 75.0, LEARNED: 90.0}
        assert row.best == {LEARNED}

    def test_rows_name_what_differs(self) -> None:
        titles = lambda *found: [row.title for row in tabulate(found)]  # noqa: E731
        assert titles(ONE) == ["k-NN, 10 % of labels (1,000)"]
        moved, plain = titles(replace(ONE, shift=2), ONE)[::-1]
        assert (plain, moved) == ("k-NN, 10 % of labels (1,000)", "k-NN, 10 % of labels (1,000), moved by ≤ 2 px")
        assert titles(ONE, replace(ONE, seed=1))[1].endswith(", seed 1")
        assert titles(ONE, replace(ONE, data="elsewhere"))[1].endswith(", elsewhere")

    def test_equal_as_printed_is_equally_good(self) -> None:
        (row,) = tabulate([replace(ONE, value=71.249), replace(ONE, features=PIXELS, value=71.151)])
        assert row.best == {LEARNED, PIXELS}

    def test_nothing_is_said_to_be_nothing(self, capsys) -> None:
        print_results([], Console(width=80))
        assert "There are no results to show" in capsys.readouterr().out
