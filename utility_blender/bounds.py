"""What learned weights may not do, whatever the model says.

Shape letters: N requests, T tasks.
"""

from dataclasses import dataclass

import numpy as np

from utility_blender.contexts import Contexts, Floats
from utility_blender.policy import Policy, directions


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundsConfig:
    """Limits of served weights; the sign of a production weight is always kept."""

    most: float = 4.0
    """A weight stays between the production weight divided by and multiplied with this; at least 1."""
    contribution: float = 0.8
    """Largest share of one task in the sum of all absolute weights, above 0.5, at most 1; where production itself gives
    a task more, its share is the limit."""
    budget_ms: float = 3.0
    """Milliseconds of processor time that the weights of a request may take, above 0; if they take longer, the
    production weights serve."""

    def __post_init__(self) -> None:
        if not self.most >= 1:
            raise ValueError(f"most: {self.most} is not allowed; at least 1")
        if not 0.5 < self.contribution <= 1:
            raise ValueError(f"contribution: {self.contribution} is not allowed; in (0.5, 1]")
        if not self.budget_ms > 0:
            raise ValueError(f"budget_ms: {self.budget_ms} is not allowed; above 0")


def bounded(weights_NT: Floats, static_NT: Floats, config: BoundsConfig) -> Floats:
    """Returns the weights as they may be served: at the length of the production weights, which are on the same scale.

    The contribution of a task is the share of its weight, for scores are scaled to one size. Cutting it never takes a
    weight below what `most` allows, as production itself is within the limit.

    >>> static_NT = np.array([[1.0, 1.0, -1.0]])
    >>> bounded(np.array([[9.0, -1.0, -0.1]]), static_NT, BoundsConfig()).round(3)
    array([[ 1.721,  0.25 , -0.25 ]])
    >>> bounded(np.array([[9.0, -1.0, -0.1]]), static_NT, BoundsConfig(contribution=0.6)).round(3)
    array([[ 0.75,  0.25, -0.25]])
    """
    size_NT = np.abs(static_NT)
    learned_NT = directions(weights_NT, static_NT) * np.sign(static_NT)
    kept_NT = np.clip(learned_NT, size_NT / config.most, size_NT * config.most)
    limit_NT = np.maximum(config.contribution, size_NT / size_NT.sum(axis=1, keepdims=True))
    others_NT = kept_NT.sum(axis=1, keepdims=True) - kept_NT
    is_alone_NT = limit_NT >= 1  # nothing else counts in production either
    most_NT = np.where(is_alone_NT, np.inf, limit_NT / np.where(is_alone_NT, 1.0, 1 - limit_NT) * others_NT)
    bounded_NT: Floats = np.minimum(kept_NT, most_NT) * np.sign(static_NT)
    return bounded_NT


@dataclass(frozen=True, slots=True)
class Bounded:
    """A policy as it is served: within the bounds. What is judged offline should be this, not what is inside."""

    policy: Policy
    static: Policy
    """Production weights on the scale of the policy."""
    config: BoundsConfig

    def weights(self, contexts: Contexts) -> Floats:
        """See `Policy.weights`; what is not finite inside is not finite here."""
        return bounded(self.policy.weights(contexts), self.static.weights(contexts), self.config)
