"""Drift alarms: seldom without a cause, soon with one, and the same after any interruption."""

import msgspec
import numpy as np
import pytest

from stream.online_drift import DriftDetector, DriftState
from stream.settled_labels import Labels
from tests.stream.served_labels import served

BLOCK = 100


def stream(seed: int, num_labels: int, *, base: float = 0.2, bias: float = 1.0) -> Labels:
    """Returns labels whose true rates are the scores times `bias`."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(2, 2 / base - 2, num_labels)
    return served(scores, rng.random(num_labels) < scores * bias)


def detector(state: DriftState | None = None) -> DriftDetector:
    return DriftDetector(block_labels=BLOCK, delta=0.002, state=state)


@pytest.mark.parametrize("bias", [1.0, 0.8])
def test_a_steady_stream_raises_no_alarm_calibrated_or_not(bias: float) -> None:
    num_alarms = sum(detector().update(stream(seed, 100_000, bias=bias)) for seed in range(10))
    assert num_alarms <= 1  # in 10,000 values


@pytest.mark.parametrize(
    ("base", "bias", "within"),
    [(0.2, 1.5, 6_000), (0.2, 0.5, 5_000), (0.05, 2.0, 6_000)],
)
def test_a_change_of_calibration_raises_one_soon(base: float, bias: float, within: int) -> None:
    for seed in range(5):
        watched = detector()
        assert watched.update(stream(seed, 30_000, base=base)) == 0
        assert watched.update(stream(seed + 100, within, base=base, bias=bias)) >= 1, seed


def test_a_base_rate_that_scores_follow_raises_none() -> None:
    watched = detector()
    assert sum(watched.update(stream(seed, 20_000, base=base)) for seed, base in enumerate((0.3, 0.05, 0.2))) == 0


def test_it_goes_on_from_its_state_as_if_it_had_never_stopped() -> None:
    labels = np.concatenate([stream(seed, 90_000, bias=bias) for seed, bias in enumerate((1.0, 0.4, 1.0))])
    rng = np.random.default_rng(0)
    parts = np.split(labels, np.sort(rng.integers(0, len(labels), 60)))
    uninterrupted, interrupted = detector(), detector()
    alarms, alarms_interrupted = [], []
    for part in parts:
        alarms.append(uninterrupted.update(part))
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(interrupted.state), type=DriftState)
        interrupted = detector(state)
        alarms_interrupted.append(interrupted.update(part))
    assert alarms_interrupted == alarms
    assert sum(alarms) >= 2
    assert interrupted.state == uninterrupted.state


def test_one_impossible_label_does_not_decide_alone() -> None:
    watched = detector()
    watched.update(stream(1, 30_000))
    assert watched.update(served([1e-7] * BLOCK, [1] + [0] * (BLOCK - 1))) == 0


def test_what_it_remembers_is_bounded() -> None:
    watched = detector()
    watched.update(stream(2, 250_000))
    assert 500 <= len(watched.state.values) <= 1_000
