"""A model of the request's reward for the doubly robust estimate, where none is given: fitted across halves of users.

Q(x, r) is a ridge regression on `[1, x, v, v_a v_b (a <= b), x (x) v]` with `v = (u(r) - c) / |c|`, the change of
direction that the draw made. What it says of a request was learned from other users' requests alone.

Shape letters: N requests, X context, T tasks, F features.
"""

from collections.abc import Callable

import numpy as np

from utility_blender.contexts import Floats, fit_encoder
from utility_blender.outcomes import Outcomes
from utility_blender.policy import directions

RIDGE = 10.0
"""In units of standardised features; anything from 1 to 1,000 does (design, section 5)."""


def cross_fitted(outcomes: Outcomes, reward_N: Floats, *, seed: int) -> Callable[[Floats], Floats]:
    """Returns a function from weights_NT for these requests to their expected reward_N."""
    _, user_N = np.unique(np.array(outcomes.user_id), return_inverse=True)
    half_N = np.random.default_rng([seed, 2]).permutation(int(user_N.max()) + 1)[user_N] % 2
    columns = outcomes.contexts.columns
    numeric = [name for name in columns if all(isinstance(value, float | None) for value in columns[name])]
    x_NX = fit_encoder(outcomes.contexts, numeric=numeric).encode(outcomes.contexts)
    center_NT = outcomes.center_NT
    features_NF = _features(x_NX, outcomes.weights_NT, center_NT)
    fits = [_ridge(features_NF[half_N != half], reward_N[half_N != half]) for half in (0, 1)]

    def predict(weights_NT: Floats) -> Floats:
        predicted_NF = _features(x_NX, weights_NT, center_NT)
        both = [(predicted_NF - mean_F) @ slope_F + level for mean_F, slope_F, level in fits]
        return np.where(half_N == 0, *both)

    return predict


def _features(x_NX: Floats, weights_NT: Floats, center_NT: Floats) -> Floats:
    moved_NT = (directions(weights_NT, center_NT) - center_NT) / np.linalg.norm(center_NT, axis=1)[:, None]
    a, b = np.triu_indices(moved_NT.shape[1])
    crossed = (x_NX[:, :, None] * moved_NT[:, None, :]).reshape(len(x_NX), -1)
    return np.concatenate([x_NX, moved_NT, moved_NT[:, a] * moved_NT[:, b], crossed], axis=1)


def _ridge(features_NF: Floats, reward_N: Floats) -> tuple[Floats, Floats, float]:
    mean_F, level = features_NF.mean(axis=0), float(reward_N.mean())
    centered_NF = features_NF - mean_F
    sd_F = np.maximum(centered_NF.std(axis=0), 1e-9)
    scaled_NF = centered_NF / sd_F
    gram_FF = scaled_NF.T @ scaled_NF + RIDGE * np.eye(len(sd_F))
    return mean_F, np.linalg.solve(gram_FF, scaled_NF.T @ (reward_N - level)) / sd_F, level
