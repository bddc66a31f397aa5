"""A world of delayed feedback whose truth is known: who acts, with which probability, and when.

Letters: N items, S slates, F features (the last is always 1). An item's label is positive with the probability
sigmoid(features . weights); the weights walk at random from hour to hour, and may jump once; traffic may jump too.
A positive comes within `observe_ms` with the probability `early_share`, else after an exponential delay whose mean
depends on the features, cut off at the window: nothing comes after it, so the probability is that of the label.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

HOUR_MS = 3_600_000
_STEP_KEPT = 0.5
"""Correlation of the weights before and after their jump."""
_DELAY_SPREAD = 0.5
"""Standard deviation of the logarithm of the mean delay over items."""

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayWorldConfig:
    """One world of delayed feedback."""

    hours: float
    """How long it lasts; more than 0."""
    window_ms: int
    """Label window; no feedback comes later."""
    observe_ms: int
    """Early feedback comes within this time; 1 to `window_ms` - 1."""
    items_per_hour: float = 2_000.0
    """Traffic before any step; enough for at least one slate."""
    slate_size: int = 20
    """Items per slate; at least 1."""
    num_features: int = 16
    """Independent standard normal features per item; at least 1."""
    intercept: float = -1.3
    """Logit of an average item."""
    weight_scale: float = 0.5
    """Standard deviation of the first weights."""
    drift: float = 0.03
    """Standard deviation of what each weight moves per hour; at least 0."""
    early_share: float = 0.42
    """Share of the positives that surely are early; 0 to 1."""
    mean_delay_share: float = 0.125
    """Median over items of the mean of the other delays, as a share of the window; more than 0."""
    weights_step_hour: float | None = None
    """When the weights jump."""
    traffic_step_hour: float | None = None
    """When traffic is multiplied by `traffic_factor`."""
    traffic_factor: float = 4.0
    """More than 0."""

    def __post_init__(self) -> None:
        for name in ("hours", "items_per_hour", "mean_delay_share", "traffic_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; more than 0")
        for name in ("slate_size", "num_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
        if not self.drift >= 0:
            raise ValueError(f"drift: {self.drift} is not allowed; at least 0")
        if not 0 <= self.early_share <= 1:
            raise ValueError(f"early_share: {self.early_share} is not allowed; 0 to 1")
        if not 1 <= self.observe_ms < self.window_ms:
            raise ValueError(f"observe_ms: {self.observe_ms} is not allowed; 1 to {self.window_ms - 1}")


class DelayWorld(NamedTuple):
    """Everything that happened, in order of time; item n is item n % size of slate n // size."""

    config: DelayWorldConfig
    shown_ms_S: Int64Array
    """Slate times, rising, from 0 on."""
    features_NF: Float64Array
    probability_N: Float64Array
    """Of a positive label: the truth."""
    delay_ms_N: Int64Array
    """Of the feedback; -1 where there is none."""
    mean_delay_ms_N: Float64Array
    """Mean of the exponential part of the delay, before it is cut off at the window."""

    @property
    def shown_ms_N(self) -> Int64Array:
        """When each item was shown."""
        return np.repeat(self.shown_ms_S, self.config.slate_size)

    @property
    def label_N(self) -> Float64Array:
        """1 where feedback comes, 0 elsewhere."""
        return (self.delay_ms_N >= 0).astype(np.float64)

    def seen_by(self, age_ms: float) -> Float64Array:
        """Returns, per item, the probability that feedback comes by an age, given that it comes at all."""
        early = min(1.0, max(0.0, age_ms / self.config.observe_ms))
        reach = 1 - np.exp(-self.config.window_ms / self.mean_delay_ms_N)
        later_N = np.clip((1 - np.exp(-max(0.0, age_ms) / self.mean_delay_ms_N)) / reach, 0.0, 1.0)
        seen_N: Float64Array = self.config.early_share * early + (1 - self.config.early_share) * later_N
        return seen_N


def draw_world(config: DelayWorldConfig, rng: np.random.Generator) -> DelayWorld:
    """Returns one world; the same generator state and settings give the same one.

    Slates come one per interval of equal expected traffic, at a random moment of it, so that traffic as such is steady.
    """
    time_rng, weight_rng, feature_rng, label_rng = rng.spawn(4)
    shown_ms_S = _slate_times(config, time_rng)
    num_items = len(shown_ms_S) * config.slate_size
    features_NF = np.ones((num_items, config.num_features + 1))
    features_NF[:, :-1] = feature_rng.standard_normal((num_items, config.num_features))
    weights_SF = _weights(config, shown_ms_S, weight_rng)
    logit_SI = np.einsum("sif,sf->si", features_NF.reshape(len(shown_ms_S), config.slate_size, -1), weights_SF)
    probability_N = 1 / (1 + np.exp(-logit_SI.reshape(-1)))
    direction_F = weight_rng.standard_normal(config.num_features)
    direction_F *= _DELAY_SPREAD / np.linalg.norm(direction_F)
    mean_ms_N = config.mean_delay_share * config.window_ms * np.exp(features_NF[:, :-1] @ direction_F)
    is_positive_N = label_rng.random(num_items) < probability_N
    early_ms_N = label_rng.random(num_items) * config.observe_ms
    reach_N = 1 - np.exp(-config.window_ms / mean_ms_N)
    later_ms_N = -mean_ms_N * np.log1p(-label_rng.random(num_items) * reach_N)
    is_early_N = label_rng.random(num_items) < config.early_share
    delay_ms_N = np.minimum(np.where(is_early_N, early_ms_N, later_ms_N), config.window_ms).astype(np.int64)
    return DelayWorld(
        config, shown_ms_S, features_NF, probability_N, np.where(is_positive_N, delay_ms_N, -1), mean_ms_N
    )


def _slate_times(config: DelayWorldConfig, rng: np.random.Generator) -> Int64Array:
    per_ms = config.items_per_hour / config.slate_size / HOUR_MS
    end_ms = config.hours * HOUR_MS
    step_ms = end_ms if config.traffic_step_hour is None else min(config.traffic_step_hour * HOUR_MS, end_ms)
    before, after = per_ms * step_ms, per_ms * config.traffic_factor * (end_ms - step_ms)
    num_slates = int(before + after)
    if num_slates < 1:
        raise ValueError(f"items_per_hour: {config.items_per_hour} makes no slate in {config.hours} hours")
    place_S = np.arange(num_slates) + rng.random(num_slates)
    times_S: npt.NDArray[Any] = np.where(
        place_S < before, place_S / per_ms, step_ms + (place_S - before) / (per_ms * config.traffic_factor)
    )
    return times_S.astype(np.int64)


def _weights(config: DelayWorldConfig, shown_ms_S: Int64Array, rng: np.random.Generator) -> Float64Array:
    """Returns the weights at each slate, [S, F], the constant intercept last."""
    shape = config.num_features
    first_F, other_F = (config.weight_scale * rng.standard_normal(shape) for _ in range(2))
    walk_HF = config.drift * rng.standard_normal((int(config.hours) + 2, shape)).cumsum(axis=0)
    weights_SF = np.full((len(shown_ms_S), shape + 1), config.intercept)
    weights_SF[:, :-1] = first_F + walk_HF[shown_ms_S // HOUR_MS]
    if config.weights_step_hour is not None:
        is_after_S = shown_ms_S >= config.weights_step_hour * HOUR_MS
        weights_SF[is_after_S, :-1] += (_STEP_KEPT - 1) * first_F + np.sqrt(1 - _STEP_KEPT**2) * other_F
    return weights_SF
