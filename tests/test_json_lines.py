"""One reader of JSON lines: it reads what can be read, and says once how many lines it left out, and which."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from mira.json_lines import read_json_lines
from mira.training.metrics import MetricsLog, read_metrics

GOOD = b'{"step": 1, "loss": 2.5}\n'


def number(content: dict[str, Any]) -> int:
    return int(content["step"])


@pytest.mark.parametrize(
    "odd",
    [
        b'{"step": "\xff"}',
        b'{"step": 1e999}',
        b"[" * 100_000,
        b"[]",
        b"null",
        b"7",
        b"{",
        b'{"other": 1}',
        b'{"step": null}',
        b"\x00\x00",
        b"not json",
    ],
)
def test_an_odd_line_is_named_and_the_others_are_read(odd: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(GOOD + odd + b"\n" + GOOD)
    with pytest.warns(UserWarning, match=r"lines\.jsonl': line 2 cannot be read and is left out"):
        assert read_json_lines(path, number) == [1, 1]


def test_many_are_counted_and_some_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"".join(b"odd\n" + GOOD for _ in range(9)))
    with pytest.warns(UserWarning, match=r"9 lines cannot be read and are left out \(1, 3, 5, 7, 9 and others\)"):
        assert len(read_json_lines(path, number)) == 9


def test_what_a_killed_process_left_half_written_is_no_news(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(GOOD + b"\n \r\n" + GOOD + b'{"step": 3, "lo')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_json_lines(path, number) == [1, 1]
        assert read_json_lines(tmp_path / "nothing", number) == []
        path.write_bytes(GOOD.strip())
        assert read_json_lines(path, number) == [1]


def test_text_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1, "note": "a\u2028b\u0085c"}\n', "utf-8")
    assert read_json_lines(path, lambda content: content["note"]) == ["a\u2028b\u0085c"]


def test_metrics_keep_the_numbers_of_usable_size(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "a": NaN, "b": 1e300, "c": "x", "d": true, "e": null, "f": 2, "time": -5}\n'
        '{"step": true}\n{"step": -1}\n{"step": 1.5}\n{"step": 4}\n'
    )
    with pytest.warns(UserWarning, match=r"3 lines cannot be read and are left out \(2, 3, 4\)"):
        assert read_metrics(path) == [{"step": 1, "f": 2}, {"step": 4}]
    with pytest.warns(UserWarning, match="3 lines"):
        log = MetricsLog(path, step=2)
    log.write({"step": 3, "loss": 1.5})
    log.close()
    assert path.read_text() == '{"step": 1, "f": 2}\n{"step": 3, "loss": 1.5}\n'
