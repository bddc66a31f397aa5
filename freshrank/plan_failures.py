"""Freshness with failures: quiet hours and each sort of failure simulated apart, then mixed by how often they happen.

A failure is rare, so a run long enough to hold a few would be days; one of each sort is simulated instead, from the
moment it happens until its backlog is worked off, and its actions weigh as much as such stretches last in all.
"""

from dataclasses import dataclass

import numpy as np

from freshrank.plan_costs import Costs
from freshrank.plan_pipeline import Broken, FloatArray, Outage, Pipeline
from freshrank.plan_simulation import simulate

NUM_ACTIONS = 4_000
DAY_MS = 86_400_000.0
_BEFORE_MS = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One sort of failure."""

    broken: Broken
    per_day: float
    lasts_s: float
    """Until it is repaired; then there is a backlog."""
    rests_on: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one failure of a sort does."""

    failure: Failure
    longest_ms: float
    """Freshness of the action that waits longest."""
    share: float
    """Of all actions, those that come while it lasts or its backlog does."""


def failures_of(costs: Costs, *, joiners: int, ranks: int) -> list[Failure]:
    """Returns what fails, how often, and for how long. Rankers are left out: the others answer."""
    per_day = 1 / costs["failures.process"]
    away_s = costs["failures.outage"]
    drilled: list[tuple[Broken, float, float]] = [
        ("joiner", joiners * per_day, costs["restart.joiner"]),
        ("trainer", ranks * per_day, costs["restart.trainer"]),
        ("redis", per_day, away_s + costs["restart.redis"]),
        ("kafka", per_day, away_s + costs["restart.kafka"]),
    ]
    outage = ("failures.outage",)
    return [
        Failure(
            broken=broken,
            per_day=rate,
            lasts_s=lasts_s,
            rests_on=("failures.process", f"restart.{broken}", *(outage if broken in ("redis", "kafka") else ())),
        )
        for broken, rate, lasts_s in drilled
    ]


def with_failures(
    pipeline: Pipeline, steady_A: FloatArray, failures: list[Failure], seed: int = 0
) -> tuple[tuple[float, float, float], list[Effect]]:
    """Returns p50, p99 and p99.9 in ms over all time, and what each failure does. `steady_A`: without failures."""
    samples, weights, effects = [steady_A], [np.empty(0)], []
    for failure in failures:
        outage = Outage(broken=failure.broken, from_ms=_BEFORE_MS, lasts_ms=1e3 * failure.lasts_s)
        lasts_ms = _affected_ms(pipeline, outage)
        until_ms = _BEFORE_MS + lasts_ms
        stages_A5 = simulate(
            pipeline,
            from_ms=_BEFORE_MS,
            until_ms=until_ms,
            num_actions=NUM_ACTIONS,
            rng=np.random.default_rng(seed),
            outage=outage,
        )
        share = min(1.0, failure.per_day * lasts_ms / DAY_MS)
        freshness_A = stages_A5.sum(axis=1)
        samples.append(freshness_A)
        weights.append(np.full(NUM_ACTIONS, share / NUM_ACTIONS))
        effects.append(Effect(failure=failure, longest_ms=float(freshness_A.max()), share=share))
    quiet = max(0.0, 1 - sum(effect.share for effect in effects))
    weights[0] = np.full(len(steady_A), quiet / len(steady_A))
    p50, p99, p999 = weighted_quantiles(np.concatenate(samples), np.concatenate(weights), (0.5, 0.99, 0.999))
    return (p50, p99, p999), effects


def _affected_ms(pipeline: Pipeline, outage: Outage) -> float:
    """Returns how long after its beginning a failure can be felt: the backlog is worked off at what speed is left."""
    behind_ms = outage.lasts_ms
    if outage.broken == "trainer":
        behind_ms += pipeline.checkpoint_interval_ms / 2
    room = 1 - pipeline.utilisation
    return outage.lasts_ms + behind_ms * pipeline.utilisation / room + 2 * pipeline.publish_interval_ms


def weighted_quantiles(value_A: FloatArray, weight_A: FloatArray, quantiles: tuple[float, ...]) -> list[float]:
    """Returns the least values that so large a share of the weight does not exceed.

    >>> weighted_quantiles(np.array([3.0, 1.0, 2.0]), np.array([0.1, 0.5, 0.4]), (0.5, 0.9, 0.95))
    [1.0, 2.0, 3.0]
    """
    order_A = np.argsort(value_A)
    upto_A = np.cumsum(weight_A[order_A])
    places = np.searchsorted(upto_A, np.asarray(quantiles) * upto_A[-1] * (1 - 1e-12))
    return [float(value_A[order_A[place]]) for place in places]
