"""The canary lane: who serves what when, and what ends it."""

import numpy as np
import pytest

from model.canary import Canary, CanaryConfig
from model.gate_report import blocked

TASKS = ("click", "hide")
CONFIG = CanaryConfig(canary_ms=1_000, min_exposure=500)


def watched(rng: np.random.Generator, *, click: float = 0.1, hide: float = 0.02, score: float = 0.1) -> list[str]:
    """Checks that tripped in a world whose canary lane differs; looked at after every round."""
    canary = Canary(CONFIG, TASKS)
    canary.released(10, now_ms=0)
    canary.judge(now_ms=0)
    for number in range(40):
        for version, rates in ((10, (0.1, 0.02)), (11, (click, hide))):
            label_BT = (rng.random((200, 2)) < rates).astype(np.float32)
            served_BT = np.tile(np.array([0.1 if version == 10 else score, 0.02], np.float32), (200, 1))
            canary.observe(
                np.full(200, version), np.full(200, 100 + number), label_BT, np.ones((200, 2), np.bool_), served_BT
            )
        canary.judge(now_ms=100 + number)
    return sorted({finding.check for finding in blocked(canary.findings)})


def test_lanes_that_do_not_differ_never_trip_however_often_one_looks() -> None:
    tripped = [watched(np.random.default_rng(seed)) for seed in range(40)]
    assert sum(map(bool, tripped)) <= 1


@pytest.mark.parametrize(
    ("changes", "check"),
    [({"click": 0.06}, "canary_rate"), ({"hide": 0.05}, "canary_rate"), ({"score": 0.35}, "canary_ne"),
     ({"score": 0.35}, "canary_calibration")],
)  # fmt: skip
def test_a_worse_lane_trips_with_its_figures(changes: dict[str, float], check: str) -> None:
    assert check in watched(np.random.default_rng(1), **changes)


@pytest.mark.parametrize("changes", [{"click": 0.14}, {"hide": 0.005}])
def test_a_better_lane_does_not_trip(changes: dict[str, float]) -> None:
    assert "canary_rate" not in watched(np.random.default_rng(1), **changes)


def test_few_labels_are_not_judged() -> None:
    canary = Canary(CONFIG, TASKS)
    canary.released(10, now_ms=0)
    canary.observe(np.array([11]), np.array([5]), np.ones((1, 2)), np.ones((1, 2), np.bool_), np.full((1, 2), 0.1))
    assert {finding.state for finding in canary.judge(now_ms=6)} == {"not_judged"}


def test_lanes_follow_from_what_was_released_when_the_impression_was_shown() -> None:
    canary = Canary(CONFIG, ("click",))
    canary.released(10, now_ms=100)
    canary.released(20, now_ms=200)
    versions, times = np.array([15, 15, 25, 10, 12, 0]), np.array([150, 250, 250, 250, 50, 150])
    canary.observe(versions, times, np.ones((6, 1)), np.ones((6, 1), np.bool_), np.full((6, 1), 0.5))
    stable, in_canary = canary._sums_LTS[:, 0, 0]
    assert (stable, in_canary) == (2, 2), "15 was new at 150 and old at 250; before the first release nobody knows"


def test_a_version_is_due_after_its_time_and_never_after_a_trip() -> None:
    canary = Canary(CONFIG, TASKS)
    for version, at_ms in ((11, 100), (12, 200), (13, 900)):
        canary.promoted(version, at_ms)
    assert [canary.due(now_ms) for now_ms in (1_000, 1_250, 1_300, 1_900)] == [None, 12, None, 13]
    assert not Canary(CanaryConfig(), TASKS).is_on


@pytest.mark.parametrize(("name", "value"), [("canary_ms", -1), ("min_exposure", 0), ("alpha", 1.0), ("deflate", 0.5)])
def test_a_setting_that_is_not_allowed_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}: {value} is not allowed"):
        CanaryConfig(**{name: value})  # type: ignore[arg-type]  # wrong on purpose
