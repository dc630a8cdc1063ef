import math
from dataclasses import replace

import pytest

from mira.evaluation.results import LEARNED, PIXELS, RANDOM, Result
from mira.report.contents import Verdict
from mira.report.curves import curves, latest, mean, training_seconds
from mira.report.gallery import PrototypeUse
from mira.report.verdict import judge
from mira.wording import duration

SETTINGS = {"k": 20, "temperature": 0.07, "fraction": 0.1, "shift": 0}
ONE = Result("knn", LEARNED, "top-1", 80.0, SETTINGS, "d", 100, 2000)
HEALTHY = [{"step": 1, "label_mi": 3.0, "feature_rank": 40.0}]
EVEN = PrototypeUse(prototypes=64, images=4000, used=60, half=20, half_share=0.51)
REACHABLE = math.log(64)


def verdict(metrics=HEALTHY, results=(), **more) -> Verdict:
    return judge(metrics, results, **{"reachable": REACHABLE} | more)


def row(learned: float, pixels: float, random: float = 10.0, name: str = LEARNED, **settings) -> list[Result]:
    values = {PIXELS: float(pixels), RANDOM: random, name: float(learned)}
    return [replace(ONE, features=kind, value=value, settings=SETTINGS | settings) for kind, value in values.items()]


def test_ahead_everywhere_is_good_and_gives_the_widest_margin() -> None:
    found = verdict(results=row(80, 70) + row(85, 60, fraction=1.0, shift=2), use=EVEN)
    assert (found.mark, found.headline) == ("good", "It worked")
    assert found.sentence == (
        "The features beat their baselines in every k-NN setting: 85.0 % with all labels on images moved by up to 2 px "
        "(k 20), against 60.0 % from raw pixels and 10.0 % from a random backbone. The pseudo-labels carry 3.00 of "
        "4.16 nats and 60 of 64 prototypes are in use."
    )


def test_a_loss_anywhere_is_said() -> None:
    found = verdict(results=row(80, 70) + row(80, 86, fraction=1.0))
    assert (found.mark, found.headline) == ("unclear", "Mixed result")
    assert "beat their baselines in 1 of 2 k-NN settings" in found.sentence
    assert "lose in 1 (80.0 % with all labels (k 20), against 86.0 % from raw pixels" in found.sentence


def test_a_difference_within_chance_is_no_win_and_no_loss() -> None:
    # One standard error of 80 % on 2,000 images is 0.9 points.
    assert verdict(results=row(80, 79.5)).mark == "bad"
    assert "not clearly ahead" in verdict(results=row(80, 79.5)).sentence
    assert verdict(results=row(80, 70) + row(80, 80.5, k=10)).mark == "good"
    assert verdict(results=row(80, 70) + row(80, 82, k=10)).mark == "unclear"


def test_behind_everywhere_is_bad_and_says_what_to_do() -> None:
    found = verdict(results=row(50, 70))
    assert (found.mark, found.headline) == ("bad", "Failed")
    assert "Train longer" in found.sentence


def test_without_baselines_it_is_unclear_and_says_how_to_learn_more() -> None:
    for results in ([], [ONE], [replace(one, protocol="linear") for one in row(80, 70)]):
        found = verdict(results=results, run="runs/my run")
        assert (found.mark, found.headline) == ("unclear", "Unclear")
        assert "looks healthy" in found.sentence
        assert "mira evaluate knn 'runs/my run' --floors" in found.sentence


def test_features_of_another_method_are_compared_under_their_own_name() -> None:
    assert verdict(results=row(80, 70, name="Sinkhorn"), learned="Sinkhorn").mark == "good"
    assert verdict(results=row(80, 70, name="Sinkhorn")).mark == "unclear"


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"label_mi": 0.1}, "The labels have collapsed: the pseudo-labels carry 0.10 of 4.16 nats"),
        ({"feature_rank": 1.2}, "The features have collapsed: their effective rank is 1.2"),
    ],
)
def test_a_collapse_is_bad_whatever_the_evaluation(metrics, words: str) -> None:
    found = verdict([HEALTHY[0] | metrics], row(80, 70))
    assert found.mark == "bad"
    assert words in found.sentence
    assert "Train again" in found.sentence


