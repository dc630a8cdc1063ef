import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mira.report.charts import HEIGHT, WIDTH, Series, line_chart, number

NAN, INF = math.nan, math.inf


def parse(svg: str) -> ElementTree.Element:
    assert "nan" not in svg.lower().replace("nanometre", "")
    assert "inf" not in svg.lower()
    return ElementTree.fromstring(svg)


def draw(xs, ys, **options) -> ElementTree.Element:
    series = Series.of("loss", [float(x) for x in xs], [None if y is None else float(y) for y in ys])
    svg = line_chart([series], title="Loss", x_label="epoch", y_label="nats", **options)
    return parse(svg)


def dot(root: ElementTree.Element) -> tuple[float, float]:
    circle = root.find("circle")
    return float(circle.get("cx")), float(circle.get("cy"))


def ticks(root: ElementTree.Element) -> list[str]:
    return [text.text for text in root.findall("text[@class='tick']")]


reasonable = st.floats(-1e12, 1e12) | st.sampled_from([0.0, 1e-9, -1e-9, 5e-324, 1e300, -1e300, NAN, INF])


@given(st.lists(st.tuples(st.floats(0, 1e6), reasonable | st.none()), max_size=400), st.booleans())
def test_any_values_draw_inside_the_frame(points, zero: bool) -> None:
    series = Series.of("s", [x for x, _ in points], [y for _, y in points])
    svg = line_chart([series], title="t", x_label="x", y_label="y", zero=zero)
    if not any(y is not None and math.isfinite(y) for _, y in points):
        assert svg == ""
        return
    root = parse(svg)
    places = [dot(root)]
    for shape in [*root.findall("polyline"), *root.findall("polygon")]:
        places += [tuple(map(float, place.split(","))) for place in shape.get("points").split()]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert len(ticks(root)) < 25


def test_one_point_is_a_dot_in_the_middle() -> None:
    root = draw([3.0], [0.5])
    assert root.find("polyline") is None
    x, y = dot(root)
    assert 46 < x < WIDTH - 12
    assert 14 < y < HEIGHT - 40


def test_a_constant_is_a_level_line() -> None:
    root = draw([0, 1, 2], [0.25, 0.25, 0.25])
    heights = {place.split(",")[1] for place in root.find("polyline").get("points").split()}
    assert len(heights) == 1


def test_higher_is_higher_and_later_is_further_right() -> None:
    places = [
        tuple(map(float, place.split(",")))
        for place in draw([0, 1, 2], [1.0, 3.0, 2.0]).find("polyline").get("points").split()
    ]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x0 < x1 < x2
    assert y1 < y2 < y0


def test_what_is_not_finite_is_left_out_and_of_equal_steps_the_last_counts() -> None:
    series = Series.of("s", [0.0, 1.0, 1.0, 2.0, 3.0, 4.0], [1.0, 5.0, 2.0, None, NAN, INF])
    assert series.points == ((0.0, 1.0), (1.0, 2.0))
    assert series.last == 2.0
    assert Series.of("s", [], []).last is None


def test_long_series_are_drawn_as_means_within_the_band_of_extremes() -> None:
    root = draw(list(range(5000)), [math.sin(x) for x in range(5000)])
    assert len(root.find("polyline").get("points").split()) <= 150
    band = [float(place.split(",")[1]) for place in root.find("polygon").get("points").split()]
    line = [float(place.split(",")[1]) for place in root.find("polyline").get("points").split()]
    assert max(band) - min(band) > 5 * (max(line) - min(line))


def test_the_ceiling_is_inside_the_picture_and_named() -> None:
    root = draw([0, 1], [1.0, 2.0], ceiling=("log K = 8.01", 8.01))
    line = root.find("line[@class='ceiling']")
    assert 0 < float(line.get("y1")) < dot(root)[1]
    assert root.find("text[@class='note']").text == "log K = 8.01"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, ["0", "2", "4", "6", "8", "10"]),
        (0, 0.1, ["0", "0.02", "0.04", "0.06", "0.08", "0.10"]),
        (0.7, 0.75, ["0.70", "0.71", "0.72", "0.73", "0.74", "0.75"]),
        (0, 12_500, ["0", "2,500", "5,000", "7,500", "10,000", "12,500"]),
        (-1, 1.5, ["-1.0", "-0.5", "0", "0.5", "1.0", "1.5"]),
        (0, 0.125, ["0", "0.025", "0.050", "0.075", "0.100", "0.125"]),
    ],
)
def test_ticks_are_round_numbers_with_the_digits_they_need(low: float, high: float, expected: list[str]) -> None:
    assert ticks(draw([0, 1], [low, high]))[: len(expected)] == expected


def test_names_are_escaped() -> None:
    root = parse(
        line_chart(
            [Series.of("<b>\"'&", [0.0], [1.0])], title="<i>\"'&", x_label="<x>", y_label="&y", ceiling=("<c>", 2.0)
        )
    )
    assert root.get("aria-label").startswith("<i>\"'&. <b>\"'&: 1 at the end")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3.14159, "3.14"), (12345.6, "12,346"), (0.00001234, "1.23e-5"), (0.05, "0.05"), (-2.5, "-2.5")],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text
