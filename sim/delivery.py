"""When feedback leaves for us: at the action's time, or late, or twice, as the config says."""

import heapq

import numpy as np

from sim.config import SimConfig
from stream.schema import Feedback


class Delivery:
    """Feedback waiting to be sent, by the moment it is due."""

    def __init__(self, config: SimConfig, rng: np.random.Generator) -> None:
        self._config = config
        self._rng = rng
        self._heap: list[tuple[int, int, Feedback]] = []
        self._num_added = 0
        self.duplicated = 0
        self.delayed = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, feedback: Feedback) -> None:
        """Takes one action in; its event time stays what it is, however late it will be sent."""
        is_late, is_twice = self._rng.random(2) < (self._config.disorder_share, self._config.duplicate_share)
        due_ms = feedback.ts + (self._lateness_ms() if is_late else 0)
        self.delayed += int(is_late)
        self._push(due_ms, feedback)
        if is_twice:
            self.duplicated += 1
            self._push(due_ms + self._lateness_ms(), feedback)

    def due(self, now_ms: int, limit: int) -> list[tuple[int, Feedback]]:
        """Returns what is due by `now_ms`, oldest first, at most `limit`, each with the moment it was due."""
        ready: list[tuple[int, Feedback]] = []
        while self._heap and self._heap[0][0] <= now_ms and len(ready) < limit:
            due_ms, _, feedback = heapq.heappop(self._heap)
            ready.append((due_ms, feedback))
        return ready

    def give_back(self, unsent: list[tuple[int, Feedback]]) -> None:
        """Takes back what could not be sent; it stays due."""
        for due_ms, feedback in unsent:
            self._push(due_ms, feedback)

    def next_due_ms(self) -> int | None:
        """Returns when the next feedback is due; None if nothing waits."""
        return self._heap[0][0] if self._heap else None

    def _push(self, due_ms: int, feedback: Feedback) -> None:
        heapq.heappush(self._heap, (due_ms, self._num_added, feedback))
        self._num_added += 1

    def _lateness_ms(self) -> int:
        return int(self._rng.uniform(0, 1_000 * self._config.disorder_s))
