"""Scatter charts as inline SVG: named dots on a grid, beside the line charts of `freshrank.charts`."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Literal, NamedTuple

from freshrank.charts import COLORS, ticks

_GRID, _TEXT = "#e4e7eb", "#52606d"
_WIDTH, _HEIGHT = 560, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 24, 16, 40
_LETTER, _LINE = 6, 12
"""About how wide a letter and how high a line of text is."""
_STYLES = {
    "usual": f'r="4" fill="{COLORS[1]}"',
    "weak": f'r="4" fill="none" stroke="{COLORS[1]}"',
    "chosen": f'r="6" fill="{COLORS[2]}"',
}


class Dot(NamedTuple):
    """A point with its name."""

    x: float
    y: float
    name: str
    kind: Literal["usual", "weak", "chosen"]


def scatter_chart(dots: Sequence[Dot], *, x_label: str, y_label: str) -> str:
    """Returns an `<svg>` element; at least one dot. Weak dots are hollow and have their name as a tooltip only."""
    x_ticks = ticks(min(dot.x for dot in dots), max(dot.x for dot in dots))
    y_ticks = ticks(min(dot.y for dot in dots), max(dot.y for dot in dots))

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (y_ticks[-1] - value) / (y_ticks[-1] - y_ticks[0])

    def grid() -> Iterator[str]:
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        for value in y_ticks:
            yield f'<line x1="{_LEFT}" y1="{y(value):.1f}" x2="{right}" y2="{y(value):.1f}" stroke="{_GRID}"/>'
            yield f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.6g}</text>'
        for value in x_ticks:
            yield f'<line x1="{x(value):.1f}" y1="{_TOP}" x2="{x(value):.1f}" y2="{bottom}" stroke="{_GRID}"/>'
            yield f'<text x="{x(value):.1f}" y="{bottom + 15}" text-anchor="middle">{value:.6g}</text>'
        yield f'<text x="{right}" y="{bottom + 32}" text-anchor="end">{escape(x_label)}</text>'
        yield f'<text x="{_LEFT + 6}" y="{_TOP + 10}">{escape(y_label)}</text>'

    def marks() -> Iterator[str]:
        taken: list[tuple[float, float, float]] = []  # where names are: left, right, line
        for dot in dots:
            at = f'cx="{x(dot.x):.1f}" cy="{y(dot.y):.1f}"'
            yield f"<circle {at} {_STYLES[dot.kind]}><title>{escape(dot.name)}</title></circle>"
            if dot.kind != "weak":
                anchor = "end" if x(dot.x) > _WIDTH * 0.6 else "start"
                shift = -8 if anchor == "end" else 8
                start, line = x(dot.x) + shift, y(dot.y) + 4
                left, right = sorted((start, start + (-1 if anchor == "end" else 1) * _LETTER * len(dot.name)))
                while any(left < last and right > first and abs(line - at_y) < _LINE for first, last, at_y in taken):
                    line += _LINE
                taken.append((left, right, line))
                place = f'x="{start:.1f}" y="{line:.1f}" text-anchor="{anchor}"'
                yield f"<text {place}>{escape(dot.name)}</text>"

    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="11" '
        f'font-family="inherit" fill="{_TEXT}">{"".join(grid())}{"".join(marks())}</svg>'
    )
