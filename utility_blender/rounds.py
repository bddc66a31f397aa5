"""Rounds: weights are learned in small steps, each from requests explored around the weights then in service.

A step further than the exploration reached cannot be judged from its log, so a round ends with a gate, a publish moves
the centre, and the next round begins with nothing but requests around the new one.
"""

import math
from dataclasses import dataclass

import numpy as np

from utility_blender.outcomes import Bools, Outcomes, concat


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """How much a round takes, and how carefully its result goes into service."""

    requests: int = 20_000
    """Explored requests of a round before weights are learned from it; at least 500."""
    retry_growth: float = 1.25
    """After a refusal the round goes on until it has so many times the requests; above 1."""
    most_requests: int = 100_000
    """Newest explored requests of a round that are kept; at least `requests`."""
    later_share: float = 0.3
    """Share of a round, the latest by event time, that learning does not see and the gate judges by; in (0, 0.9]."""
    stages: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    """Shares of the requests that a new version serves, one after the other; rising, the last one 1."""
    stage_requests: int = 1_000
    """Requests served by a version on trial, with their outcome known, in each stage before the next; at least 1."""

    def __post_init__(self) -> None:
        for name, least in (("requests", 500), ("most_requests", self.requests), ("stage_requests", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")
        if not 1 < self.retry_growth < math.inf:
            raise ValueError(f"retry_growth: {self.retry_growth} is not allowed; a finite number above 1")
        if not 0 < self.later_share <= 0.9:
            raise ValueError(f"later_share: {self.later_share} is not allowed; in (0, 0.9]")
        rises = all(low < high for low, high in zip((0.0, *self.stages), self.stages, strict=False))
        if not self.stages or not rises or self.stages[-1] != 1:
            raise ValueError(f"stages: {list(self.stages)} is not allowed; rising shares above 0 that end with 1")


def explored(outcomes: Outcomes) -> Bools:
    """Returns which requests were explored, explored_N; the others were logged to compare with."""
    explored_N: Bools = np.isfinite(outcomes.log_density_N)
    return explored_N


class Round:
    """The requests explored around one version of the weights, as their outcomes come in."""

    def __init__(self, config: RoundsConfig, version: int) -> None:
        self.version = version
        """The version in service, which the draws are made around; 0: the production weights."""
        self.num_requests = 0
        """Explored requests at hand."""
        self._config = config
        self._parts: list[Outcomes] = []
        self._num_taken = 0
        self._due = config.requests

    @property
    def is_due(self) -> bool:
        """Whether there are enough to learn from."""
        return self._num_taken >= self._due

    @property
    def num_missing(self) -> int:
        """Requests still to come before the round is due."""
        return max(0, self._due - self._num_taken)

    def add(self, outcomes: Outcomes) -> int:
        """Takes the requests that belong to this round; returns how many."""
        chosen_N = explored(outcomes) & (outcomes.blender_N == self.version)
        num_taken = int(chosen_N.sum())
        if num_taken:
            self._parts.append(outcomes if num_taken == outcomes.num_requests else outcomes.take(chosen_N))
            self.num_requests += num_taken
            self._num_taken += num_taken
        while self._parts and self.num_requests - self._parts[0].num_requests >= self._config.most_requests:
            self.num_requests -= self._parts.pop(0).num_requests
        return num_taken

    def split(self) -> tuple[Outcomes, Outcomes]:
        """Returns the earlier requests, to learn from, and the later ones, to judge by; by event time.

        Requests of the very millisecond where the two meet are all earlier ones: nothing is on both sides.
        """
        outcomes = concat(self._parts)
        self._parts = [outcomes]
        edge_ms = np.quantile(outcomes.ts_ms_N, 1 - self._config.later_share, method="lower")
        order_N = np.argsort(outcomes.ts_ms_N, kind="stable")
        is_earlier_N = outcomes.ts_ms_N[order_N] <= edge_ms
        return outcomes.take(order_N[is_earlier_N]), outcomes.take(order_N[~is_earlier_N])

    def refused(self) -> None:
        """Takes note that the gate said no: more of the same is needed, or the world has to change."""
        if self.num_requests < self._config.most_requests:
            self._due = math.ceil(self._num_taken * self._config.retry_growth)
        else:  # full: newer requests take the place of older ones
            self._due = self._num_taken + self._config.requests
