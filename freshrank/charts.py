"""Line charts as inline SVG, written by hand: a few lines on a grid need no plotting library, and stay sharp."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

COLORS = ("#1f2933", "#0b7285", "#c2410c", "#6d28d9", "#4d7c0f", "#be185d", "#a16207", "#1d4ed8")
"""The first is for the whole, the others for its parts, in the order of the config."""
_GRID, _TEXT = "#e4e7eb", "#52606d"
_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 108, 10, 34
_LEGEND_LINE = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A level that gives the lines their meaning."""

    y: float
    text: str


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels, on both axes."""

    x_ticks: list[float]
    y_ticks: list[float]
    x_max: float

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / self.x_max

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)


def line_chart(
    x: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    *,
    x_label: str,
    reference: Reference,
) -> str:
    """Returns an `<svg>` element. x starts at 0; None in a series is a gap; a series of gaps alone is left out.

    The first series is drawn on top and strongest. The y axis covers the values and the reference.
    """
    drawn = {name: ys for name, ys in series.items() if any(y is not None for y in ys)}
    values = [y for ys in drawn.values() for y in ys if y is not None] + [reference.y]
    scale = _Scale(ticks(0.0, max(x, default=1.0)), ticks(min(values), max(values)), max(x, default=1.0))
    parts = [
        *_grid(scale, x_label),
        *_reference(scale, reference),
        *_lines(scale, x, drawn),
        *_legend(list(drawn)),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="11" '
        f'font-family="inherit" fill="{_TEXT}">{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round numbers at even steps, the first at or below `low`, the last at or above `high`.

    >>> ticks(0.71, 0.84)
    [0.7, 0.75, 0.8, 0.85]
    >>> ticks(1.0, 1.0)
    [0.9, 0.95, 1.0, 1.05, 1.1]
    """
    if high - low < 1e-9:
        low, high = low - 0.1, high + 0.1
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [round(place * step, 10) for place in range(first, last + 1)]


def _grid(scale: _Scale, x_label: str) -> Iterator[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for value in scale.y_ticks:
        y = scale.y(value)
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{_GRID}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>'
    for value in scale.x_ticks:
        if value <= scale.x_max:
            yield f'<text x="{scale.x(value):.1f}" y="{bottom + 15}" text-anchor="middle">{value:,.0f}</text>'
    yield f'<text x="{right}" y="{bottom + 29}" text-anchor="end">{escape(x_label)}</text>'


def _reference(scale: _Scale, reference: Reference) -> Iterator[str]:
    y, right = scale.y(reference.y), _WIDTH - _RIGHT
    yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{_TEXT}" stroke-dasharray="4 3"/>'
    is_at_top = y < _TOP + 14
    yield f'<text x="{right}" y="{y + (13 if is_at_top else -5):.1f}" text-anchor="end">{escape(reference.text)}</text>'


def _lines(scale: _Scale, x: Sequence[float], drawn: Mapping[str, Sequence[float | None]]) -> Iterator[str]:
    for place, ys in reversed(list(enumerate(drawn.values()))):
        for is_gap, run in groupby(zip(x, ys, strict=True), key=lambda point: point[1] is None):
            if not is_gap:
                points = " ".join(f"{scale.x(at):.1f},{scale.y(y):.1f}" for at, y in run if y is not None)
                yield f'<polyline points="{points}" fill="none" {_stroke(place)} stroke-linejoin="round"/>'


def _legend(names: list[str]) -> Iterator[str]:
    x = _WIDTH - _RIGHT + 14
    for place, name in enumerate(names):
        y, style = _TOP + 8 + place * _LEGEND_LINE, _stroke(place)
        yield f'<line x1="{x}" y1="{y}" x2="{x + 16}" y2="{y}" {style}/>'
        yield f'<text x="{x + 22}" y="{y + 4}">{escape(name)}</text>'


def _stroke(place: int) -> str:
    return f'stroke="{COLORS[place % len(COLORS)]}" stroke-width="{1.4 if place else 2.2}"'
