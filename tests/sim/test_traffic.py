"""Who asks where: shares of the scenarios, and scenarios that come up in the middle of a run."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from sim.config import SimConfig
from sim.scenario import ScenarioConfig
from sim.traffic import Traffic

LATE = {
    "home": ScenarioConfig(share=3.0),
    "events": ScenarioConfig(share=4.0, from_s=30.0),
    "search": ScenarioConfig(share=1.0),
    "fair": ScenarioConfig(share=8.0, from_s=60.0),
}


def traffic(scenarios: dict[str, ScenarioConfig]) -> Traffic:
    return Traffic(SimConfig(num_users=50, scenarios=scenarios), [f"u{n}" for n in range(50)], np.random.default_rng(5))


@pytest.mark.parametrize(
    ("run_s", "expected"),
    [
        (0.0, {"home": 0.75, "search": 0.25}),
        (29.999, {"home": 0.75, "search": 0.25}),
        (30.0, {"home": 0.375, "search": 0.125, "events": 0.5}),
        (59.999, {"home": 0.375, "search": 0.125, "events": 0.5}),
        (1e6, {"home": 3 / 16, "search": 1 / 16, "events": 0.25, "fair": 0.5}),
    ],
)
def test_shares_are_those_of_the_scenarios_that_are_there(run_s: float, expected: dict[str, float]) -> None:
    drawn = traffic(LATE)
    counts = Counter(drawn.next(run_s)[1] for _ in range(20_000))
    assert set(counts) == set(expected)
    for name, share in expected.items():
        assert counts[name] / 20_000 == pytest.approx(share, abs=0.015)


def test_a_scenario_to_come_changes_nothing_before_it_comes() -> None:
    with_late, without = traffic(LATE), traffic({name: LATE[name] for name in ("home", "search")})
    for number in range(2_000):
        assert with_late.gap_s() == without.gap_s()
        assert with_late.next(number / 100) == without.next(number / 100)


def test_who_comes_when_does_not_depend_on_the_scenarios() -> None:
    early = {name: replace(scenario, from_s=0.0) for name, scenario in LATE.items()}
    one, other = traffic(LATE), traffic(early)
    assert [(one.next(n / 10)[0], one.gap_s()) for n in range(900)] == [
        (other.next(n / 10)[0], other.gap_s()) for n in range(900)
    ]
