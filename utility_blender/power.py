"""How many explored requests a verdict needs: told before anybody waits for it.

    paired lift        N = (se sqrt(n) (z_.95 + z_.80) / lift)^2                 one-sided 5 %, 80 % power
    uniform arms       N = 2 |A| sd^2 ((z_.975 + z_.80) / lift)^2                two-sided 5 %, independent estimates

A policy that is paired with the centre on the same rows differs from it only where its slate does, so its lift is known
far more closely than either value. Design of the blender, section 9.
"""

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

POWER = 0.8
LIFTS = (0.002, 0.005, 0.01, 0.02, 0.05)
"""Relative lifts that plans are made for."""
ARMS = (9, 49)
_RELATIVE_SE, _AT_REQUESTS, _AT_VARIATION = 0.0047, 20_000, 0.66
"""Measured in our simulation: standard error of a lift relative to the value, of a policy one good step away from the
centre, at so many requests whose reward has this standard deviation over mean."""
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class PlanRow:
    """What finding one relative lift takes."""

    lift: float
    paired: int
    """Explored requests, drawn continuously and judged in pairs."""
    days: float | None
    """How long that takes at the log's rate; None where it has none."""
    arms: dict[int, int]
    """Number of equally likely arms -> explored requests."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many explored requests of a log verdicts need."""

    num_requests: int
    requests_per_day: float | None
    variation: float
    """Standard deviation of a request's reward over its mean."""
    relative_se: float
    """Standard error of a lift relative to the value, at `num_requests`."""
    is_measured: bool
    """Whether the standard error is of a policy on this log; else it is scaled from our simulation."""
    rows: tuple[PlanRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data, for JSON."""
        return asdict(self)


def plan(num_requests: int, span_ms: int, mean: float, sd: float, *, relative_se: float | None = None) -> Plan:
    """Returns the plan for a log of so many explored requests over a time, with rewards like these.

    Raises:
        ValueError: the mean reward is not above 0, so relative lifts mean nothing.
    """
    if not mean > 0:
        raise ValueError(f"reward: a mean of {mean:.4g} is not allowed; above 0, or relative lifts mean nothing")
    if num_requests < 2:
        raise ValueError(f"explored requests: {num_requests} is not allowed; at least 2")
    variation = sd / mean
    is_measured = relative_se is not None
    if relative_se is None:
        relative_se = _RELATIVE_SE * variation / _AT_VARIATION * (_AT_REQUESTS / num_requests) ** 0.5
    per_day = num_requests * _DAY_MS / span_ms if span_ms > 0 else None
    rows = []
    for lift in LIFTS:
        paired = paired_requests(num_requests, relative_se, lift)
        arms = {num_arms: arm_requests(num_arms, variation, lift) for num_arms in ARMS}
        rows.append(PlanRow(lift, paired, paired / per_day if per_day else None, arms))
    return Plan(num_requests, per_day, variation, relative_se, is_measured, tuple(rows))


def paired_requests(num_requests: int, relative_se: float, lift: float) -> int:
    """Returns how many requests find a lift, one-sided at 5 % with a power of 80 %, by its standard error at some.

    >>> [paired_requests(20_000, 0.0047, lift) for lift in (0.02, 0.01)]
    [6829, 27315]
    """
    return round(num_requests * (relative_se * _quantiles(0.95) / lift) ** 2)


def arm_requests(num_arms: int, variation: float, lift: float) -> int:
    """Returns how many requests with one of `num_arms` arms find a lift between two of them, two-sided at 5 %.

    >>> arm_requests(49, 2.0, 0.01) // 1_000  # a binary reward with mean 0.2
    30767
    """
    return round(2 * num_arms * (variation * _quantiles(0.975) / lift) ** 2)


def _quantiles(certainty: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(certainty) + normal.inv_cdf(POWER)
