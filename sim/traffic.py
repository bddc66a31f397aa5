"""Who asks for a ranking next, where, and when: Poisson arrivals of users in sessions."""

from collections.abc import Sequence

import numpy as np

from sim.config import SimConfig


class Traffic:
    """Draws requests. A fixed number of sessions is open; each ends with a fixed chance after every request."""

    def __init__(self, config: SimConfig, users: Sequence[str], rng: np.random.Generator) -> None:
        self._users = users
        self._rng = rng
        self._mean_gap_s = 1.0 / config.requests_per_s
        self._end_chance = 1.0 / config.session_requests
        self._scenarios = tuple(config.scenarios)
        shares = np.array([config.scenarios[name].share for name in self._scenarios])
        self._scenario_edges = np.cumsum(shares / shares.sum())
        self._sessions = [self._new_user() for _ in range(config.num_sessions)]

    def gap_s(self) -> float:
        """Returns the time from one arrival to the next, in seconds."""
        return float(self._rng.exponential(self._mean_gap_s))

    def next(self) -> tuple[str, str]:
        """Returns the user id and the scenario of the next request."""
        session = int(self._rng.integers(len(self._sessions)))
        user_id = self._sessions[session]
        if self._rng.random() < self._end_chance:
            self._sessions[session] = self._new_user()
        place = int(np.searchsorted(self._scenario_edges, self._rng.random(), side="right"))
        return user_id, self._scenarios[min(place, len(self._scenarios) - 1)]

    def _new_user(self) -> str:
        return self._users[int(self._rng.integers(len(self._users)))]
