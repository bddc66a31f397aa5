"""How long after its cause an action happens: a mixture of two exponentials, cut at a maximum."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayConfig:
    """Delay of one action. Clicks and hides count from the slate, orders from their click."""

    fast_s: float = 0.8
    """Mean of the fast part in seconds; above 0."""
    slow_s: float = 2.5
    """Mean of the slow part in seconds; above 0."""
    slow_share: float = 0.2
    """Share of the slow part; from 0 to 1."""
    max_s: float = 5.5
    """Longer delays are drawn again from the whole mixture, in seconds; above 0."""

    def __post_init__(self) -> None:
        for name in ("fast_s", "slow_s", "max_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: {value} is not allowed; a finite number above 0")
        if not 0 <= self.slow_share <= 1:
            raise ValueError(f"slow_share: {self.slow_share} is not allowed; from 0 to 1")


def sample_delays_ms(config: DelayConfig, num: int, time_scale: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns `num` delays in ms, int64 `[num]`, from the mixture truncated at `max_s`; `time_scale` stretches it all.

    Drawn by inverting the truncated mixture part by part: a part's share is weighted by its mass below `max_s`, so the
    result has exactly the law that drawing again would give, in a fixed number of draws.
    """
    mass_fast = (1.0 - config.slow_share) * -math.expm1(-config.max_s / config.fast_s)
    mass_slow = config.slow_share * -math.expm1(-config.max_s / config.slow_s)
    part, level = rng.random((2, num))
    is_slow = part * (mass_fast + mass_slow) < mass_slow
    mean_s = np.where(is_slow, config.slow_s, config.fast_s)
    delay_s = -mean_s * np.log1p(level * np.expm1(-config.max_s / mean_s))
    delay_ms: NDArray[np.int64] = np.maximum(1, np.rint(delay_s * time_scale * 1_000)).astype(np.int64)
    return delay_ms
