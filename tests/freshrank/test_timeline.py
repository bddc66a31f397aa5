"""The timeline says in sentences what has happened, once each, and how long it took to be right again."""

from collections.abc import Callable
from typing import Any

from freshrank.board import Board
from freshrank.scrape import Scrape

Samples = dict[tuple[str, tuple[str, ...]], float]


class Run:
    """A run whose figures can be changed, and time passed."""

    def __init__(self) -> None:
        self.board = Board(["joiner", "trainer", "ranker", "simulator"], ["click"], ["home"], history=100)
        self.now_ms = 0
        self.started_s = {"joiner": 1.0, "trainer": 1.0, "ranker": 1.0, "simulator": 1.0}
        self.down: set[str] = set()
        self.figures: dict[str, Samples] = {name: {} for name in self.started_s}
        self.set("ranker", "version", 10.0)
        self.set("ranker", "model_age_seconds", 0.5)

    def set(self, process: str, name: str, value: float, *labels: str) -> None:
        self.figures[process][(f"freshrank_{process}_{name}", labels)] = value

    def second(self, times: int = 1) -> None:
        for _ in range(times):
            self.now_ms += 1_000
            scrapes = {
                name: None
                if name in self.down
                else Scrape(self.figures[name] | {("process_start_time_seconds", ()): self.started_s[name]})
                for name in self.figures
            }
            self.board.observe(self.now_ms, scrapes)

    def said(self) -> list[str]:
        return [event["text"] for event in self.board.state()["events"]]

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.board.state()["events"]]


def test_quiet_run_says_once_that_the_first_model_serves() -> None:
    run = Run()
    run.second(5)
    assert run.said() == ["the first model serves, 0.5 s behind the events"]


def test_death_restart_and_freshness_are_told_with_their_durations() -> None:
    run = Run()
    run.second(2)
    run.board.timeline.note(run.now_ms, "you", "you killed the trainer")
    run.down.add("trainer")
    run.second(1)
    run.set("ranker", "model_age_seconds", 3.5)
    run.second(2)
    run.down.clear()
    run.started_s["trainer"] = 5.0
    run.second(2)
    run.set("ranker", "version", 11.0)
    run.set("ranker", "model_age_seconds", 0.6)
    run.second(3)
    assert run.said()[1:] == [
        "you killed the trainer",
        "trainer does not answer",
        "trainer answers again after 3.0 s, restarted",
        "version 11 is fresh again, 5.0 s after it began",
    ]
    assert run.kinds()[1:] == ["you", "fault", "well", "well"]


def test_same_version_is_not_fresh_again_only_because_all_answer() -> None:
    run = Run()
    run.second(2)
    run.down.add("ranker")
    run.second(2)
    run.down.clear()
    run.second(3)
    assert run.said()[-1] == "ranker answers again after 2.0 s, the same process"


def test_one_that_is_slow_once_is_no_news() -> None:
    run = Run()
    run.second(2)
    run.down.add("ranker")
    run.second()
    run.down.clear()
    run.second(3)
    assert run.said() == ["the first model serves, 0.5 s behind the events"]


def test_restart_between_two_looks_is_seen() -> None:
    run = Run()
    run.second(2)
    run.started_s["joiner"] = 9.0
    run.second()
    assert run.said()[-1] == "joiner was restarted between two looks"


def test_model_that_ages_without_anybody_being_down_is_behind_and_fresh_again() -> None:
    run = Run()
    run.second(2)
    run.set("ranker", "model_age_seconds", 6.0)
    run.second(4)
    run.set("ranker", "model_age_seconds", 0.4)
    run.set("ranker", "version", 12.0)
    run.second()
    assert run.said()[-2:] == [
        "the model served has seen nothing of the last 6.0 s",
        "version 12 is fresh again, 4.0 s after it began",
    ]


def told(change: Callable[[Run], None]) -> list[str]:
    """Returns what is said after a change, and that it is said once."""
    run = Run()
    run.set("trainer", "gate_state_ratio", 1.0, "pass")
    run.set("trainer", "publish_failures_total", 0.0, "rejected")
    run.set("trainer", "gate_holding_ratio", 0.0)
    run.set("ranker", "blender_version", 0.0)
    run.set("ranker", "blender_share_ratio", 1.0)
    run.set("joiner", "malformed_total", 0.0)
    run.set("simulator", "bots_ratio", 0.3)
    run.set("simulator", "open_ratio", 0.0, "events")
    run.second(2)
    before = len(run.said())
    change(run)
    run.second()
    once = run.said()
    run.second(3)
    assert run.said() == once
    return once[before:]


def test_what_the_gate_does_is_told() -> None:
    def block(run: Run) -> None:
        run.set("trainer", "gate_state_ratio", 0.0, "pass")
        run.set("trainer", "gate_state_ratio", 1.0, "block")
        run.set("trainer", "gate_holding_ratio", 1.0)
        run.set("trainer", "publish_failures_total", 2.0, "rejected")
        run.set("ranker", "version", 7.0)

    assert told(block) == [
        "data or labels are not in order",
        "2 versions were rejected, the one before goes on serving",
        "learning waits until data are in order",
        "rolled back: version 7 serves in place of 10",
    ]


def test_news_are_told() -> None:
    assert told(lambda run: run.set("simulator", "open_ratio", 1.0, "events")) == ["users come to scenario events"]
    assert told(lambda run: run.set("simulator", "bots_ratio", 0.0)) == ["the bots have left"]
    assert told(lambda run: run.set("joiner", "malformed_total", 3.0)) == ["joiner: 3 messages were garbage, set aside"]

    def trial(run: Run) -> None:
        run.set("ranker", "blender_version", 2.0)
        run.set("ranker", "blender_share_ratio", 0.1)

    assert told(trial) == ["weights: version 2 for 10 % of the requests"]

    def grow(run: Run) -> None:
        run.set("trainer", "window_rows", 5.0, "events", "click")

    assert told(grow) == ["scenario events has a part of the model of its own"]


def test_timeline_is_bounded() -> None:
    run = Run()
    for number in range(200):
        run.board.timeline.note(number, "news", str(number))
    events: list[dict[str, Any]] = run.board.state()["events"]
    assert [events[0]["text"], events[-1]["text"]] == ["140", "199"]
