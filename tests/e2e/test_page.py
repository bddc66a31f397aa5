"""The whole loop on embedded services, seen as a user sees it: the page in a headless browser, and what is left."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.chromium import Page, browser, chromium_program
from tests.e2e.conftest import UpRun, wait_for_state

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(240)]
UP_ARGUMENTS: tuple[str, ...] = ()
"""No `--for`: the last test ends the run with Ctrl-C."""
STORY = "document.getElementById('story').textContent"
ORDER = "[...document.querySelectorAll('#slate > li')].map(li => li.dataset.id)"
LEARNED = r"version \d+ → \d+: your click was learned within"


@pytest.fixture(scope="module")
def page(up_run: UpRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = chromium_program()
    if program is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome: the page cannot be opened")
    wait_for_state(up_run, lambda state: state["freshness"]["n"], "an action was learned and served", 120)
    with browser(program, tmp_path_factory.mktemp("browser") / "profile") as opened:
        opened.open(up_run.page_url, 1280, 900)
        yield opened


def test_figures_are_shown_and_grow(page: Page) -> None:
    page.wait("/^[0-9]/.test(document.getElementById('freshness-p50').textContent)", "freshness is a number")
    first = int(page.run("document.getElementById('version').textContent.replaceAll(',', '')"))
    page.wait(f"+document.getElementById('version').textContent.replaceAll(',', '') > {first}", "the version grows")
    page.wait("document.querySelector('#freshness-curve path') !== null", "a curve is drawn")
    page.wait("/^[01][.]/.test(document.getElementById('rbo').textContent)", "versions are compared")
    assert page.run("document.getElementById('top1-changed').textContent").endswith("%")
    page.wait("document.getElementById('gate').textContent.includes('rejected')", "the gate's state is shown")
    assert page.run("document.getElementById('weights').textContent").startswith("of the configuration")
    assert page.run("document.querySelectorAll('#quality tbody tr').length") == 4
    assert page.run("document.querySelectorAll('#loop .station').length") == 4
    up = page.run("[...document.querySelectorAll('#processes tbody tr')].map(r => r.cells[1].textContent)")
    assert up == ["up"] * 6
    assert "feedback positive" in page.run("document.getElementById('join').textContent")


def test_click_on_an_item_is_learned_and_moves_the_list(page: Page) -> None:
    page.wait(f"({ORDER}).length === 10", "a slate is shown")
    before = page.run(ORDER)
    page.click("#slate > li:nth-child(10) [data-act^='click']")
    page.wait(f"/{LEARNED}/.test({STORY})", "the page says that the click was learned", 60)
    story = page.run(STORY)
    old, new = map(int, re.findall(r"version (\d+) → (\d+)", story)[0])
    assert new > old
    page.wait(
        f"JSON.stringify({ORDER}) !== {json.dumps(json.dumps(before, separators=(',', ':')))}", "the order changed"
    )
    assert page.run("document.querySelectorAll('#slate .move.up, #slate .move.down, #slate .move .up').length") > 0
    assert page.console == []


def test_every_panel_shows_something(page: Page) -> None:
    page.wait("document.getElementById('stages-note').textContent.startsWith('Over the')", "the stages are measured")
    assert page.run("document.querySelectorAll('#stages .typical').length") == 6
    for measure in ("ne", "calibration"):
        assert page.run(f"document.querySelectorAll('#{measure}-charts svg').length") == 3 * 4
        axes = page.run(
            f"[...document.querySelectorAll('#{measure}-charts svg')]"
            ".map(one => [...one.querySelectorAll('.tick[text-anchor=end]')].map(tick => tick.textContent).join())"
        )
        assert len(set(axes)) == 1, "all have the same axes"
    page.wait("document.querySelectorAll('#attention .heat').length === 6", "each of three looks at two others", 40)
    assert page.run("document.querySelectorAll('#experts tbody tr').length") == 9
    for panel in ("lift-curve", "churn-curve", "lag-curve", "weights-charts"):
        assert page.run(f"document.querySelector('#{panel} path.line').getAttribute('d').length") > 5, panel


def test_curves_are_read_with_keys_and_as_a_table(page: Page) -> None:
    page.run("document.querySelector('#freshness-curve .charts').focus()")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    spoken = page.run("document.querySelector('#freshness-curve [aria-live]').textContent")
    assert re.match(r"\d.* ago: half within .+, 99 % within .+$", spoken), spoken
    page.click("#freshness-curve summary")
    page.wait("document.querySelectorAll('#freshness-curve tbody tr').length > 3", "the table has rows")
    page.click("#freshness-curve summary")


def test_traffic_is_changed_from_the_page(page: Page, up_run: UpRun) -> None:
    page.wait("!document.getElementById('controls').hidden", "the demo may be broken")
    page.run("document.getElementById('rate-number').value = 15")
    page.click("#rate-form button")
    page.wait("document.getElementById('rate-now').textContent === '15'", "the simulator has taken it up")
    assert up_run.metric("simulator", "freshrank_simulator_rate_requests") == 15


def test_trainer_that_is_killed_comes_back_and_the_page_tells_the_story(page: Page, up_run: UpRun) -> None:
    before = up_run.metric("trainer", "freshrank_trainer_version")
    page.click("#kill-trainer")
    said = "document.getElementById('timeline').textContent"
    page.wait(f"{said}.includes('you killed the trainer')", "the page says what was asked")
    page.wait(f"/trainer (answers again after|was restarted)/.test({said})", "the page says that it is back", 60)
    page.wait(
        "document.querySelector('#processes tbody').textContent.includes('restarted 1×')", "its row says it as well"
    )
    wait_for_state(up_run, lambda state: (state["model"]["version"] or 0) > before, "a new version is served", 60)
    assert page.console == []


def test_page_works_with_the_keyboard_alone(page: Page) -> None:
    page.run("document.querySelector('#who button').focus()")
    page.press("Tab")
    assert page.run("document.activeElement.dataset.act").startswith("click ")
    page.press("Enter")
    page.wait(f"{STORY}.startsWith('You clicked') || {STORY}.startsWith('Model version')", "Enter acted on the item")


def test_every_control_and_picture_has_a_name(page: Page) -> None:
    nameless = page.run(
        "[...document.querySelectorAll('button, select, input, a, svg[role=img], [tabindex]')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim()"
        " || e.labels?.length))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_nothing_is_wider_than_the_screen(page: Page, tmp_path: Path, width: int, height: int) -> None:
    page.resize(width, height)
    assert page.run("document.documentElement.scrollWidth") <= width
    page.screenshot(Path(os.environ.get("FRESHRANK_SCREENSHOTS", tmp_path)) / f"page-{width}.png")


def test_ctrl_c_ends_it_cleanly_with_a_report_and_no_child(up_run: UpRun) -> None:
    wait_for_state(up_run, lambda state: state["freshness"]["n"], "an action was learned and served", 120)
    up_run.child.send_signal(signal.SIGINT)
    assert up_run.end(60) == 0, up_run.lines[-10:]
    assert up_run.left_behind() == []
    assert up_run.report()["learned"] is True
    assert not any("Traceback" in line for line in up_run.lines)
