"""A scenario nobody listed comes up in the running loop: the model grows a part for it, and nothing is restarted."""

import json
import signal
import urllib.request
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.e2e.chromium import browser, chromium_program
from tests.e2e.conftest import UpRun, wait_for_state

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(200)]
LISTED = ("home", "search", "deals")
UP_ARGUMENTS = (
    "--for", "150",
    "--set", "unknown_scenario=add",
    "--set", "model.growth.scenario_admission=300",
    "--set", "sim.request_timeout_s=10",
    "--set", "sim.scenarios.events={from_s: 4, share: 1.0, click_bias: -1.0}",
)  # fmt: skip
"""Half of the traffic goes to `events`, from four seconds after the users came. They are patient, because slow is not
wrong, and a machine with more to do is slow. Ended by SIGTERM."""


@pytest.fixture(scope="module")
def unreachable(up_run: UpRun) -> float:
    """Requests that were lost before the ranker had started; the run has a model by then."""
    wait_for_state(up_run, lambda state: state["freshness"]["n"], "an action was learned and served", 100)
    return up_run.metric("simulator", "freshrank_simulator_requests_unreachable_total")


@pytest.fixture(scope="module")
def grown(up_run: UpRun, unreachable: float) -> dict[str, Any]:
    """The state in which `events` has a part of its own, in the trainer and in the ranker."""
    return wait_for_state(
        up_run,
        lambda state: state["schema"]["added"] and scored_as(up_run, "events") == "events",
        "events has a part of its own",
        60,
    )


def scored_as(run: UpRun, scenario: str) -> str:
    """Returns whose part of the model answers a request of a scenario, as the answer says."""
    asked = urlencode({"user_id": "u1", "scenario": "home"})
    with urllib.request.urlopen(f"{run.page_url}api/candidates?{asked}", timeout=5) as answer:
        world = json.load(answer)
    body = {"user_id": "u1", "scenario": scenario, "size": 5} | {k: world[k] for k in ("candidates", "user", "context")}
    request = urllib.request.Request(
        f"{run.ranker_url}v1/rank", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        slate = json.load(answer)
    assert len(slate["items"]) == 5
    name: str = slate["scenario"]
    return name


def test_trainer_has_added_it_once_and_the_page_lists_it(up_run: UpRun, grown: dict[str, Any]) -> None:
    assert up_run.metric("trainer", "freshrank_trainer_scenarios_added_total") == 1
    assert up_run.metric("trainer", "freshrank_trainer_unknown_rows_total") >= 300
    assert grown["schema"]["scenarios"] == [*LISTED, "events"]
    assert grown["schema"]["added"] == ["events"]


def test_requests_are_scored_by_their_own_part_and_unknown_ones_by_the_default(
    up_run: UpRun, grown: dict[str, Any]
) -> None:
    assert [scored_as(up_run, name) for name in (*LISTED, "events", "fair")] == [*LISTED, "events", "home"]


def test_old_and_new_scenarios_go_on_being_learned(up_run: UpRun, grown: dict[str, Any]) -> None:
    def rows(state: dict[str, Any]) -> dict[str, float]:
        return {name: state["quality"]["click"][name]["n"] for name in (*LISTED, "events")}

    before = rows(grown)
    wait_for_state(
        up_run,
        lambda state: (
            all(rows(state)[name] > before[name] for name in before)
            and state["model"]["version"] > grown["model"]["version"]
        ),
        "every scenario has more labels, and a later version is served",
        40,
    )


def test_page_shows_it_without_being_loaded_again(
    up_run: UpRun, grown: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    program = chromium_program()
    if program is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome: the page cannot be opened")
    with browser(program, tmp_path_factory.mktemp("browser") / "profile") as page:
        page.open(up_run.page_url, 1280, 900)
        names = "[...document.querySelectorAll('#quality tbody th')].map(cell => cell.textContent).join()"
        page.wait(f"{names} === 'all,home,search,deals,events added'", "the table of qualities has it as the last row")
        offered = "[...document.getElementById('scenario').options].map(option => option.value).join()"
        page.wait(f"{offered} === 'home,search,deals,events'", "a user can choose it")
        assert page.console == []


def test_nothing_was_restarted_and_no_request_failed(up_run: UpRun, grown: dict[str, Any], unreachable: float) -> None:
    assert up_run.metric("simulator", "freshrank_simulator_requests_failed_total") == 0
    assert up_run.metric("simulator", "freshrank_simulator_requests_unreachable_total") == unreachable
    assert up_run.metric("ranker", "freshrank_ranker_requests_refused_total") == 0
    assert up_run.metric("trainer", "freshrank_trainer_scenarios_added_total") == 1
    up_run.child.send_signal(signal.SIGTERM)
    assert up_run.end(60) == 0, up_run.lines[-15:]
    report = up_run.report()
    assert report["restarts"] == 0
    assert [process["restarts"] for process in report["processes"].values()] == [0] * 6
    assert report["join"]["malformed"] == 0
    assert set(report["tasks"]["click"]) == {"all", *LISTED, "events"}
    assert not any("Traceback" in line for line in up_run.lines)
