"""The world of delayed feedback does what its truth says."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from sim.study_world import HOUR_MS, DelayWorldConfig, draw_world

CONFIG = DelayWorldConfig(hours=24, window_ms=6 * HOUR_MS, observe_ms=HOUR_MS // 4, items_per_hour=2_000)


def test_labels_and_delays_follow_the_known_probabilities() -> None:
    world = draw_world(CONFIG, np.random.default_rng(0))
    p, label, delay_ms = world.probability_N, world.label_N, world.delay_ms_N
    assert 0.25 < p.mean() < 0.35
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 1.0)):
        chosen = (p >= low) & (p < high)
        assert label[chosen].mean() == pytest.approx(p[chosen].mean(), abs=0.01)
    assert delay_ms.max() <= CONFIG.window_ms
    is_slow = world.mean_delay_ms_N > np.median(world.mean_delay_ms_N)
    for age_ms in (HOUR_MS // 8, HOUR_MS // 4, HOUR_MS, 3 * HOUR_MS, 6 * HOUR_MS):
        for chosen in (is_slow, ~is_slow):
            seen = (delay_ms[chosen & (label == 1)] <= age_ms).mean()
            assert seen == pytest.approx(world.seen_by(age_ms)[chosen & (label == 1)].mean(), abs=0.015)


def test_traffic_is_steady_and_jumps_when_it_should() -> None:
    config = dataclasses.replace(CONFIG, traffic_step_hour=8.5, traffic_factor=3.0)
    shown_h = draw_world(config, np.random.default_rng(0)).shown_ms_S / HOUR_MS
    counts, _ = np.histogram(shown_h, bins=np.arange(0.5, 24, 1))
    assert np.abs(counts[:8] - 100).max() <= 1
    assert np.abs(counts[8:] - 300).max() <= 1
    assert (np.diff(shown_h) >= 0).all()


def test_weights_jump_once_and_only_then() -> None:
    config = dataclasses.replace(CONFIG, drift=0.0, weights_step_hour=12.0)
    world = draw_world(config, np.random.default_rng(0))
    logit = np.log(world.probability_N / (1 - world.probability_N))
    is_after = world.shown_ms_N >= 12 * HOUR_MS
    before, after = (
        np.linalg.lstsq(world.features_NF[chosen], logit[chosen], rcond=None) for chosen in (~is_after, is_after)
    )
    assert before[1][0] == pytest.approx(0.0, abs=1e-6)
    assert after[1][0] == pytest.approx(0.0, abs=1e-6)
    assert np.abs(before[0][:-1] - after[0][:-1]).max() > 0.3
    assert after[0][-1] == pytest.approx(before[0][-1])


def test_same_generator_same_world() -> None:
    one, other = (draw_world(CONFIG, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one.delay_ms_N, other.delay_ms_N)
    assert np.array_equal(one.shown_ms_S, other.shown_ms_S)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hours": 0.0}, "hours: 0.0 is not allowed; more than 0"),
        ({"drift": -1.0}, "drift: -1.0 is not allowed; at least 0"),
        ({"early_share": 1.5}, "early_share: 1.5 is not allowed; 0 to 1"),
        ({"observe_ms": 6 * HOUR_MS}, "observe_ms: 21600000 is not allowed; 1 to 21599999"),
        ({"slate_size": 0}, "slate_size: 0 is not allowed; at least 1"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(CONFIG, **change)