def test_collapsed_labels_are_told_what_helps_against_them() -> None:
    found = verdict([HEALTHY[0] | {"label_mi": 0.1}], remedies=("assignment.beta=0.9", "assignment.target_entropy=0.5"))
    assert "Train again with assignment.beta=0.9 assignment.target_entropy=0.5." in found.sentence


def falling(start: float, end: float) -> list[dict]:
    return [HEALTHY[0] | {"step": step, "label_mi": start + (end - start) * step / 39} for step in range(40)]


# The runs of a trial that were called healthy, and some like them.
WEAK = {
    "two prototypes with most images": ({"use": PrototypeUse(32, 1500, 12, 2, 0.68)}, "2 prototypes hold 68 % of the"),
    "a quarter in use": ({"use": PrototypeUse(128, 1500, 32, 9, 0.5)}, "most prototypes are idle"),
    "one prototype": ({"use": PrototypeUse(64, 1500, 1, 1, 1.0)}, "1 prototype holds 100 % of the images"),
    "a tenth of the information": (
        {"metrics": [HEALTHY[0] | {"label_mi": 0.36}], "reachable": 3.47},
        "10 % of the label information there can be, which is little",
    ),
    "information that falls": ({"metrics": falling(3.0, 1.2)}, "2.10 nats in the middle of the run, 1.27 at the end"),
}


@pytest.mark.parametrize("which", WEAK)
def test_a_weak_point_is_never_called_healthy(which: str) -> None:
    more, words = WEAK[which]
    alone = verdict(**more)
    assert (alone.mark, alone.headline) == ("unclear", "Unclear, with weak points")
    assert "healthy" not in alone.sentence
    assert words in alone.sentence
    beside = verdict(results=row(80, 70), **more)
    assert (beside.mark, beside.headline) == ("unclear", "Mixed result")
    assert words in beside.sentence


@pytest.mark.parametrize("metrics", [falling(1.0, 3.0), falling(3.0, 2.8), falling(3.0, 1.0)[:19]])
def test_rising_steady_and_short_runs_have_no_trend_against_them(metrics) -> None:
    assert verdict(metrics, row(80, 70), use=EVEN).mark == "good"


def test_few_images_cannot_use_many_prototypes() -> None:
    assert verdict(results=row(80, 70), use=PrototypeUse(3000, 300, 150, 60, 0.5)).mark == "good"


@pytest.mark.parametrize("metrics", [[], [{"step": 1, "loss": 3.0}], [{"step": 1, "label_mi": math.nan}]])
def test_nothing_logged_is_too_early(metrics) -> None:
    assert verdict(metrics).headline == "Too early to say"


def test_curves_leave_out_what_was_never_logged_and_name_the_ceiling() -> None:
    metrics = [{"step": s, "epoch": s / 2, "loss": 5.0 - s, "label_mi": 2.0, "marginal_entropy": 4.0} for s in (1, 2)]
    charts = curves(metrics, prototypes=64, batch_size=16)
    assert [chart.title for chart in charts] == ["Loss", "Label information", "Evenness of the prototypes"]
    # 16 images cannot carry more than log 16 nats, however many prototypes there are.
    assert [chart.last for chart in charts] == ["3 nats", "2 nats, 72 % of 2.77", "4 nats, 96 % of 4.16"]
    assert "most there can be: 2.77" in charts[1].svg
    assert "log K: 4.16" in charts[2].svg
    assert ">epoch<" in charts[0].svg
    assert ">step<" in curves([{"step": 1, "loss": 1.0}], prototypes=64, batch_size=16)[0].svg
    assert curves([], prototypes=64, batch_size=16) == ()


def test_training_time_counts_steps_and_no_pauses() -> None:
    metrics = [
        {"step": 10, "pictures_per_second": 100.0, "time": 0.0},
        {"step": 20, "time": 5e6},
        {"step": 30, "pictures_per_second": 200.0, "time": 9e6},
    ]
    assert training_seconds(metrics, 50) == pytest.approx(10 * 50 / 100 + 20 * 50 / 200)
    assert training_seconds([], 50) is None
    assert latest(metrics, "pictures_per_second") == 200.0
    assert mean(metrics, "pictures_per_second") == 150.0
    assert mean(metrics, "loss") is None
    assert latest([{"knn": "NaN"}], "knn") is None


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (200.0, "3 min 20 s"), (18_240.0, "5 h 4 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
