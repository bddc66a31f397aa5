"""Which of several steps is made: the one of the highest estimated value among those that the log can judge.

A step beyond what exploration reached lies where the log has no say, and whatever an estimate finds there is
extrapolation. So steps are first admitted by their angles, then compared on requests later than those they were fitted
to. Design: blender.md, section 4. Shape letters: N requests, T tasks.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from utility_blender.centring import angles, tilts
from utility_blender.contexts import Floats
from utility_blender.inclusion import Inclusion, count_shown, importance
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import Link
from utility_blender.outcomes import Outcomes
from utility_blender.redraw import redraw
from utility_blender.reward import RewardConfig

_NUM_DRAWS = 100
_PART = 500
"""Requests whose slates under all draws are held at once, which bounds the memory."""


def choose_step(
    steps: Iterable[tuple[float, Link]],
    later: Outcomes,
    reward: RewardConfig,
    config: LearnConfig,
    rng: np.random.Generator,
) -> tuple[Link, dict[str, Any]]:
    """Returns the best admitted step, and a report of all that were tried.

    Args:
        steps: penalty and step, largest penalty first; taken until one goes half as far again as is allowed.
        later: requests that the steps were not fitted to.
        reward: what actions are worth.
        config: limits of the angles.
        rng: draws.

    Returns:
        The step, and a report: `angle_explored` (RMS angle of the exploration, degrees), `steps` (of each: `penalty`,
        `angle` and `angle_p95` in degrees, `length` = median |f - c| / |c| before the clip, `admitted`, `lift` = value
        over the centre per request), `penalty` and `angle` of the one chosen.

    Raises:
        ValueError: no step is small enough.
    """
    reach = tilts(later, rng).angle
    lift = _lift(later, reward, rng)
    rows: list[dict[str, Any]] = []
    best: Link | None = None
    best_row: dict[str, Any] = {}
    for penalty, link in steps:
        step_NT = link.mlp(link.encoder.encode(later.contexts))
        weights_NT = link.bounded(later.center_NT, step_NT)
        median, p95 = _median_and_p95(weights_NT, later.center_NT)
        row = {
            "penalty": penalty,
            "angle": median,
            "angle_p95": p95,
            "length": float(np.median(np.linalg.norm(step_NT, axis=1))),
            "admitted": _within(median, p95, reach, config),
            "lift": lift(weights_NT),
        }
        rows.append(row)
        if row["admitted"] and (best is None or row["lift"] > best_row["lift"]):
            best, best_row = link, row
        if median > 1.5 * config.max_angle * reach:
            break
    if best is None:
        raise ValueError(f"penalties: none makes a step within the reach of {reach:.1f} degrees; give larger ones")
    chosen = {"penalty": best_row["penalty"], "angle": best_row["angle"]}
    return best, {"angle_explored": reach, **chosen, "steps": rows}


def reach_of(link: Link, later: Outcomes, reach: float, config: LearnConfig) -> tuple[float, bool]:
    """Returns the median angle of a step, and whether a log can judge it that explored `reach` degrees."""
    weights_NT = link.bounded(later.center_NT, link.mlp(link.encoder.encode(later.contexts)))
    median, p95 = _median_and_p95(weights_NT, later.center_NT)
    return median, _within(median, p95, reach, config)


def _median_and_p95(weights_NT: Floats, center_NT: Floats) -> tuple[float, float]:
    median, p95 = np.quantile(angles(weights_NT, center_NT), (0.5, 0.95))
    return float(median), float(p95)


def _within(median: float, p95: float, reach: float, config: LearnConfig) -> bool:
    return median <= config.max_angle * reach and p95 <= config.max_angle_p95 * reach


def _lift(outcomes: Outcomes, reward: RewardConfig, rng: np.random.Generator) -> Callable[[Floats], float]:
    """Returns a function of weights_NT: value per request over the centre's, by item inclusion, on the same rows.

    Rewards that count an action once per request do not split into items; here they are counted like any other.
    """
    parts = np.array_split(np.arange(outcomes.num_requests), -(-outcomes.num_requests // _PART))
    chunks = [outcomes.take(rows) for rows in parts]
    counts = [count_shown(chunk, redraw(chunk, _NUM_DRAWS, rng)) for chunk in chunks]
    inclusion = Inclusion(np.concatenate(counts), _NUM_DRAWS)
    worth_A = np.array([reward.values.get(action, 0.0) for action in outcomes.actions])
    reward_NC = outcomes.value_NCA @ worth_A

    def value(weights_NT: Floats) -> float:
        return float((importance(outcomes, inclusion, weights_NT) * reward_NC).sum() / outcomes.num_requests)

    of_center = value(outcomes.center_NT)
    return lambda weights_NT: value(weights_NT) - of_center
