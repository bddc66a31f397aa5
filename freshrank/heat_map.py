"""Heat maps as inline SVG, in the look of `freshrank.charts`."""

from collections.abc import Sequence
from html import escape

_TEXT, _DARK, _LIGHT = "#52606d", "#1f2933", "#ffffff"
_FULL = (11, 114, 133)
"""The color of 1; 0 is white."""
_CELL_WIDTH, _CELL_HEIGHT, _LETTER, _TOP = 64, 26, 6.4, 24
_MIN_LEFT, _SWITCH = 60, 0.55


def heat_map(rows: Sequence[tuple[str, Sequence[float | None]]], columns: Sequence[str]) -> str:
    """Returns an `<svg>` element: a line of cells per row, each value (0 to 1) as color and text; None is no cell."""
    left = max([_MIN_LEFT, *(12 + _LETTER * len(name) for name, _ in rows)])
    cell_width = max([_CELL_WIDTH, *(8 + _LETTER * len(name) for name in columns)])
    width, height = left + cell_width * len(columns), _TOP + _CELL_HEIGHT * len(rows) + 4
    parts = [
        f'<text x="{left + cell_width * (k + 0.5):.1f}" y="15" text-anchor="middle">{escape(name)}</text>'
        for k, name in enumerate(columns)
    ]
    for line, (name, values) in enumerate(rows):
        y = _TOP + _CELL_HEIGHT * line
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
        for k, value in enumerate(values):
            if value is not None:
                parts.append(_cell(left + cell_width * k, y, cell_width, value))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img" font-size="11" '
        f'style="max-width: {width:.0f}px" font-family="inherit" fill="{_TEXT}">{"".join(parts)}</svg>'
    )


def _cell(x: float, y: float, width: float, value: float) -> str:
    share = min(max(value, 0.0), 1.0)
    color = "#" + "".join(f"{round(255 + (full - 255) * share):02x}" for full in _FULL)
    text = _LIGHT if share > _SWITCH else _DARK
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{width - 1:.1f}" height="{_CELL_HEIGHT - 1}" fill="{color}"/>'
        f'<text x="{x + width / 2:.1f}" y="{y + 17}" text-anchor="middle" fill="{text}">{value:.3f}</text>'
    )
