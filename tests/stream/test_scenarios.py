"""The scenarios of `tests/scenarios` in memory: undisturbed, killed at every step, rebalanced all the time, spilled.

`tests/integration/test_scenarios_kafka.py` plays the same files on a real Kafka.
"""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from freshrank.strict import ConfigError
from stream.log import DEAD_LETTER, EXAMPLES
from stream.spill import SpillConfig
from tests.scenarios.load import FOLDER, Raw, Scenario, Until, parse, ratios_in, scenarios
from tests.stream.cluster import Cluster

SCENARIOS = scenarios()
EACH = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
_PATIENCE = 60
"""Turns after which a label that is waited for will not come any more."""


def nothing(tick: int) -> None:
    """What happens between the arrivals of an undisturbed run."""


def play(scenario: Scenario, cluster: Cluster, before: Callable[[int], None] = nothing) -> int:
    """Sends what arrives when it is due, with one turn of the joiners after each tick, then lets everything settle.

    `before` is called with the number of the tick; returns how many there were.
    """
    tick = 0
    for at_ms, arrivals in groupby(scenario.steps, lambda step: None if isinstance(step, Until) else step.at):
        for step in arrivals:
            if isinstance(step, Until):
                wait_for_labels(cluster, step.until_labels)
            elif isinstance(step, Raw):
                cluster.send_bytes(step.topic, step.raw.encode(), step.user)
            else:
                assert at_ms is not None
                cluster.now_ms = max(cluster.now_ms, at_ms)
                cluster.send(step.event(0))
        before(tick)
        cluster.turn()
        tick += 1
    cluster.settle()
    return tick


def wait_for_labels(cluster: Cluster, num_labels: int) -> None:
    for _ in range(_PATIENCE):
        if cluster.labels().total() >= num_labels:
            break
        cluster.now_ms += cluster.config.commit_interval_ms
        cluster.turn()
    assert cluster.labels().total() == num_labels


def cluster_of(scenario: Scenario, crash_at: set[int] | None = None, spill: SpillConfig | None = None) -> Cluster:
    cluster = Cluster(scenario.schema, scenario.join, scenario.num_partitions, spill=spill)
    cluster.crashes.crash_at = crash_at or set()
    cluster.start()
    return cluster


def assert_right(cluster: Cluster, scenario: Scenario, when: str) -> None:
    assert cluster.labels() == scenario.expected, when
    found = [ratios_in(message.value, scenario.schema) for message in cluster.messages(EXAMPLES)]
    assert {place: ratio for ratios in found for place, ratio in ratios.items()} == scenario.ratios, when
    assert len(cluster.messages(DEAD_LETTER)) == scenario.counters.get("malformed", 0), when


@EACH
def test_uninterrupted(scenario: Scenario) -> None:
    cluster = cluster_of(scenario)
    play(scenario, cluster)
    assert_right(cluster, scenario, "uninterrupted")
    assert cluster.labels() == scenario.expected
    counters = cluster.counters()
    assert {name: getattr(counters, name) for name in scenario.counters} == scenario.counters
    assert counters.settled == counters.items * len(scenario.schema.tasks)


@EACH
def test_killed_at_every_step(scenario: Scenario) -> None:
    uninterrupted = cluster_of(scenario)
    play(scenario, uninterrupted)
    steps = uninterrupted.crashes.steps
    assert {"poll", "produce", "send_offsets", "commit", "committed"} == set(steps)
    # Polls that bring nothing are all alike: of those after the last commit one is enough.
    num_steps = len(steps) - steps[::-1].index("committed") + 1
    for number in range(num_steps):
        cluster = cluster_of(scenario, {number})
        play(scenario, cluster)
        assert_right(cluster, scenario, f"killed at step {number}, {steps[number]}")


@EACH
def test_rebalanced_at_every_arrival(scenario: Scenario) -> None:
    """A second joiner comes at one tick; two ticks later one of them is gone, in turns the old and the new one."""
    for joins_at in range(play(scenario, cluster_of(scenario))):
        cluster = cluster_of(scenario)

        def rebalance(tick: int, joins_at: int = joins_at, cluster: Cluster = cluster) -> None:
            if tick == joins_at:
                cluster.start("two")
            elif tick == joins_at + 2:
                cluster.kill("one" if joins_at % 2 else "two")

        play(scenario, cluster, rebalance)
        assert_right(cluster, scenario, f"rebalanced at tick {joins_at}")


@EACH
def test_spilled(scenario: Scenario, tmp_path: Path) -> None:
    """Most of the state on disk, and a kill in the middle, from which a snapshot or the log leads on."""
    spill = SpillConfig(directory=str(tmp_path), hot_items=1, store_mib=16, snapshot_interval_ms=500)
    cluster = cluster_of(scenario, spill=spill)
    middle = len(scenario.steps) // 2

    def kill(tick: int) -> None:
        if tick == middle:
            cluster.kill()
            cluster.start()

    play(scenario, cluster, kill)
    cluster.kill()
    assert_right(cluster, scenario, "spilled")


def test_each_file_shows_something_of_its_own() -> None:
    assert len({scenario.shows for scenario in SCENARIOS}) == len(SCENARIOS) == len(list(FOLDER.glob("*.yaml"))) > 10
    assert all(scenario.expected for scenario in SCENARIOS)


RIGHT = """
shows: something
tasks: {order: {action: order, window_ms: 2000, policy: wait}}
events: [{at: 5, show: r}, {at: 9, do: order, request: r}]
labels: {r a order: [final 4]}
"""


@pytest.mark.parametrize(
    ("right", "wrong", "sentence"),
    [
        ("shows: something", "", "shows is missing"),
        ("at: 9", "at: 4", "events: 4 comes after 5"),
        ("at: 9", "at: 9, until_labels: 2", "must have exactly one of show, do, raw, until_labels"),
        ("at: 9", "at: nine", r'events\[1\]\.at: "nine" is not an integer'),
        ("do: order", "do: order, itme: a", r"events\[1\]\.itme is not a setting; did you mean item\?"),
        ("window_ms: 2000", "window_ms: 0", r"tasks\.order\.window_ms: 0 is not allowed"),
        ("r a order", "r order", "must be `request item task`, with a task of order"),
        ("final 4", "last 4", "'last 4' must be a kind"),
        ("final 4", "final 5", "labels: not the oracle's"),
        ("labels:", "beyond_oracle: so\nother:", "other is not a setting"),
        ("labels:", "counters: {slats: 1}\nlabels:", "counters.slats is not a counter"),
        ("labels:", "ratios: {r a order: 1.0}\nlabels:", "ratios: needed where a task has traffic_ratio"),
    ],
)
def test_mistakes_in_a_file_are_refused(right: str, wrong: str, sentence: str) -> None:
    assert parse("right", RIGHT).expected == {("r", "a", "order", "final", 1, 4): 1}
    with pytest.raises(ConfigError, match=sentence):
        parse("wrong", RIGHT.replace(right, wrong))
