"""What an off-policy evaluation found: plain figures, for the gate, for JSON and for the page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its bounds, each of them one-sided at 95 %."""

    value: float
    se: float
    """Standard error, of the bootstrap over users."""
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """Figures of one scenario, or of several that are too small to be judged alone. Lifts are over the centre."""

    name: str
    """The scenario, or `pooled`."""
    scenarios: tuple[str, ...]
    num_requests: int
    num_users: int
    mean_reward: float
    """Of a request, as explored."""
    sd_reward: float
    value_center: Interval
    """Reward per request of the centre, by item inclusion."""
    item: Interval
    """Lift by item inclusion: the primary estimate, pessimistic where support is missing."""
    dr: Interval
    """Lift, doubly robust."""
    dm: float
    """Lift by the model of the reward alone."""
    kernel_ips: Interval
    """Lift by the kernel, not normalised."""
    kernel_snips: Interval
    """Lift by the kernel, self-normalised: it hides missing support."""
    static_mean: Interval | None
    """Lift over the mean of the policy's own weights, by item inclusion; None where the policy is constant."""
    mean_weights: Mapping[str, Interval]
    """Mean importance weight by `item`, `kernel`, `item_center`, `kernel_center`: 1 where all is well."""
    ess: float
    """Effective share of the requests under the kernel's weights."""
    uncovered: float
    """Share of the policy's slates that the exploration never shows."""
    bandwidth: float
    """Of the kernel, in 1 - cosine."""
    angle: float
    """Median angle between the policy's and the centre's weights, degrees."""
    angle_p95: float
    """The 95th percentile."""
    angle_explored: float
    """RMS angle between drawn and central weights, degrees."""
    actions: Mapping[str, Mapping[str, Interval]]
    """Scenario (or the group's name) -> action -> relative lift, by item inclusion."""
    weight_counts: Mapping[str, list[int]] = field(default_factory=dict)
    """`item`, `kernel` -> how many importance weights fall in each bin of `WEIGHT_BINS`."""


WEIGHT_BINS = (0.0, 0.01, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
"""Left edges of the bins of the weights' histograms; the last one is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeReport:
    """What is known of a policy from explored requests that it was not fitted to."""

    num_requests: int
    replayed: float
    """Share of the requests whose logged weights give the logged slate, in order; below 1 nothing else counts."""
    densities: float
    """Share of the requests whose logged density is that of the logged law."""
    negative: tuple[str, ...]
    """Actions worth less than nothing."""
    groups: tuple[GroupReport, ...]
    """Empty below the least number of requests, or where the log does not replay."""

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data, for JSON."""
        return asdict(self)
