"""Moods: why the best weights of a ranking depend on the request.

A mood multiplies the true probability of each action of every item, for one request. A model that cannot see the mood
(`model.encoding.without: [context.mood]`) is right on average and wrong in each mood by a factor per action, so the
best weights on its scores are those of the rewards times these factors: what a learned blender has to find.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MoodConfig:
    """One mood: how often it is met, and what it does to the probabilities."""

    share: float = 1.0
    """Share of the requests, relative to the other moods; above 0."""
    click: float = 1.0
    """Factor on the probability of a click; above 0. No probability rises above 0.95."""
    order: float = 1.0
    """Factor on the probability of an order, which never exceeds that of the click; above 0."""
    hide: float = 1.0
    """Factor on the probability of hiding an item, which never exceeds that of not clicking it; above 0."""

    def __post_init__(self) -> None:
        for name in ("share", "click", "order", "hide"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: {value} is not allowed; a finite number above 0")
