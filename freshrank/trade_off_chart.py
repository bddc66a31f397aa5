"""What is paid for what, as inline SVG: one line of points per method, single markers, and bands of values to be met.

In the look of `freshrank.charts`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from freshrank.charts import COLORS, ticks

_GRID, _TEXT, _BAND = "#e4e7eb", "#52606d", "#fff3bf"
_WIDTH, _HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 14, 62
_LINE = 12


class Point(NamedTuple):
    """A point with the half widths of its intervals."""

    x: float
    y: float
    x_half: float
    y_half: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Values of x between which chance alone lies."""

    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True)
class _Scale:
    x_ticks: list[float]
    y_ticks: list[float]

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)


def trade_off_chart(
    lines: Mapping[str, Sequence[Point]],
    markers: Sequence[Point],
    bands: Sequence[Band],
    *,
    x_label: str,
    y_label: str,
    level: tuple[float, str],
) -> str:
    """Returns an `<svg>` element with at least one point; `level` is a value of y and what it means.

    Points of a line are joined in their order. Intervals are thin bars.
    """
    points = [*(point for line in lines.values() for point in line), *markers]
    xs = [*(value for p in points for value in (p.x - p.x_half, p.x + p.x_half)), *(b.low for b in bands)]
    ys = [*(value for p in points for value in (p.y - p.y_half, p.y + p.y_half)), level[0]]
    xs += [band.high for band in bands]
    scale = _Scale(ticks(min(xs), max(xs)), ticks(min(ys), max(ys)))
    parts = [*_bands(scale, bands), *_grid(scale, x_label, y_label), *_level(scale, level)]
    for place, line in enumerate(lines.values(), start=1):
        parts += _line(scale, line, COLORS[place % len(COLORS)])
    parts += _markers(scale, markers)
    parts += _legend(list(lines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="11" '
        f'font-family="inherit" fill="{_TEXT}">{"".join(parts)}</svg>'
    )


def _bands(scale: _Scale, bands: Sequence[Band]) -> Iterator[str]:
    for place, band in enumerate(bands):
        left, right = scale.x(band.low), scale.x(band.high)
        height = _HEIGHT - _TOP - _BOTTOM
        width = max(right - left, 2)
        yield f'<rect x="{left:.1f}" y="{_TOP}" width="{width:.1f}" height="{height}" fill="{_BAND}"/>'
        is_right = left > _WIDTH * 0.6
        anchor, x = ("end", left - 4) if is_right else ("start", left + width + 4)
        yield f'<text x="{x:.1f}" y="{_TOP + 12 + 13 * place}" text-anchor="{anchor}">{escape(band.text)}</text>'


def _grid(scale: _Scale, x_label: str, y_label: str) -> Iterator[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for value in scale.y_ticks:
        y = scale.y(value)
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{_GRID}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>'
    for value in scale.x_ticks:
        x = scale.x(value)
        yield f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{_GRID}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{value:.6g}</text>'
    yield f'<text x="{right}" y="{bottom + 30}" text-anchor="end">{escape(x_label)}</text>'
    yield f'<text x="{_LEFT + 6}" y="{bottom - 6}">{escape(y_label)}</text>'


def _level(scale: _Scale, level: tuple[float, str]) -> Iterator[str]:
    y, right = scale.y(level[0]), _WIDTH - _RIGHT
    yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{_TEXT}" stroke-dasharray="4 3"/>'
    yield f'<text x="{right - 4}" y="{y - 5:.1f}" text-anchor="end">{escape(level[1])}</text>'


def _line(scale: _Scale, line: Sequence[Point], color: str) -> Iterator[str]:
    path = " ".join(f"{scale.x(point.x):.1f},{scale.y(point.y):.1f}" for point in line)
    yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.4" stroke-linejoin="round"/>'
    for point in line:
        yield from _bars(scale, point, color)
        at = f'cx="{scale.x(point.x):.1f}" cy="{scale.y(point.y):.1f}"'
        yield f'<circle {at} r="3.5" fill="{color}"><title>{escape(point.label)}</title></circle>'


def _markers(scale: _Scale, markers: Sequence[Point]) -> Iterator[str]:
    """Yields squares, their names beside them, each on a line of its own."""
    line = -math.inf
    for point in sorted(markers, key=lambda one: scale.y(one.y)):
        x, y = scale.x(point.x), scale.y(point.y)
        line = max(line + _LINE, y + 4)
        yield from _bars(scale, point, COLORS[0])
        yield f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="{COLORS[0]}"/>'
        anchor, shift = ("end", -8) if x > _WIDTH * 0.6 else ("start", 8)
        yield f'<text x="{x + shift:.1f}" y="{line:.1f}" text-anchor="{anchor}">{escape(point.label)}</text>'


def _bars(scale: _Scale, point: Point, color: str) -> Iterator[str]:
    for low, high in (
        ((point.x - point.x_half, point.y), (point.x + point.x_half, point.y)),
        ((point.x, point.y - point.y_half), (point.x, point.y + point.y_half)),
    ):
        ends = f'x1="{scale.x(low[0]):.1f}" y1="{scale.y(low[1]):.1f}" x2="{scale.x(high[0]):.1f}"'
        yield f'<line {ends} y2="{scale.y(high[1]):.1f}" stroke="{color}" stroke-opacity="0.4"/>'


def _legend(names: Sequence[str]) -> Iterator[str]:
    x, y = _LEFT, _HEIGHT - 10
    for place, name in enumerate(names, start=1):
        color = COLORS[place % len(COLORS)]
        yield f'<line x1="{x}" y1="{y}" x2="{x + 16}" y2="{y}" stroke="{color}" stroke-width="2"/>'
        yield f'<text x="{x + 22}" y="{y + 4}">{escape(name)}</text>'
        x += 44 + 7 * len(name)
