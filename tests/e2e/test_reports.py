"""Reports as files in a headless browser: a phone shows all of a page without scrolling it sideways."""

from pathlib import Path

import pytest

from freshrank.compare_page import compare_page
from freshrank.frontier_page import frontier_page
from tests.e2e.chromium import browser, chromium_program

pytestmark = [pytest.mark.integration, pytest.mark.slow]
TASKS = ("click", "order", "hide")


def compared() -> str:
    cells = {"all": {figure: {"mean": 0.7123, "ci": 0.0123} for figure in ("auc", "ne", "gauc")}}
    figures = {"models": {"hinet": dict.fromkeys(TASKS, cells)}, "pairs": {"hinet": {}}}
    about = {"source": "recorded", "config_hash": "0" * 16, "tasks": TASKS, "scenarios": ["home"], "batch_rows": 64}
    run = {"seeds": 3, "examples": 1_000_000, "heldout_examples": 100_000, "budget": 700_000}
    one = {"params": {"hinet": 700_000}, "scale": {"hinet": 1.0}, "skipped_steps": {"hinet": 0}}
    return compare_page(
        {**about, **run, **figures, **one, "heldout": figures, "examples_per_cpu_s": {"hinet": 9_999.0}}
    )


def frontier() -> str:
    figures = {task: {name: {"mean": 0.9123, "ci": None} for name in ("ne", "log_loss")} for task in TASKS}
    names = ("as configured", "no bounds", "click>=0.4, order>=0.4")
    runs = [
        {"name": name, "bounds": {}, "weights": dict.fromkeys(TASKS, 0.333), "tasks": figures, "is_efficient": True}
        for name in names
    ]
    least = {"ne": names[0], "log_loss": names[1]}
    about = {"source": "recorded", "truth": None, "examples": 30_000, "seeds": 1, "tasks": TASKS}
    return frontier_page({**about, "runs": runs, "least_misery": least})


def test_wide_tables_scroll_inside_a_narrow_page(tmp_path: Path) -> None:
    program = chromium_program()
    if program is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome: no page can be opened")
    with browser(program, tmp_path / "profile") as page:
        for name, text in (("compare", compared()), ("frontier", frontier())):
            path = tmp_path / f"{name}.html"
            path.write_text(text, encoding="utf-8")
            page.open(path.as_uri(), 420, 900)
            assert page.run("document.documentElement.scrollWidth") == 420, name
            assert page.run("[...document.querySelectorAll('table')].some(one => one.scrollWidth > one.clientWidth)"), (
                name
            )
