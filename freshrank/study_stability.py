"""The study of stability: how much less rankings change under score regularization, and what that costs.

Three parts, all on worlds that drift (`sim.drifting_world`), the product's own learner and a small network:

    stream   one pass, a teacher a period old; by form and weight, beside other ways to change less
    drift    a planted jump; how much later a held model follows, by weight and age of the teacher
    refits   a model per period, from scratch and warm, with and without the term

NE, AUC and calibration take the known probabilities for the truth. Every difference is paired by seed.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from freshrank.stability_metrics import (
    Figures,
    between,
    churn,
    excess_by_batch,
    figures,
    is_free,
    mean_of,
    summary,
    utility_ranks,
)
from freshrank.stability_refits import Init, run_refits
from freshrank.stability_stream import (
    Stream,
    every,
    learn,
    probed,
    publish,
    run_stream,
    world_model,
    world_stream,
)
from freshrank.study_metrics import over_seeds
from model.config import ModelConfig
from model.drift_guard import DriftGuardConfig
from model.learner import Learner
from model.score_regularization import Form, ScoreRegularizationConfig
from sim.drifting_world import DriftingWorldConfig

FORMS: tuple[Form, ...] = ("ce", "prob_mse", "logit_mse")
FREE_NE = 0.001
"""A cut of churn costs nothing if the upper end of the interval of the difference of NE is at most this."""
BASE = "no term"
OTHER_SEED = 1_000
"""Added to a seed: the same data, other first weights, other order of batches between publishes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StabilityStudyConfig:
    """Settings of `freshrank study stability`."""

    seeds: int = 5
    """Worlds of each kind; at least 1."""
    world: DriftingWorldConfig = field(default_factory=lambda: DriftingWorldConfig(period_rows=8_000))
    """Of the stream and the refits; the drift part adds a jump."""
    periods: int = 7
    """Periods of a stream; at least `first_period` + 2."""
    first_period: int = 3
    """Judged from here on; at least 1."""
    refit_periods: int = 4
    """Periods of refits, judged from the second on; at least 3."""
    epochs: int = 4
    """Passes of a refit; at least 1."""
    publishes: int = 10
    """Per period; at least 2."""
    requests: int = 200
    """Of the probe; at least 1."""
    candidates: int = 30
    """Of each request; at least 2."""
    weights: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Weights of the term, beside 0."""
    ages: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Times between two teachers in the drift part, in periods."""
    dense_lr: float = 3e-3
    """Learning rate of the network; greater than 0."""

    def __post_init__(self) -> None:
        for name, least in (
            ("seeds", 1), ("first_period", 1), ("periods", self.first_period + 2), ("refit_periods", 3), ("epochs", 1),
            ("publishes", 2), ("requests", 1), ("candidates", 2),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")
        per_period = self.world.period_rows // self.world.batch_rows
        if per_period % self.publishes:
            raise ValueError(f"publishes: {self.publishes} is not allowed; {per_period} batches are shared out evenly")


def quick_study(seeds: int = 2) -> StabilityStudyConfig:
    """Returns settings that take less than a minute."""
    return StabilityStudyConfig(
        seeds=seeds,
        world=DriftingWorldConfig(period_rows=4_000),
        periods=5,
        first_period=2,
        refit_periods=3,
        epochs=2,
        requests=100,
        weights=(1.0, 4.0),
        ages=(1.0,),
    )


class Variant(NamedTuple):
    """One way to learn a stream."""

    form: Form | None
    """None: not a point of a curve."""
    weight: float
    config: ModelConfig


def study_stability(
    config: StabilityStudyConfig,
    *,
    on_progress: Callable[[str, int], None] = lambda part, seed: None,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Returns the figures of the whole study; the same settings give the same ones but for `timing`."""
    started_s = monotonic_s()
    result = _stream_part(config, on_progress) | {
        "drift": _drift_part(config, on_progress),
        "refits": _refits_part(config, on_progress),
    }
    return {
        "settings": asdict(config) | {"synthetic": True, "free_ne": FREE_NE},
        **result,
        "timing": {"wall_s": round(monotonic_s() - started_s, 1)},
    }


def held(base: ModelConfig, *, form: Form = "ce", weight: float, refresh_ms: int, **more: Any) -> ModelConfig:
    """Returns a model whose scores are held to those of a snapshot, renewed every `refresh_ms`."""
    term = ScoreRegularizationConfig(
        teacher="snapshot", form=form, weight=weight, teacher_refresh_ms=refresh_ms, drift_guard=None
    )
    return replace(base, score_regularization=replace(term, **more))


def stream_variants(
    base: ModelConfig, weights: tuple[float, ...], publishes: int, publish_batches: int
) -> dict[str, Variant]:
    """Returns the ways that are compared on a stream, by name, `BASE` first; teachers are a period old unless said."""
    period_ms = every(publishes, publish_batches)
    found = {BASE: Variant(None, 0.0, base)}
    for form in FORMS:
        for weight in weights:
            found[f"{form} {weight:g}"] = Variant(
                form, weight, held(base, form=form, weight=weight, refresh_ms=period_ms)
            )
    young = every(1, publish_batches)
    for weight in (1.0, 4.0):
        name = f"ce {weight:g}, teacher one publish old"
        found[name] = Variant(None, weight, held(base, weight=weight, refresh_ms=young))
    for share in (0.5, 0.25):
        optim = replace(base.optim, dense_lr=base.optim.dense_lr * share, row_lr=base.optim.row_lr * share)
        found[f"learning rates x {share:g}"] = Variant(None, 0.0, replace(base, optim=optim))
    return found


def stream_study(
    streams: Iterator[tuple[int, Stream]], variants: Mapping[str, Variant], first_period: int
) -> dict[str, Any]:
    """Returns the figures of all variants and of the mean of two models, the floors, and the points of the curve."""
    by_name: dict[str, list[Figures]] = {name: [] for name in [*variants, "mean of two models"]}
    floors: dict[str, list[Figures]] = {"seed": [], "refresh": []}
    for seed, stream in streams:
        base = run_stream(stream, variants[BASE].config, seed)
        other = run_stream(stream, variants[BASE].config, seed + OTHER_SEED, shuffle=True)
        floors["seed"].append(between(stream, base, other, first_period))
        floors["refresh"].append(refresh_floor(stream, variants[BASE].config, seed))
        by_name["mean of two models"].append(figures(stream, mean_of(base, other), first_period))
        for name, variant in variants.items():
            trace = base if name == BASE else run_stream(stream, variant.config, seed)
            by_name[name].append(figures(stream, trace, first_period))
    found = {name: summary(by_seed, by_name[BASE]) for name, by_seed in by_name.items()}
    return {
        "stream": found,
        "floors": {
            name: {figure: over_seeds([one[figure] for one in by_seed]) for figure in by_seed[0]}
            for name, by_seed in floors.items()
        },
        "curve": [
            {"form": variant.form, "weight": variant.weight, "name": name} | found[name]
            for name, variant in variants.items()
            if variant.form is not None
        ],
        "free": _freest(found, list(found)),
        "free_with_term": _freest(found, [name for name, variant in variants.items() if variant.form is not None]),
    }


def refresh_floor(stream: Stream, config: ModelConfig, seed: int) -> Figures:
    """Returns the churn between two models that learned the last period from the same state, in two orders."""
    learner = Learner(stream.schema, config, seed)
    last = (stream.num_periods - 1) * stream.period
    for place in range(last):
        learn(learner, stream.batches[place], place)
        if (place + 1) % stream.publish == 0:
            publish(learner, place + 1)
    ends = []
    for order in (np.arange(stream.period), np.random.default_rng([seed, last]).permutation(stream.period)):
        again = deepcopy(learner)
        for place, number in enumerate(order.tolist(), start=last):
            learn(again, stream.batches[last + number], place)
        ends.append(utility_ranks(stream, probed(stream, again)))
    return churn(stream, ends[:1], ends[1:])


def _stream_part(config: StabilityStudyConfig, on_progress: Callable[[str, int], None]) -> dict[str, Any]:
    def streams() -> Iterator[tuple[int, Stream]]:
        for seed in range(config.seeds):
            on_progress("stream", seed)
            yield seed, _world(config, config.world, seed, config.periods)

    publish_batches = config.world.period_rows // config.world.batch_rows // config.publishes
    variants = stream_variants(
        world_model(config.world, config.dense_lr), config.weights, config.publishes, publish_batches
    )
    return stream_study(streams(), variants, config.first_period)


def _drift_part(config: StabilityStudyConfig, on_progress: Callable[[str, int], None]) -> dict[str, Any]:
    """A jump at the start of a period: NE over that of the base, by time since, for each weight and age."""
    jump_at = config.first_period
    world = replace(config.world, jump_period=jump_at)
    base = world_model(world, config.dense_lr)
    per_period = world.period_rows // world.batch_rows
    width = per_period // config.publishes
    refresh = {age: every(round(age * config.publishes), width) for age in config.ages}
    weights = _moderate(config.weights)
    variants = {
        f"weight {weight:g}, age {age:g}": held(base, weight=weight, refresh_ms=refresh[age])
        for weight in weights
        for age in config.ages
    }
    middle, most = config.ages[len(config.ages) // 2], weights[-1]
    guarded = held(base, weight=most, refresh_ms=refresh[middle], drift_guard=DriftGuardConfig())
    variants[f"weight {most:g}, age {middle:g}, with alarm"] = guarded
    excess: dict[str, list[Any]] = {name: [] for name in variants}
    for seed in range(config.seeds):
        on_progress("drift", seed)
        stream = _world(config, world, seed, config.periods)
        trace = run_stream(stream, base, seed)
        for name, variant in variants.items():
            excess[name].append(
                excess_by_batch(stream, run_stream(stream, variant, seed), trace, jump_at * per_period, width)
            )
    age_periods = [(place + 0.5) / config.publishes for place in range(len(next(iter(excess.values()))[0]))]
    return {
        "age_periods": age_periods,
        "variants": {
            name: {
                "ne_excess": np.mean(by_seed, axis=0).round(5).tolist(),
                # Mean excess times the time it lasts: what staleness cost altogether, in NE x periods.
                "area": over_seeds([float(one.sum() / config.publishes) for one in by_seed]),
            }
            for name, by_seed in excess.items()
        },
    }


def _refits_part(config: StabilityStudyConfig, on_progress: Callable[[str, int], None]) -> dict[str, Any]:
    base = world_model(config.world, config.dense_lr)
    served = _moderate(config.weights)
    variants: dict[str, tuple[Init, ModelConfig]] = {}
    inits: tuple[Init, ...] = ("scratch", "warm")
    for init in inits:
        variants[init] = (init, base)
        for weight in served:
            term = ScoreRegularizationConfig(teacher="served", weight=weight, drift_guard=None)
            variants[f"{init} + ce {weight:g}"] = (init, replace(base, score_regularization=term))
    by_name: dict[str, list[Figures]] = {name: [] for name in variants}
    floors: list[Figures] = []
    for seed in range(config.seeds):
        on_progress("refits", seed)
        stream = _world(config, config.world, seed, config.refit_periods)
        for name, (init, model) in variants.items():
            trace = run_refits(stream, model, seed, init=init, epochs=config.epochs)
            by_name[name].append(figures(stream, trace, 2))
            if name == "scratch":
                other = run_refits(stream, model, seed + OTHER_SEED, init=init, epochs=config.epochs)
                floors.append(between(stream, trace, other, 2))
    against = {start: {n: summary(found, by_name[start]) for n, found in by_name.items()} for start in inits}
    return {
        "against_scratch": against["scratch"],
        "against_warm": against["warm"],
        "floor": {figure: over_seeds([one[figure] for one in floors]) for figure in floors[0]},
        "free_against_scratch": _freest(against["scratch"], list(variants)),
        "free_against_warm": _freest(against["warm"], [name for name in variants if name.startswith("warm")]),
    }


def _moderate(weights: tuple[float, ...]) -> list[float]:
    """Returns the weights from .5 to 2, or the first where there are none: those that anybody would use."""
    return [weight for weight in weights if 0.5 <= weight <= 2] or [weights[0]]


def _world(config: StabilityStudyConfig, world: DriftingWorldConfig, seed: int, periods: int) -> Stream:
    return world_stream(
        world,
        seed=seed,
        periods=periods,
        publishes=config.publishes,
        requests=config.requests,
        candidates=config.candidates,
    )


def _freest(found: Mapping[str, Any], names: list[str]) -> dict[str, Any] | None:
    """Returns the way with the least top-1 changes among those that cost no NE; None if there is none."""
    free = [name for name in names if is_free(found[name], FREE_NE)]
    if not free:
        return None
    best = min(free, key=lambda name: found[name]["top1_changed"]["mean"])
    shown = ("top1_ratio", "rbo_distance_ratio", "ne_difference")
    return {"name": best} | {figure: found[best][figure] for figure in shown}
