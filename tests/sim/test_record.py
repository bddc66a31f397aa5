"""Recorded logs: deterministic, in arrival order, and true to what they say."""

import gzip
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sim.config import SimConfig
from sim.record import START_MS, RecordedFeedback, RecordedTruth, write_recorded_log
from sim.scenario import ScenarioConfig
from stream.schema import Impression

CONFIG = SimConfig(num_users=50, num_items=100)
FILES = ("impressions.jsonl.gz", "feedback.jsonl.gz", "truth.jsonl.gz")


def read(folder: Path, name: str, kind: type[Any]) -> list[Any]:
    with gzip.open(folder / name) as lines:
        return [msgspec.json.decode(line, type=kind) for line in lines]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noisy")
    write_recorded_log(folder, 600, 3, replace(CONFIG, duplicate_share=0.05, disorder_share=0.1))
    return folder


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_recorded_log(tmp_path / name, 60, seed, CONFIG)
    for file in FILES:
        one, same, other = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert one == same
        assert one != other


def test_lines_stand_in_arrival_order(noisy: Path) -> None:
    shown = [impression.ts for impression in read(noisy, "impressions.jsonl.gz", Impression)]
    feedback = read(noisy, "feedback.jsonl.gz", RecordedFeedback)
    arrivals = [f.ts if f.arrival_ts is None else f.arrival_ts for f in feedback]
    assert shown == sorted(shown)
    assert arrivals == sorted(arrivals)
    assert [f.ts for f in feedback] != sorted(f.ts for f in feedback)
    late = [f for f in feedback if f.arrival_ts is not None]
    assert late
    assert all(0 < f.arrival_ts - f.ts <= 2 * 1_000 * CONFIG.disorder_s for f in late)


def test_the_feedback_is_the_true_outcome(noisy: Path) -> None:
    feedback = read(noisy, "feedback.jsonl.gz", RecordedFeedback)
    by_event = {f.event_id: (f.request_id, f.item_id, f.action, f.ts) for f in feedback}
    assert max(Counter(f.event_id for f in feedback).values()) == 2
    expected = set()
    for line in read(noisy, "truth.jsonl.gz", RecordedTruth):
        for action, outcome in line.outcome.items():
            for item_id, happened, delay_ms in zip(line.item_id, outcome, line.delay_ms[action], strict=True):
                assert (delay_ms >= 0) == bool(happened)
                if happened:
                    expected.add((line.request_id, item_id, action, line.ts + delay_ms))
    assert set(by_event.values()) == expected
    assert len(by_event) == len(expected)


def test_true_probabilities_are_calibrated_against_outcomes(noisy: Path) -> None:
    truth = read(noisy, "truth.jsonl.gz", RecordedTruth)
    for action in ("click", "order", "hide"):
        probability = np.concatenate([line.probability[action] for line in truth])
        outcome = np.concatenate([line.outcome[action] for line in truth])
        sigma = np.sqrt((probability * (1 - probability)).sum())
        assert abs(outcome.sum() - probability.sum()) < 4 * sigma


def test_impressions_carry_what_a_service_would_have_known(noisy: Path) -> None:
    impressions = read(noisy, "impressions.jsonl.gz", Impression)
    feedback = read(noisy, "feedback.jsonl.gz", RecordedFeedback)
    assert [i.request_id for i in impressions] == [t.request_id for t in read(noisy, "truth.jsonl.gz", RecordedTruth)]
    with_sequence = 0
    for impression in impressions:
        assert impression.items.propensity == [0.25] * 10
        actions = {f.event_id: f for f in feedback if f.user_id == impression.user_id and f.ts < impression.ts}
        newest = sorted((f.ts for f in actions.values()), reverse=True)[: CONFIG.sequence_length]
        assert impression.sequence.ts == newest
        with_sequence += bool(newest)
    assert with_sequence > 300


def test_a_late_scenario_comes_up_at_its_event_time(tmp_path: Path) -> None:
    scenarios = CONFIG.scenarios | {"events": ScenarioConfig(share=1.0, from_s=2.0)}
    write_recorded_log(tmp_path / "late", 600, 3, replace(CONFIG, scenarios=scenarios))
    write_recorded_log(tmp_path / "never", 600, 3, CONFIG)
    late, never = (read(tmp_path / name, "impressions.jsonl.gz", Impression) for name in ("late", "never"))
    before = [impression for impression in late if impression.ts < START_MS + 2_000]
    assert 100 < len(before) < 300
    assert before == never[: len(before)]
    share = np.mean([impression.scenario == "events" for impression in late[len(before) :]])
    assert share == pytest.approx(0.5, abs=0.1)


def test_an_unfinished_log_has_no_file_under_its_name(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_recorded_log(tmp_path, 60, 3, CONFIG, stop)
    assert not any((tmp_path / file).exists() for file in FILES)


def test_no_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^requests: 0 is not allowed; at least 1"):
        write_recorded_log(tmp_path, 0, 3, CONFIG)
