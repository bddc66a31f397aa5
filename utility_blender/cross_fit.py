"""A model of the request's reward for the doubly robust estimate, where none is given: fitted across halves of users.

Q(x, r) is a ridge regression on `[1, x, v, v_a v_b (a <= b), x (x) v]` with `v = (u(r) - c) / |c|`, the change of
direction that the draw made. What it says of a request was learned from other users' requests alone.

Its own error must be in the interval. The kernel, which smooths over directions, takes back only part of it, and the
part that stays is as large as the rest: without it, intervals were half as wide as estimates scattered. An estimate
whose derivative by the coefficients of a half's model is D moves by `D' G^-1 phi_j e_j` with row j of the other half
(G: Gram matrix and ridge, e: residual), to first order: `noise` is that, per row, and goes into the bootstrap.

Shape letters: N requests, X context, T tasks, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utility_blender.contexts import Floats, fit_encoder
from utility_blender.outcomes import Bools, Outcomes
from utility_blender.policy import directions

RIDGE = 10.0
"""In units of standardised features; anything from 1 to 1,000 does (design, section 5)."""


@dataclass(frozen=True, slots=True)
class _Ridge:
    rows_N: Bools
    """What it was fitted to; it speaks of the others."""
    mean_F: Floats
    sd_F: Floats
    inverse_FF: Floats
    slope_F: Floats
    level: float
    residual_N: Floats


class CrossFit:
    """Two models, each for the requests that the other one was fitted to."""

    def __init__(self, outcomes: Outcomes, reward_N: Floats, *, seed: int) -> None:
        _, user_N = np.unique(np.array(outcomes.user_id), return_inverse=True)
        half_N = np.random.default_rng([seed, 2]).permutation(int(user_N.max()) + 1)[user_N] % 2
        columns = outcomes.contexts.columns
        numeric = [name for name in columns if all(isinstance(value, float | None) for value in columns[name])]
        self._x_NX = fit_encoder(outcomes.contexts, numeric=numeric).encode(outcomes.contexts)
        self._center_NT = outcomes.center_NT
        self._features_NF = self._features(outcomes.weights_NT)
        self._models = [_fit(self._features_NF, reward_N, half_N != half) for half in (0, 1)]

    def predict(self, weights_NT: Floats) -> Floats:
        """Returns the reward_N expected of the requests under other weights."""
        features_NF = self._features(weights_NT)
        predicted_N = np.empty(len(features_NF))
        for model in self._models:
            told_N = ~model.rows_N
            scaled = (features_NF[told_N] - model.mean_F) / model.sd_F
            predicted_N[told_N] = scaled @ model.slope_F + model.level
        return predicted_N

    def noise(self, terms: Sequence[tuple[Floats, Floats]]) -> Floats:
        """Returns what each request adds to an estimate through the models, noise_N with mean 0 in each half.

        The estimate is `sum_i a_i Q(x_i, w_i)` summed over the terms (a_N, weights_NT), apart from what has no Q in it.
        Its sum over resampled requests is by how much the resample's own models would have moved the estimate.
        """
        noise_N = np.zeros(len(self._x_NX))
        all_features = [(a_N, self._features(weights_NT)) for a_N, weights_NT in terms]
        for model in self._models:
            told_N, rows_N = ~model.rows_N, model.rows_N
            parts = [a_N[told_N] @ ((features[told_N] - model.mean_F) / model.sd_F) for a_N, features in all_features]
            derivative_F = np.sum(parts, axis=0)
            scaled = (self._features_NF[rows_N] - model.mean_F) / model.sd_F
            moved = (scaled @ (model.inverse_FF @ derivative_F)) * model.residual_N[rows_N]
            noise_N[rows_N] += moved - moved.mean()
        return noise_N

    def _features(self, weights_NT: Floats) -> Floats:
        x_NX, center_NT = self._x_NX, self._center_NT
        moved_NT = (directions(weights_NT, center_NT) - center_NT) / np.linalg.norm(center_NT, axis=1)[:, None]
        a, b = np.triu_indices(moved_NT.shape[1])
        crossed = (x_NX[:, :, None] * moved_NT[:, None, :]).reshape(len(x_NX), -1)
        return np.concatenate([x_NX, moved_NT, moved_NT[:, a] * moved_NT[:, b], crossed], axis=1)


def _fit(features_NF: Floats, reward_N: Floats, rows_N: Bools) -> _Ridge:
    mean_F, level = features_NF[rows_N].mean(axis=0), float(reward_N[rows_N].mean())
    centered = features_NF[rows_N] - mean_F
    deviation_F = centered.std(axis=0)
    sd_F = np.where(deviation_F > 1e-9, deviation_F, np.inf)  # what never differed says nothing, and is not asked
    scaled = centered / sd_F
    inverse_FF = np.linalg.inv(scaled.T @ scaled + RIDGE * np.eye(len(sd_F)))
    slope_F = inverse_FF @ (scaled.T @ (reward_N[rows_N] - level))
    residual_N = np.zeros(len(reward_N))
    residual_N[rows_N] = reward_N[rows_N] - level - scaled @ slope_F
    return _Ridge(rows_N, mean_F, sd_F, inverse_FF, slope_F, level, residual_N)
