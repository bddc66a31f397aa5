"""From a user's action to the first request that is scored by a version which had learned it.

The one figure the whole loop is judged by. A manifest names the event times of the feedback its version is the first
to know; they wait here until that version, or a later one, scores a request. A version that was replaced before it
scored anything passes its actions on to the next.
"""

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from ranker.stats import Histogram

BOUNDS_MS = (250.0, 500.0, 1_000.0, 1_500.0, 2_000.0, 3_000.0, 5_000.0, 10_000.0, 30_000.0, 60_000.0, 300_000.0)
"""Upper ends of the freshness buckets; one more is open-ended."""
MAX_RECENT = 10_000
"""Newest measurements the percentiles are taken over."""
MAX_PENDING = 10_000
"""Actions that may wait for a first request; the oldest are forgotten, for nobody asked for them in time."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """Percentiles over the newest measurements, None before the first; `n` counts all since the start."""

    p50_ms: float | None
    p99_ms: float | None
    n: int


class FreshnessRecorder:
    """Written by the watcher's thread (`arrived`) and by whoever scores (`used`).

    >>> recorder = FreshnessRecorder()
    >>> recorder.arrived(7, [1_000, 1_400])
    >>> recorder.used(7, now_ms=2_000)
    >>> recorder.used(7, now_ms=9_000)  # only the first use counts
    >>> recorder.summary()
    Freshness(p50_ms=800.0, p99_ms=996.0, n=2)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: deque[tuple[int, int]] = deque(maxlen=MAX_PENDING)  # version, event time
        self._recent: deque[float] = deque(maxlen=MAX_RECENT)
        self._num_measured = 0
        self._has_pending = False
        self.histogram = Histogram(BOUNDS_MS)

    def arrived(self, version: int, feedback_ms: list[int]) -> None:
        """Takes up the actions a version is the first to know; to be called before the version can be used."""
        with self._lock:
            self._pending.extend((version, event_ms) for event_ms in feedback_ms)
            self._has_pending = bool(self._pending)

    def used(self, version: int, now_ms: int) -> None:
        """Notes that a version scores a request: all actions waiting for it or for an earlier one are measured."""
        if not self._has_pending:  # the case of nearly every request, without the lock
            return
        with self._lock:
            waiting = [entry for entry in self._pending if entry[0] > version]
            for of_version, event_ms in self._pending:
                if of_version <= version:
                    self._measure(now_ms - event_ms)
            self._pending = deque(waiting, maxlen=MAX_PENDING)
            self._has_pending = bool(waiting)

    def _measure(self, freshness_ms: float) -> None:
        self._recent.append(freshness_ms)
        self._num_measured += 1
        self.histogram.observe(freshness_ms)

    def summary(self) -> Freshness:
        """Returns p50 and p99 of the newest measurements and the number of all."""
        with self._lock:
            recent, num_measured = np.array(self._recent), self._num_measured
        if not num_measured:
            return Freshness(None, None, 0)
        p50_ms, p99_ms = np.percentile(recent, [50, 99])
        return Freshness(float(p50_ms), float(p99_ms), num_measured)
