"""The delays of actions."""

import numpy as np
import pytest

from sim.delay import DelayConfig, sample_delays_ms


def test_the_law_is_that_of_drawing_again_beyond_the_maximum() -> None:
    config = DelayConfig(fast_s=0.5, slow_s=4.0, slow_share=0.4, max_s=3.0)
    ours = sample_delays_ms(config, 200_000, 1.0, np.random.default_rng(1))
    rng = np.random.default_rng(2)
    mean = np.where(rng.random(600_000) < config.slow_share, config.slow_s, config.fast_s)
    drawn = rng.exponential(mean)
    kept = 1_000 * drawn[drawn <= config.max_s]
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert np.quantile(ours, quantile) == pytest.approx(np.quantile(kept, quantile), rel=0.02, abs=2)


def test_delays_are_whole_milliseconds_within_the_scaled_maximum() -> None:
    delays = sample_delays_ms(DelayConfig(max_s=2.0), 10_000, 0.1, np.random.default_rng(1))
    assert delays.dtype == np.int64
    assert delays.min() >= 1
    assert delays.max() <= 200


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"fast_s": 0.0}, "fast_s"), ({"max_s": float("nan")}, "max_s"), ({"slow_share": 1.5}, "slow_share")],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: .* is not allowed"):
        DelayConfig(**settings)
