"""The delay study: worlds with known truth, every label policy, and what its delays cost against the oracle.

    world --> join core (one task per policy) --> one online model per policy --> NE, AUC, calibration against the truth

Five worlds, each once per seed: weights that walk at random (the main table), that stand still, that jump once, traffic
that jumps once, and a short window over rare orders (goal L4). All are synthetic.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from freshrank.study_learner import Schedule, learn
from freshrank.study_metrics import auc, by_bucket, calibration, normalized_entropy, over_seeds
from freshrank.study_variants import PLAIN, VARIANTS, Variant, variant_rows
from sim.study_world import HOUR_MS, DelayWorld, DelayWorldConfig, draw_world
from stream.join import JoinConfig

L4_GOAL = 0.03
_BUCKETS_PER_WINDOW = 12
_ITEMS_PER_BUCKET = 40
_DELAY_AGES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Ages at which the positives seen so far are compared with those expected, as shares of the window."""

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayStudyConfig:
    """Settings of `freshrank study delays`."""

    seeds: int = 3
    """Worlds of each kind; at least 1."""
    hours: float = 48.0
    """What is measured of each world, in hours; at least one window."""
    drift: float = 0.03
    """Standard deviation of what each weight moves per hour; at least 0."""
    window_hours: float = 24.0
    """Label window in hours; more than 0."""
    observe_minutes: float = 15.0
    """The early look of the policies that take one; more than 0, less than the window."""
    items_per_hour: float = 600.0
    """Traffic; more than 0."""
    traffic_factor: float = 4.0
    """By how much traffic jumps where it does; more than 0."""
    rate: float = 0.004
    """Step size per row of all models; more than 0."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds: {self.seeds} is not allowed; at least 1")
        for name in ("window_hours", "observe_minutes", "items_per_hour", "traffic_factor", "rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; more than 0")
        if not self.drift >= 0:
            raise ValueError(f"drift: {self.drift} is not allowed; at least 0")
        if not self.observe_minutes < 60 * self.window_hours:
            raise ValueError(f"observe_minutes: {self.observe_minutes} is not allowed; less than the window")
        if not self.hours >= self.window_hours:
            raise ValueError(f"hours: {self.hours} is not allowed; at least the window, {self.window_hours}")
        least = _ITEMS_PER_BUCKET * _BUCKETS_PER_WINDOW / self.window_hours / min(1.0, self.traffic_factor)
        if not self.items_per_hour >= least:
            raise ValueError(
                f"items_per_hour: {self.items_per_hour:g} is not allowed; at least {least:g}, so that every point of "
                "every curve rests on some items"
            )


class Scenario(NamedTuple):
    """One kind of world and the time of it that counts."""

    world: DelayWorldConfig
    fit_hours: float
    from_hour: float
    """Measured from here on; what jumps, jumps here."""
    to_hour: float
    """The table's figures end here; curves go on to the end of the world."""
    bucket_hours: float
    """Width of the buckets of its curves."""
    chunks_per_window: int = 144
    """How often the models that score are renewed."""


class Outcome(NamedTuple):
    """Figures of one world of one seed, by variant; `truth` is the known probability itself."""

    table: dict[str, dict[str, float]]
    curves: dict[str, dict[str, Float64Array]]
    delay_age: dict[str, Float64Array]


def scenarios(config: DelayStudyConfig) -> dict[str, Scenario]:
    """Returns the worlds of a study by name. Each begins with two windows to fit on, one to settle, one to warm up."""
    from_hour = 4 * config.window_hours
    end_hour = from_hour + config.hours
    bucket_hours = config.window_hours / _BUCKETS_PER_WINDOW
    first_window_to = from_hour + config.window_hours

    def scenario(to_hour: float, **changes: Any) -> Scenario:
        world = {
            "hours": end_hour,
            "window_ms": round(config.window_hours * HOUR_MS),
            "observe_ms": round(config.observe_minutes * HOUR_MS / 60),
            "items_per_hour": config.items_per_hour,
            "drift": config.drift,
        }
        return Scenario(
            DelayWorldConfig(**(world | changes)), 2 * config.window_hours, from_hour, to_hour, bucket_hours
        )

    return {
        "drift": scenario(end_hour),
        "stationary": scenario(end_hour, drift=0.0),
        "weights_step": scenario(first_window_to, drift=0.0, weights_step_hour=from_hour),
        "traffic_step": scenario(first_window_to, traffic_step_hour=from_hour, traffic_factor=config.traffic_factor),
    }


