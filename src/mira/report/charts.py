"""Line charts as inline SVG: no script, no font, colours from the page, so that they follow its dark mode."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 40
_POINTS = 150  # more than this are drawn as means within the band of their extremes


@dataclass(frozen=True)
class Series:
    """A curve: points in order of x, those that are not finite left out."""

    name: str
    points: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, name: str, xs: Sequence[float], ys: Sequence[float | None]) -> "Series":
        """Pair up x and y; None, NaN and infinity are left out, and of equal x the last counts."""
        kept = {x: y for x, y in zip(xs, ys, strict=True) if y is not None and math.isfinite(x + y)}
        return cls(name, tuple(sorted(kept.items())))

    @property
    def last(self) -> float | None:
        """The newest value."""
        return self.points[-1][1] if self.points else None


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    ceiling: tuple[str, float] | None = None,
    zero: bool = False,
) -> str:
    """Draw curves over one pair of axes.

    Args:
        title: read out by screen readers in place of the picture, with the last values.
        ceiling: (name, value) of a dashed horizontal line, such as the highest value there can be.
        zero: start the y axis at zero.

    Returns:
        An `<svg>` element, or "" where no series has a point.
    """
    series = [one for one in series if one.points]
    if not series:
        return ""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points] + ([ceiling[1]] if ceiling else [])
    x_ticks = _ticks(*_padded(min(xs), max(xs)), count=5)
    y_ticks = _ticks(*_padded(min([*ys, 0.0]) if zero else min(ys), max(ys)), count=5)
    axes = _Axes(min(xs), max(xs), y_ticks[0], y_ticks[-1])
    spoken = "; ".join(f"{one.name}: {number(one.points[-1][1])} at the end" for one in series)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}. {spoken}")}">'
    ]
    for tick in y_ticks:
        y = axes.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick, y_ticks)}</text>'
        )
    for tick in x_ticks:
        if axes.left <= tick <= axes.right:
            parts.append(
                f'<text class="tick" x="{axes.x(tick):.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
                f"{_tick(tick, x_ticks)}</text>"
            )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    down = (_TOP + HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text class="axis" transform="translate(10 {down}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    if ceiling:
        y = axes.y(ceiling[1])
        parts.append(f'<line class="ceiling" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="note" x="{WIDTH - _RIGHT}" y="{y - 5:.1f}" text-anchor="end">{escape(ceiling[0])}</text>'
        )
    parts += [_curve(one, axes, place) for place, one in enumerate(series, start=1)]
    return "".join(parts) + "</svg>"


@dataclass(frozen=True)
class _Axes:
    """From values to places in the picture. An axis without length puts its value in the middle."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        share = (value - self.left) / (self.right - self.left) if self.right > self.left else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.bottom) / (self.top - self.bottom) if self.top > self.bottom else 0.5
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _curve(series: Series, axes: _Axes, place: int) -> str:
    """The line, the band of what it averages, and a dot with the newest value."""
    points = series.points
    parts = []
    if len(points) > _POINTS:
        size = math.ceil(len(points) / _POINTS)
        groups = [points[start : start + size] for start in range(0, len(points), size)]
        middles = [sum(x for x, _ in group) / len(group) for group in groups]
        upper = [(x, max(y for _, y in group)) for x, group in zip(middles, groups, strict=True)]
        lower = [(x, min(y for _, y in group)) for x, group in zip(middles, groups, strict=True)]
        parts.append(f'<polygon class="band s{place}" points="{_path([*upper, *reversed(lower)], axes)}"/>')
        points = tuple((x, sum(y for _, y in g) / len(g)) for x, g in zip(middles, groups, strict=True))
    if len(points) > 1:
        parts.append(f'<polyline class="line s{place}" points="{_path(points, axes)}"/>')
    x, y = points[-1]
    tip = f"<title>{escape(series.name)}: {number(series.points[-1][1])}</title>"
    parts.append(f'<circle class="dot s{place}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3.5">{tip}</circle>')
    return "".join(parts)


def _path(points: Sequence[tuple[float, float]], axes: _Axes) -> str:
    return " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)


def _padded(low: float, high: float) -> tuple[float, float]:
    """A range of some length, also around a single value."""
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        return low, high
    half = abs(high) / 2 or 0.5
    return low - half, high + half


def _ticks(low: float, high: float, *, count: int) -> list[float]:
    """Round numbers, about `count` of them, from at or below `low` to at or above `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * factor for factor in (1, 2, 2.5, 5) if power * factor >= rough * 0.999), power * 10)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, max(last, first + 1) + 1)]


def _tick(value: float, ticks: Sequence[float]) -> str:
    """A tick's label, with as many digits as neighbouring ticks need to differ."""
    step = ticks[1] - ticks[0]
    if abs(value) < step * 1e-6:
        return "0"
    largest = max(abs(tick) for tick in ticks)
    if largest >= 1e5 or largest < 1e-3:
        return f"{value:.{max(0, math.ceil(math.log10(largest / step) - 1e-9))}e}".replace("e+0", "e").replace(
            "e-0", "e-"
        )
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9) + (0 if _whole(step) else 1))}f}"


def _whole(step: float) -> bool:
    """Whether a step is 1, 2 or 5 times a power of ten (2.5 needs a digit more)."""
    mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
    return abs(mantissa - round(mantissa)) < 1e-6


def number(value: float) -> str:
    """A value for people: three significant digits, thousands grouped."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.2e}".replace("e-0", "e-")
    return f"{value:.3g}"
