"""Outcomes made up at random, for tests that do not care what users like."""

import numpy as np

from utility_blender.contexts import Contexts
from utility_blender.outcomes import ABSENT, NOT_SHOWN, Outcomes, slates, utilities

TASKS, ACTIONS = ("click", "order"), ("click", "order")


def some_outcomes(num: int, *, seed: int = 0, version: int = 0, first_ms: int = 0, tau: float = 0.3) -> Outcomes:
    """Returns explored requests of 5 or 6 candidates, slates of 2 by the drawn weights, and clicks by chance."""
    rng = np.random.default_rng(seed)
    center_NT = np.tile([1.0, 5.0], (num, 1))
    jitter_NT = np.clip(rng.standard_normal((num, 2)), -2, 2)
    scores_NCT = rng.random((num, 6, 2)).astype(np.float32) * np.array([0.2, 0.02], np.float32)
    position_NC = np.full((num, 6), NOT_SHOWN)
    is_short_N = rng.random(num) < 0.5
    position_NC[is_short_N, 5] = ABSENT
    scores_NCT[is_short_N, 5] = 0.0
    outcomes = Outcomes(
        tasks=TASKS,
        actions=ACTIONS,
        request_id=[f"r{seed}-{row}" for row in range(num)],
        user_id=[f"u{row % 7}" for row in range(num)],
        contexts=Contexts(
            scenario=rng.choice(["home", "search"], num).tolist(),
            columns={"context.mood": rng.choice(["buy", "look"], num).tolist()},
        ),
        ts_ms_N=first_ms + np.arange(num) * 10,
        center_NT=center_NT,
        weights_NT=center_NT * np.exp(tau * jitter_NT),
        log_density_N=rng.standard_normal(num),
        tau_N=np.full(num, tau),
        truncate_N=np.full(num, 2.0),
        scale_NT=np.ones((num, 2)),
        snapshot_N=np.ones(num, np.int64),
        blender_N=np.full(num, version),
        scores_NCT=scores_NCT,
        position_NC=position_NC,
        value_NCA=np.zeros((num, 6, 2)),
    )
    utility_NC = utilities(outcomes, outcomes.weights_NT)
    shown_NC = slates(utility_NC, np.full(num, 2))
    best_N = np.argmax(utility_NC, axis=1)
    position_NC[shown_NC] = 1
    position_NC[np.arange(num), best_N] = 0
    outcomes.value_NCA[shown_NC] = rng.random((2 * num, 2)) < 0.3
    return outcomes
