"""The plan for a load: the longest publish interval whose simulated freshness keeps the promise, and what follows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from freshrank.plan_costs import Costs
from freshrank.plan_limits import Limit, limits_of
from freshrank.plan_load import Load
from freshrank.plan_pipeline import STAGES, FloatArray, Pipeline
from freshrank.plan_simulation import simulate
from freshrank.plan_sizes import Sizes, sizes_at

INTERVALS_S = (60.0, 30.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.3, 0.2, 0.1)
"""Publish intervals that are tried, the cheapest first."""
FULL_EVERY = (20, 100, 500)
"""Values of `trainer.full_every` that are tried where none is given, the shortest chain of deltas first."""
NUM_ACTIONS, WARM_UP_MS, LEAST_MS = 20_000, 5_000.0, 20_000.0


class NotReachableError(ValueError):
    """The freshness asked for cannot be had at any interval."""


class Freshness(NamedTuple):
    """Quantiles in ms."""

    p50: float
    p99: float
    p999: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a load needs, and what it gets for it."""

    load: Load
    sizes: Sizes
    freshness: Freshness | None
    """As simulated, without failures; None where something gives way: the sizes are then what comes nearest."""
    stages_ms: dict[str, tuple[float, float]]
    """p50 and p99 of each stage."""
    steady_A: FloatArray
    """The freshness of each simulated action."""
    limits: list[Limit]
    """What gives way; the first to go first."""


def plan_for(load: Load, costs: Costs, seed: int = 0) -> Plan:
    """Returns the plan of a load.

    Raises:
        NotReachableError: rankings are never so fresh; says how fresh they are at best, and why.
    """
    best: tuple[Freshness, Sizes, FloatArray] | None = None
    nearest: tuple[float, Sizes, list[Limit]] | None = None
    for sizes in _tried(load, costs):
        limits = limits_of(load, costs, sizes)
        if sizes.pipeline is None or limits[0].gives_way:
            if nearest is None or limits[0].share < nearest[0]:
                nearest = (limits[0].share, sizes, limits)
            continue
        if best is not None and sizes.interval_s > 1e-3 * best[0].p99:
            break
        stages_A5 = steady(sizes.pipeline, seed)
        found = quantiles(stages_A5.sum(axis=1))
        if found.p99 <= 1e3 * load.freshness_s:
            p50_5, p99_5 = np.quantile(stages_A5, [0.5, 0.99], axis=0)
            stages = {name: (float(p50_5[at]), float(p99_5[at])) for at, name in enumerate(STAGES)}
            steady_A: FloatArray = stages_A5.sum(axis=1)
            return Plan(load=load, sizes=sizes, freshness=found, stages_ms=stages, steady_A=steady_A, limits=limits)
        if best is None or found.p99 < best[0].p99:
            best = (found, sizes, stages_A5)
    if best is not None:
        raise NotReachableError(_too_fresh(load, *best))
    assert nearest is not None
    _, sizes, limits = nearest
    return Plan(load=load, sizes=sizes, freshness=None, stages_ms={}, steady_A=np.empty(0), limits=limits)


def _tried(load: Load, costs: Costs) -> Iterator[Sizes]:
    """Yields what is needed at the intervals that may do, then at the longer ones: how fresh it would be at best."""
    may_do = [interval_s for interval_s in INTERVALS_S if interval_s <= load.freshness_s]
    longer = [interval_s for interval_s in reversed(INTERVALS_S) if interval_s > load.freshness_s]
    for interval_s in may_do + longer:
        for full_every in FULL_EVERY if load.full_every is None else (load.full_every,):
            yield sizes_at(load, costs, interval_s, full_every)


def steady(pipeline: Pipeline, seed: int) -> FloatArray:
    """Returns the stages of actions over at least one round of full and delta versions, [actions, 5]."""
    round_ms = pipeline.full_every * pipeline.publish_interval_ms
    start_ms = WARM_UP_MS + 5 * pipeline.publish_interval_ms
    lasts_ms = max(LEAST_MS, round_ms)
    return simulate(
        pipeline,
        from_ms=start_ms,
        until_ms=start_ms + lasts_ms,
        num_actions=NUM_ACTIONS,
        rng=np.random.default_rng(seed),
    )


def quantiles(freshness_A: FloatArray) -> Freshness:
    """Returns the quantiles of a sample."""
    return Freshness(*(float(value) for value in np.quantile(freshness_A, [0.5, 0.99, 0.999])))


def _too_fresh(load: Load, found: Freshness, sizes: Sizes, stages_A5: FloatArray) -> str:
    means = ", ".join(f"{name} {1e-3 * ms:.2f}" for name, ms in zip(STAGES, stages_A5.mean(axis=0), strict=True))
    return (
        f"--freshness-s: {load.freshness_s:g} cannot be reached: the least is {1e-3 * found.p99:.2f} s (p99; p50 "
        f"{1e-3 * found.p50:.2f} s), because with a snapshot every {sizes.interval_s:g} s and a commit every "
        f"{load.commit_interval_ms} ms the stages take on average {means} s"
    )
