"""Line charts: what is drawn, and where."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshrank.charts import Reference, line_chart, ticks
from freshrank.scatter import Dot, scatter_chart

SVG = "{http://www.w3.org/2000/svg}"
CHANCE = Reference(y=0.5, text="chance")


def lines(svg: str) -> list[list[tuple[float, float]]]:
    found = ET.fromstring(svg).findall(f"{SVG}polyline")
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in line.attrib["points"].split())] for line in found]


def texts(svg: str) -> list[str | None]:
    return [text.text for text in ET.fromstring(svg).findall(f"{SVG}text")]


def test_the_first_series_is_drawn_last_and_higher_values_are_higher_up() -> None:
    drawn = lines(line_chart([10, 20], {"all": [0.6, 0.8], "home": [0.7, 0.7]}, x_label="rows", reference=CHANCE))
    home, everything = drawn
    assert everything[0][1] > home[0][1] == home[1][1] > everything[1][1]
    assert everything[0][0] < everything[1][0]


def test_a_gap_splits_a_line_and_a_series_of_gaps_is_left_out() -> None:
    svg = line_chart([1, 2, 3, 4], {"all": [0.6, None, 0.7, 0.8], "home": [None] * 4}, x_label="rows", reference=CHANCE)
    assert [len(line) for line in lines(svg)] == [1, 2]
    assert "all" in texts(svg)
    assert "home" not in texts(svg)


def test_names_are_escaped() -> None:
    assert "<b>" in texts(line_chart([1], {"<b>": [0.6]}, x_label="rows", reference=CHANCE))


@pytest.mark.parametrize("values", [[], [None]])
def test_nothing_to_draw_still_is_a_chart(values: list[float | None]) -> None:
    svg = line_chart([1.0] * len(values), {"all": values}, x_label="rows", reference=CHANCE)
    assert lines(svg) == []
    assert "chance" in texts(svg)


@given(low=st.floats(-1e6, 1e6), width=st.floats(0, 1e6))
def test_ticks_are_even_and_cover_the_values(low: float, width: float) -> None:
    places = ticks(low, low + width)
    steps = [after - before for before, after in pairwise(places)]
    assert places[0] <= low + 1e-5 * max(1.0, steps[0])
    assert places[-1] >= low + width - 1e-5 * max(1.0, steps[0])
    assert max(steps) == pytest.approx(min(steps), rel=1e-3, abs=1e-9)
    assert 2 <= len(places) <= 9


def test_marks_close_together_have_different_numbers() -> None:
    dots = [Dot(1.0092, 0.5, "one", "usual"), Dot(1.0111, 0.9, "other", "usual")]
    assert {"1.009", "1.0095", "1.01", "1.0105", "1.011", "1.0115"} <= set(
        texts(scatter_chart(dots, x_label="", y_label=""))
    )
    drawn = texts(line_chart([1, 2], {"all": [1.0092, 1.0111]}, x_label="", reference=Reference(y=1.01, text="")))
    assert {"1.009", "1.0095", "1.01", "1.0105", "1.011", "1.0115"} <= set(drawn)


def test_names_of_dots_at_one_place_stand_below_each_other() -> None:
    dots = [Dot(0.5, 0.5, name, "usual") for name in ("one", "other", "third")] + [Dot(0.9, 0.9, "far", "usual")]
    drawn = ET.fromstring(scatter_chart(dots, x_label="", y_label="")).findall(f"{SVG}text")
    heights = sorted(float(text.attrib["y"]) for text in drawn if text.text in ("one", "other", "third"))
    assert [high - low for low, high in pairwise(heights)] == pytest.approx([12, 12])
