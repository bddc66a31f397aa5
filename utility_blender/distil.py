"""A chain of steps, one per round, becomes a single step: a network that says at once where the chain leads.

Chains grow by a link with every round, and with them the time of an answer and the reach of an old mistake.
Shape letters: N requests, T tasks.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from utility_blender.centring import angles
from utility_blender.contexts import Contexts, Floats
from utility_blender.fit_mlp import AdamConfig, fit_mlp
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import LearnedPolicy, Link
from utility_blender.mlp import new_mlp
from utility_blender.policy import directions

ADAM = AdamConfig(epochs=60, batch=128)
"""Longer than a fit to rewards: there is no noise to learn by heart."""
_HELD_OUT = 5


def distilled(
    policy: LearnedPolicy, contexts: Contexts, config: LearnConfig, rng: np.random.Generator
) -> tuple[LearnedPolicy, float]:
    """Returns a policy of one link, and the median angle in degrees between it and the chain.

    The angle is that of every fifth request, which the link was not fitted to. The link sees contexts as the newest of
    the chain does, and bounds weights to the product of the chain's bounds, within which the chain moved them.

    Raises:
        ValueError: the chain has no link, or there are fewer than 5 requests.
    """
    if not policy.links or len(contexts) < _HELD_OUT:
        raise ValueError(f"distil: {len(policy.links)} links and {len(contexts)} requests; at least 1 and {_HELD_OUT}")
    encoder = policy.links[-1].encoder
    static_NT = policy.static(contexts)
    length_N1 = np.linalg.norm(static_NT, axis=1, keepdims=True)
    step_NT = (directions(policy.weights(contexts), static_NT) - static_NT) / length_N1
    fitted_N = np.arange(len(contexts)) % _HELD_OUT != 0
    x_NX, goal_NT = encoder.encode(contexts.take(np.flatnonzero(fitted_N))), step_NT[fitted_N]
    sd = float(np.sqrt((goal_NT**2).mean())) or 1.0

    def gradients(rows_B: NDArray[np.int64], step_BT: Floats, extra_E: Floats) -> tuple[Floats, Floats]:
        return (step_BT - goal_NT[rows_B] / sd) / len(rows_B), np.zeros_like(extra_E)

    start = new_mlp((encoder.width, *config.hidden, static_NT.shape[1]), rng)
    mlp, _ = fit_mlp(start, x_NX, gradients, ADAM, rng)
    clip = float(np.prod([link.clip for link in policy.links]))
    one = replace(policy, links=(Link(encoder, mlp.times(sd), clip),))
    held_out = contexts.take(np.flatnonzero(~fitted_N))
    return one, float(np.median(angles(one.weights(held_out), policy.weights(held_out))))