def l4_scenario(config: DelayStudyConfig) -> Scenario:
    """Returns the world of goal L4: orders at 5 to 9 % of the items, window 60 s, a naive look at 10 s sees half.

    Its length follows `config.hours` and `config.items_per_hour`, so that it is as much work as the others.
    """
    window_ms, items_per_hour, fit_hours = 60_000, 72_000.0, 0.25
    from_hour = fit_hours + 2 * window_ms / HOUR_MS
    end_hour = from_hour + 5 * config.hours * config.items_per_hour / items_per_hour
    world = DelayWorldConfig(
        hours=end_hour,
        window_ms=window_ms,
        observe_ms=window_ms // 6,
        items_per_hour=items_per_hour,
        intercept=-3.6,
        drift=config.drift,
        early_share=0.25,
        mean_delay_share=0.5,
    )
    return Scenario(world, fit_hours, from_hour, end_hour, end_hour - from_hour, chunks_per_window=12)


def run_scenario(scenario: Scenario, variants: Mapping[str, Variant], rate: float, rng: np.random.Generator) -> Outcome:
    """Returns the figures of all variants in one world drawn from `rng`."""
    world = draw_world(scenario.world, rng)
    window_ms = world.config.window_ms
    fit_ms = round(scenario.fit_hours * HOUR_MS)
    schedule = Schedule(fit_ms, fit_ms + window_ms, max(1, window_ms // scenario.chunks_per_window), rate)
    scores = learn(world, variant_rows(world, variants, JoinConfig()), variants, schedule)
    return measure(world, scores | {"truth": world.probability_N}, scenario)


def measure(world: DelayWorld, scores: Mapping[str, Float64Array], scenario: Scenario) -> Outcome:
    """Returns the figures of scores, `[N]` each, given when their items were shown."""
    shown_ms_N = world.shown_ms_N
    from_ms = scenario.from_hour * HOUR_MS
    table_N = (shown_ms_N >= from_ms) & (shown_ms_N < scenario.to_hour * HOUR_MS)
    p_N, label_N = world.probability_N[table_N], world.label_N[table_N]
    table = {
        name: {
            "ne": normalized_entropy(p_N, score_N[table_N]),
            "auc": auc(p_N, score_N[table_N]),
            "calibration": calibration(label_N, score_N[table_N]),
        }
        for name, score_N in scores.items()
    }
    age_N = shown_ms_N - from_ms
    bucket_ms = scenario.bucket_hours * HOUR_MS
    num_buckets = int((world.config.hours - scenario.from_hour) * HOUR_MS / bucket_ms + 1e-6)
    curve_N = (age_N >= 0) & (age_N < num_buckets * bucket_ms)
    bucket_N = (age_N[curve_N] // bucket_ms).astype(np.int64)
    curves = {
        name: by_bucket(bucket_N, num_buckets, world.probability_N[curve_N], score_N[curve_N])
        for name, score_N in scores.items()
    }
    return Outcome(table, curves, _by_delay_age(world, scores, table_N))


def _by_delay_age(
    world: DelayWorld, scores: Mapping[str, Float64Array], counted_N: npt.NDArray[np.bool_]
) -> dict[str, Float64Array]:
    """Returns, per age, the positives that scores expect to be seen by then over those that were."""
    ages_ms = [share * world.config.window_ms for share in _DELAY_AGES]
    delay_ms_N = world.delay_ms_N[counted_N]
    seen = [float(((delay_ms_N >= 0) & (delay_ms_N <= age_ms)).sum()) for age_ms in ages_ms]
    share_seen = [world.seen_by(age_ms)[counted_N] for age_ms in ages_ms]
    return {
        name: np.array(
            [score_N[counted_N] @ share_N / max(n, 1.0) for share_N, n in zip(share_seen, seen, strict=True)]
        )
        for name, score_N in scores.items()
    }


def study_delays(
    config: DelayStudyConfig,
    *,
    on_progress: Callable[[str, int], None] = lambda world, seed: None,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Returns the figures of a whole study; the same settings give the same figures but for `timing`.

    `policies` is the main table, of the drifting world; `worlds` has the same of the others, those with a jump over the
    first window after it. `curves` is by age of the jump, mean over seeds. Every `ne_excess` is over `oracle`, seed by
    seed. NE, AUC and curves take the known probabilities for the truth, the tables' calibration the labels drawn.
    """
    started_s = monotonic_s()
    outcomes: dict[str, list[Outcome]] = {}
    worlds = {name: (scenario, VARIANTS) for name, scenario in scenarios(config).items()}
    worlds["l4"] = (l4_scenario(config), PLAIN)
    for place, (name, (scenario, variants)) in enumerate(worlds.items()):
        for seed in range(config.seeds):
            on_progress(name, seed)
            rng = np.random.default_rng([seed, place])
            outcomes.setdefault(name, []).append(run_scenario(scenario, variants, config.rate, rng))
    tables = {name: _table([outcome.table for outcome in found]) for name, found in outcomes.items() if name != "l4"}
    bucket_h = config.window_hours / _BUCKETS_PER_WINDOW
    return {
        "settings": asdict(config)
        | {"synthetic": True, "worlds": {n: asdict(s.world) for n, (s, _) in worlds.items()}},
        "policies": tables.pop("drift"),
        "l4": l4_figures([outcome.table for outcome in outcomes["l4"]]),
        "worlds": tables,
        "curves": {
            name: {
                "weights_step": _curve([outcome.curves for outcome in outcomes["weights_step"]], name, bucket_h),
                "traffic_step": _curve([outcome.curves for outcome in outcomes["traffic_step"]], name, bucket_h),
                "delay_age": {
                    "age_h": [share * config.window_hours for share in _DELAY_AGES],
                    "calibration": _mean([outcome.delay_age[name] for outcome in outcomes["drift"]]),
                },
            }
            for name in [*VARIANTS, "frozen"]
        },
        "timing": {"wall_s": round(monotonic_s() - started_s, 1)},
    }


def l4_figures(tables: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Returns the bias (calibration less 1) of each policy, given one table per seed; `worst` is the largest."""
    policies = {}
    for name, figures in _table(tables).items():
        biases = [table[name]["calibration"] - 1 for table in tables]
        worst = max(map(abs, biases))
        policies[name] = figures | {
            "bias": over_seeds(biases),
            "worst": round(worst, 5),
            "within_goal": worst <= L4_GOAL,
        }
    return {"window_s": 60, "goal": L4_GOAL, "policies": policies}


def _table(tables: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "ne": over_seeds([table[name]["ne"] for table in tables]),
            "ne_excess": over_seeds([table[name]["ne"] - table["oracle"]["ne"] for table in tables]),
            "auc": over_seeds([table[name]["auc"] for table in tables]),
            "calibration": over_seeds([table[name]["calibration"] for table in tables]),
        }
        for name in tables[0]
    }


def _curve(curves: list[dict[str, dict[str, Float64Array]]], name: str, bucket_h: float) -> dict[str, list[float]]:
    excess = [curve[name]["ne"] - curve["oracle"]["ne"] for curve in curves]
    return {
        "age_h": [round((place + 0.5) * bucket_h, 4) for place in range(len(excess[0]))],
        "ne_excess": _mean(excess),
        "auc": _mean([curve[name]["auc"] for curve in curves]),
        "calibration": _mean([curve[name]["calibration"] for curve in curves]),
    }


def _mean(values: list[Float64Array]) -> list[float]:
    mean: list[float] = np.mean(values, axis=0).round(5).tolist()
    return mean
