"""Thresholds of the off-policy gate. They are ours: keep offline lift beside online lift of what was promoted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

MIN_KERNEL_DRAWS = 400
"""With fewer, the kernel's weights are biased upwards: 48 draws gave a mean weight of 1.4 (design, section 9)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """What learned weights must prove on a later slice of time before they serve."""

    min_requests: int = 2_000
    """Explored requests of the slice that are needed for a verdict; at least 100."""
    pool_below: int = 10_000
    """A scenario with fewer explored requests is judged together with the others like it; at least 100."""
    mean_weight_off: float = 0.03
    """How far the mean importance weights, of the policy and of the centre, may be from 1; in (0, 0.5]."""
    min_ess: float = 0.1
    """Least effective share of the requests, (sum w)^2 / (N sum w^2) of the kernel's weights; in (0, 1)."""
    max_uncovered: float = 0.01
    """Largest share of the policy's slates that the exploration never shows; in [0, 1)."""
    max_angle: float = 1.2
    """Largest median angle between the policy's and the centre's weights, in RMS angles of the exploration; above 0. A
    little more than learning admits: it measures on other requests."""
    max_angle_p95: float = 2.2
    """The same for the 95th percentile; above 0."""
    guarded: Mapping[str, float] = field(default_factory=dict)
    """Actions that may not suffer -> most relative loss that the 95 % bound may leave open, above 0 (0.005: half a
    percent). Of an action worth less than 0, a loss is that there is more of it."""
    inclusion_draws: int = 200
    """Draws per request that the probabilities of showing an item are counted in; at least 100."""
    kernel_draws: int = MIN_KERNEL_DRAWS
    """Draws per request that normalise the kernel; at least 400."""
    resamples: int = 1_000
    """Resamples of the bootstrap over users; at least 200."""

    def __post_init__(self) -> None:
        least = {
            "min_requests": 100,
            "pool_below": 100,
            "inclusion_draws": 100,
            "kernel_draws": MIN_KERNEL_DRAWS,
            "resamples": 200,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {low}")
        if not 0 < self.mean_weight_off <= 0.5:
            raise ValueError(f"mean_weight_off: {self.mean_weight_off} is not allowed; in (0, 0.5]")
        if not 0 < self.min_ess < 1:
            raise ValueError(f"min_ess: {self.min_ess} is not allowed; in (0, 1)")
        if not 0 <= self.max_uncovered < 1:
            raise ValueError(f"max_uncovered: {self.max_uncovered} is not allowed; in [0, 1)")
        for name in ("max_angle", "max_angle_p95"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; a finite number above 0")
        for action, loss in self.guarded.items():
            if not 0 < loss < math.inf:
                raise ValueError(f"guarded.{action}: {loss} is not allowed; a finite number above 0")
