import math
from dataclasses import replace

import pytest

from mira.evaluation.results import LEARNED, PIXELS, RANDOM, Result
from mira.report.curves import curves, latest, training_seconds
from mira.report.facts import duration
from mira.report.verdict import judge

SETTINGS = {"k": 20, "temperature": 0.07, "fraction": 0.1, "shift": 0}
ONE = Result("knn", LEARNED, "top-1", 80.0, SETTINGS, "d", 100, 2000)
HEALTHY = [{"step": 1, "label_mi": 3.0, "label_mi_max": math.log(64), "feature_rank": 40.0}]


def row(learned: float, pixels: float, random: float = 10.0, **settings) -> list[Result]:
    values = {PIXELS: float(pixels), RANDOM: random, LEARNED: float(learned)}
    return [replace(ONE, features=kind, value=value, settings=SETTINGS | settings) for kind, value in values.items()]


def test_ahead_everywhere_is_good_and_gives_the_widest_margin() -> None:
    verdict = judge(HEALTHY, row(80, 70) + row(85, 60, fraction=1.0, shift=2), in_use=(60, 64))
    assert verdict.mark == "good"
    assert verdict.sentence == (
        "It worked: the pseudo-labels carry 3.00 of 4.16 nats and 60 of 64 prototypes are in use, and the features "
        "beat their floors in every k-NN setting: 85.0 % with all labels on pictures moved by up to 2 px (k 20), "
        "against 60.0 % from raw pixels and 10.0 % from a random backbone."
    )


def test_a_loss_anywhere_is_said() -> None:
    verdict = judge(HEALTHY, row(80, 70) + row(80, 86, fraction=1.0))
    assert verdict.mark == "unclear"
    assert "beat their floors in 1 of 2 k-NN settings" in verdict.sentence
    assert "lose in 1 (80.0 % with all labels (k 20), against 86.0 % from raw pixels" in verdict.sentence


def test_a_difference_within_chance_is_no_win_and_no_loss() -> None:
    # One standard error of 80 % on 2,000 pictures is 0.9 points.
    assert judge(HEALTHY, row(80, 79.5)).mark == "bad"
    assert judge(HEALTHY, row(80, 70) + row(80, 80.5, k=10)).mark == "good"
    assert judge(HEALTHY, row(80, 70) + row(80, 82, k=10)).mark == "unclear"


def test_behind_everywhere_is_bad() -> None:
    verdict = judge(HEALTHY, row(50, 70))
    assert verdict.mark == "bad"
    assert verdict.sentence.startswith("Not yet")


def test_without_floors_it_is_open() -> None:
    for results in ([], [ONE], [replace(one, protocol="linear") for one in row(80, 70)]):
        verdict = judge(HEALTHY, results)
        assert verdict.mark == "unclear"
        assert "evaluate them beside their floors" in verdict.sentence


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"label_mi": 0.1}, "the labels have collapsed: the pseudo-labels carry 0.10 of 4.16 nats"),
        ({"feature_rank": 1.2}, "the features have collapsed: their effective rank is 1.2"),
    ],
)
def test_a_collapse_is_bad_whatever_the_evaluation(metrics, words: str) -> None:
    verdict = judge([HEALTHY[0] | metrics], row(80, 70))
    assert verdict.mark == "bad"
    assert words in verdict.sentence


def test_what_a_batch_can_carry_bounds_the_information() -> None:
    assert "of 2.77 nats" in judge(HEALTHY, [], batch_size=16).sentence


@pytest.mark.parametrize("metrics", [[], [{"step": 1, "loss": 3.0}], [{"step": 1, "label_mi": math.nan}]])
def test_nothing_logged_is_too_early(metrics) -> None:
    assert judge(metrics, []).sentence.startswith("Too early to say")


def test_curves_leave_out_what_was_never_logged_and_name_the_ceiling() -> None:
    metrics = [{"step": s, "epoch": s / 2, "loss": 5.0 - s, "label_mi": 2.0, "label_mi_max": 4.0} for s in (1, 2)]
    charts = curves(metrics)
    assert [chart.title for chart in charts] == ["Loss", "Label information"]
    assert [chart.last for chart in charts] == ["3 nats", "2 nats, 50 % of log K"]
    assert "log K = 4.00" in charts[1].svg
    assert ">epoch<" in charts[0].svg
    assert ">step<" in curves([{"step": 1, "loss": 1.0}])[0].svg
    assert curves([]) == ()


def test_training_time_counts_steps_and_no_pauses() -> None:
    metrics = [
        {"step": 10, "pictures_per_second": 100.0, "time": 0.0},
        {"step": 20, "time": 5e6},
        {"step": 30, "pictures_per_second": 200.0, "time": 9e6},
    ]
    assert training_seconds(metrics, 50) == pytest.approx(10 * 50 / 100 + 20 * 50 / 200)
    assert training_seconds([], 50) is None
    assert latest(metrics, "pictures_per_second") == 200.0
    assert latest([{"knn": "NaN"}], "knn") is None


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (200.0, "3 min 20 s"), (18_240.0, "5 h 4 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
