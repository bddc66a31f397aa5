"""What the weights of some policies need to know about delays, as small linear models on settled rows.

As `model.task_heads` has them, less the tower: three logistic models, and for `dfm` the rate of exponential delays.
They are fitted once and then take one gradient step per batch of settled rows. The rows are the same under every
policy, so that one set serves all. Letters: N items, R rows, F features.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from model.label_policy import ESTIMATES, Estimate
from sim.study_world import DelayWorld
from stream.schema import PolicyName

Float64Array = npt.NDArray[np.float64]
Estimates = dict[Estimate, Float64Array]
_LOGISTIC: tuple[Estimate, ...] = ("late", "negative", "seen")
_NUM_NEWTON = 12
_NUM_NEWTON_RATE = 40
_RIDGE = 1e-3


def sigmoid(logit: Float64Array) -> Float64Array:
    """Returns 1 / (1 + exp(-logit)) without overflow."""
    probability: Float64Array = 0.5 * (1 + np.tanh(0.5 * logit))
    return probability


def fit(features_NF: Float64Array, label_N: Float64Array) -> Float64Array:
    """Returns the weights of a logistic model, `[F]`, by Newton's method with a trace of ridge."""
    weights_F = np.zeros(features_NF.shape[1])
    for _ in range(_NUM_NEWTON):
        f_N = sigmoid(features_NF @ weights_F)
        gradient_F = features_NF.T @ (f_N - label_N) + _RIDGE * weights_F
        weights_F -= np.linalg.solve(_curvature(features_NF, f_N * (1 - f_N)), gradient_F)
    return weights_F


def targets(label_N: Float64Array, is_early_N: npt.NDArray[np.bool_]) -> dict[Estimate, tuple[Float64Array, ...]]:
    """Returns, per logistic model, the target of each settled row and whether (1 or 0) it takes part.

    >>> early = np.array([True, False, False])
    >>> {name: [x.tolist() for x in pair] for name, pair in targets(np.array([1.0, 1.0, 0.0]), early).items()}
    {'late': [[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]], 'negative': [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]], \
'seen': [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]}
    """
    early_N = is_early_N.astype(np.float64)
    return {
        "late": (label_N * (1 - early_N), np.ones_like(label_N)),
        "negative": (1 - label_N, 1 - early_N),
        "seen": (early_N, label_N),
    }


def exact_estimates(world: DelayWorld) -> Estimates:
    """Returns what perfect auxiliary heads would say of each item, `[N]`."""
    p_N, seen_N = world.probability_N, world.seen_by(world.config.observe_ms)
    return {"late": p_N * (1 - seen_N), "negative": (1 - p_N) / (1 - p_N * seen_N), "seen": seen_N}


class Heads:
    """The auxiliary models, fitted to the first `num_fit` items of a world."""

    def __init__(self, world: DelayWorld, num_fit: int) -> None:
        self._observe_ms, self._window_ms = world.config.observe_ms, world.config.window_ms
        features_NF, label_N = world.features_NF[:num_fit], world.label_N[:num_fit]
        delay_ms_N = world.delay_ms_N[:num_fit]
        is_early_N = (label_N == 1) & (delay_ms_N <= self._observe_ms)
        self._weights: dict[Estimate, Float64Array] = {}
        for name, (target_N, asked_N) in targets(label_N, is_early_N).items():
            self._weights[name] = fit(features_NF[asked_N == 1], target_N[asked_N == 1])
        is_positive_N = label_N == 1
        self._rate_F = self._fit_rate(features_NF[is_positive_N], delay_ms_N[is_positive_N])

    def estimates(self, policy: PolicyName, features_RF: Float64Array) -> Estimates:
        """Returns what a policy needs for some rows."""
        if policy == "dfm":
            rate_R = np.exp(features_RF @ self._rate_F)
            return {"seen": np.expm1(-rate_R * self._observe_ms / self._window_ms) / np.expm1(-rate_R)}
        return {name: sigmoid(features_RF @ self._weights[name]) for name in ESTIMATES.get(policy, ())}

    def learn(
        self, features_RF: Float64Array, label_R: Float64Array, delay_ms_R: npt.NDArray[Any], step: float
    ) -> None:
        """Takes one gradient step on settled rows."""
        is_positive_R = label_R == 1
        is_early_R = is_positive_R & (delay_ms_R <= self._observe_ms)
        for name, (target_R, asked_R) in targets(label_R, is_early_R).items():
            error_R = asked_R * (target_R - sigmoid(features_RF @ self._weights[name]))
            self._weights[name] += step * (error_R @ features_RF)
        positive_RF = features_RF[is_positive_R]
        self._rate_F -= step * (self._rate_slope(positive_RF, delay_ms_R[is_positive_R]) @ positive_RF)

    def _rate_slope(self, features_RF: Float64Array, delay_ms_R: npt.NDArray[Any]) -> Float64Array:
        """Returns the slope of -ln(density of the delay, given that it is within the window) on the log rate."""
        rate_R = np.exp(features_RF @ self._rate_F)
        slope_R: Float64Array = rate_R * delay_ms_R / self._window_ms - 1 + rate_R / np.expm1(rate_R)
        return slope_R

    def _fit_rate(self, features_NF: Float64Array, delay_ms_N: npt.NDArray[Any]) -> Float64Array:
        """Returns the weights of the log rate per window, by Newton's method with the curvature of an uncut delay."""
        delay_N = delay_ms_N / self._window_ms
        self._rate_F = np.zeros(features_NF.shape[1])
        self._rate_F[-1] = -np.log(delay_N.mean())
        for _ in range(_NUM_NEWTON_RATE):
            gradient_F = self._rate_slope(features_NF, delay_ms_N) @ features_NF + _RIDGE * self._rate_F
            curvature_FF = _curvature(features_NF, np.ones(len(features_NF)))
            self._rate_F = self._rate_F - np.linalg.solve(curvature_FF, gradient_F)
        return self._rate_F


def _curvature(features_NF: Float64Array, weight_N: Float64Array) -> Float64Array:
    curvature_FF: Float64Array = (features_NF * weight_N[:, None]).T @ features_NF
    return curvature_FF + _RIDGE * np.eye(len(curvature_FF))
