"""A simulator changes while it runs: its rate at once, bots for a while, a scenario whose time had not come."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from sim.control import SimChange
from sim.scenario import ScenarioConfig
from tests.sim.test_loop import CONFIG, Service, run_until, simulator


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


def test_rate_changes_at_once_even_if_the_next_user_was_far_away(service: Service) -> None:
    sim = simulator(service.url, replace(CONFIG, requests_per_s=0.001))
    assert sim.now().requests_per_s == 0.001
    sim.change(SimChange(requests_per_s=200.0))
    run_until(sim, lambda: sim.counters.requests >= 50)
    assert sim.now().requests_per_s == 200.0


def test_bots_click_on_all_they_are_shown_and_leave(service: Service) -> None:
    sim = simulator(service.url)
    sim.change(SimChange(bots_for_s=60.0))
    run_until(sim, lambda: sim.counters.bot_clicks >= 500 and sim.counters.feedback_sent >= 500)
    assert sim.now().bot_share == 0.3
    size = CONFIG.slate
    assert sim.counters.bot_clicks % size == 0
    assert 0.1 < sim.counters.bot_clicks / size / sim.counters.requests < 0.6
    sim = simulator(service.url)
    sim.change(SimChange(bots_for_s=60.0))
    sim.change(SimChange(bots_for_s=0.0))
    run_until(sim, lambda: sim.counters.requests >= 100)
    assert (sim.now().bot_share, sim.counters.bot_clicks) == (0.0, 0)


def test_users_come_to_a_scenario_that_is_opened(service: Service) -> None:
    scenarios = CONFIG.scenarios | {"events": ScenarioConfig(share=5.0, from_s=86_400.0)}
    sim = simulator(service.url, replace(CONFIG, scenarios=scenarios))
    assert sim.now().is_open == {"home": True, "search": True, "deals": True, "events": False}

    def seen() -> set[str]:
        return {request["scenario"] for request in list(service.requests.values())}

    run_until(sim, lambda: sim.counters.requests >= 100)
    assert "events" not in seen()
    sim = simulator(service.url, replace(CONFIG, scenarios=scenarios))
    sim.change(SimChange(open_scenario="events"))
    run_until(sim, lambda: "events" in seen())
    assert all(sim.now().is_open.values())


def test_unknown_scenario_is_refused_and_changes_nothing(service: Service) -> None:
    sim = simulator(service.url)
    with pytest.raises(ValueError, match="scenario: 'moon' is not allowed"):
        sim.change(SimChange(open_scenario="moon", requests_per_s=1.0))
    run_until(sim, lambda: sim.counters.requests >= 1)
    assert sim.now().requests_per_s == CONFIG.requests_per_s


@pytest.mark.parametrize(
    ("field", "value"), [("requests_per_s", 0.0), ("requests_per_s", float("nan")), ("bots_for_s", -1.0)]
)
def test_numbers_beyond_their_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field}: .* is not allowed; \d+ to \d+"):
        SimChange(**{field: value})
