"""Goal L4 with the network itself: a world of delayed feedback through the in-process loop, all parts as live.

    world --> join core --> examples --> trainer (HiNet, auxiliary heads) --> snapshots --> served scores --> truth

The network starts from nothing; what is measured comes after it has learned for a while.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from freshrank.in_process import InProcessLoop
from freshrank.study_delays import DelayStudyConfig, l4_figures, l4_scenario, measure
from freshrank.study_stream import ACTION, in_time
from freshrank.study_variants import PLAIN, Variant, task_of
from model.config import ModelConfig
from model.optim import OptimConfig
from model.trainer_config import TrainerConfig
from sim.study_world import DelayWorld, draw_world
from stream.join import JoinConfig
from stream.schema import FeatureConfig, FeaturesConfig, Feedback, Impression, Items, SchemaConfig, TaskConfig

POLICIES = ("wait", "eager", "fnw", "es_dfm", "vanilla", "oracle")
"""The policies that the network is tried with: those recommended, the naive one, and the two ends."""
_TRAINER = TrainerConfig(batch_rows=128, publish_interval_ms=5_000)
_JOIN = JoinConfig(commit_interval_ms=1_000)

Float64Array = npt.NDArray[np.float64]


def study_l4_hinet(
    config: DelayStudyConfig,
    *,
    on_progress: Callable[[str, int], None] = lambda policy, seed: None,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Returns `settings`, `l4` and `timing` as `freshrank.study_delays.study_delays` does, learned by the network."""
    started_s = monotonic_s()
    scenario = l4_scenario(config)
    tables = []
    for seed in range(config.seeds):
        world = draw_world(scenario.world, np.random.default_rng([seed, 0]))
        scores = {"truth": world.probability_N}
        for name in POLICIES:
            on_progress(name, seed)
            scores[name] = served_scores(world, PLAIN[name])
        tables.append(measure(world, scores, scenario).table)
    return {
        "settings": asdict(config) | {"synthetic": True, "worlds": {"l4": asdict(scenario.world)}},
        "l4": l4_figures(tables),
        "timing": {"wall_s": round(monotonic_s() - started_s, 1)},
    }


def served_scores(world: DelayWorld, variant: Variant) -> Float64Array:
    """Returns the probability that the live snapshot gave each item when it was shown, `[N]`; NaN before the first."""
    size = world.config.slate_size
    delays_ms = world.delay_ms_N
    task = task_of(variant, world)
    if variant.policy == "oracle":
        # What only a simulation can do: the feedback comes with the slate, and a window of 1 ms waits for no other.
        delays_ms = np.minimum(delays_ms, 0)
        task = TaskConfig(action=ACTION, window_ms=1, policy="wait")
        world = world._replace(delay_ms_N=delays_ms)
    names = [f"x{place}" for place in range(world.config.num_features)]
    schema = SchemaConfig(
        scenarios=("home",),
        tasks={ACTION: task},
        features=FeaturesConfig(item={name: FeatureConfig(kind="numeric") for name in names}),
    )
    model = ModelConfig(priors={ACTION: float(world.probability_N.mean())}, optim=OptimConfig(dense_lr=3e-3))
    loop = InProcessLoop(schema, _JOIN, model, _TRAINER, start_ms=0)
    ids = [str(row) for row in range(size)]
    shown: list[Impression] = []
    for slate, item in in_time(world):
        now_ms = int(world.shown_ms_S[slate])
        if item < 0:
            part_IF = world.features_NF[slate * size : (slate + 1) * size]
            features = {name: part_IF[:, place].tolist() for place, name in enumerate(names)}
            shown.append(Impression(str(slate), "user", "home", now_ms, Items(id=ids, features=features)))
            loop.observe(shown[-1], now_ms)
        else:
            now_ms += int(delays_ms[item])
            row = ids[item % size]
            loop.observe(Feedback(str(slate), "user", row, ACTION, now_ms, event_id=row), now_ms)
    loop.finish()
    scores = [impression.items.scores.get(ACTION, [np.nan] * size) for impression in shown]
    return np.array(scores, np.float64).reshape(-1)
