"""From a user's action to the first request that is scored by a version which had learned it, stage by stage.

The one figure the whole loop is judged by. A manifest names the actions its version is the first to know, and when each
happened, was joined and was learned; they wait here until that version, or a later one, scores a request. A version
that was replaced before it scored anything passes its actions on to the next.

    event -> joined -> trained -> published -> applied -> served

The stamps come from several machines' clocks. A stage that would be negative is counted as 0 and noted by name, and
what it lacks is taken from the stages around it, so that the stages of an action always add up to its freshness.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.snapshot import Manifest
from ranker.freshness_stages import BOUNDS_MS, STAGES
from ranker.stats import Histogram

MAX_RECENT = 10_000
"""Newest measurements the percentiles are taken over."""
MAX_PENDING = 10_000
"""Actions that may wait for a first request; the oldest are forgotten, for nobody asked for them in time."""

Int64Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Freshness:
    """Percentiles over the newest measurements, None before the first; `n` counts all since the start."""

    p50_ms: float | None
    p99_ms: float | None
    n: int


class _Pending(NamedTuple):
    """Actions that wait for a version to score a request."""

    version: int
    stamps_NS: Int64Array
    """When each action happened and the end of each stage but the last; -1 where it is not known."""


class FreshnessRecorder:
    """Written by the watcher's thread (`arrived`) and by whoever scores (`used`); `now_ms` is their wall clock."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._pending: deque[_Pending] = deque()
        self._num_pending = 0
        self._recent: deque[float] = deque(maxlen=MAX_RECENT)
        self._num_measured = 0
        self.histogram = Histogram(BOUNDS_MS)
        """Freshness of all actions."""
        self.stages: dict[str, Histogram] = {stage: Histogram(BOUNDS_MS) for stage in STAGES}
        """Of the actions whose stamps are all known: those of older trainers, or of a log without times, are not."""
        self.negative: Counter[str] = Counter(dict.fromkeys(STAGES, 0))
        """Stages that the clocks of two machines made negative."""

    def arrived(self, version: int, manifest: Manifest) -> None:
        """Takes up the actions of a manifest, to be measured at the first use of `version` or of a later one.

        To be called right before the version can be used.
        """
        stamps_NS = _stamps(manifest, self._now_ms())[-MAX_PENDING:]
        if not len(stamps_NS):
            return
        with self._lock:
            self._pending.append(_Pending(version, stamps_NS))
            self._num_pending += len(stamps_NS)
            while self._num_pending > MAX_PENDING:
                self._num_pending -= len(self._pending.popleft().stamps_NS)

    def used(self, version: int, now_ms: int) -> None:
        """Notes that a version scores a request: all actions waiting for it or for an earlier one are measured."""
        if not self._num_pending:  # the case of nearly every request, without the lock
            return
        with self._lock:
            known = [pending.stamps_NS for pending in self._pending if pending.version <= version]
            if not known:
                return
            self._pending = deque(pending for pending in self._pending if pending.version > version)
            self._num_pending = sum(len(pending.stamps_NS) for pending in self._pending)
            self._measure(np.concatenate(known), now_ms)

    def _measure(self, stamps_NS: Int64Array, served_ms: int) -> None:
        freshness_N = np.maximum(served_ms - stamps_NS[:, 0], 0)
        self._recent.extend(freshness_N.tolist())
        self._num_measured += len(freshness_N)
        self.histogram.observe_all(freshness_N)
        stamps_NS = stamps_NS[(stamps_NS >= 0).all(axis=1)]
        durations_NS, is_negative_NS = stage_durations(stamps_NS, served_ms)
        for index, stage in enumerate(STAGES):
            self.stages[stage].observe_all(durations_NS[:, index])
            self.negative[stage] += int(is_negative_NS[:, index].sum())

    def summary(self) -> Freshness:
        """Returns p50 and p99 of the newest measurements and the number of all."""
        with self._lock:
            recent, num_measured = np.array(self._recent), self._num_measured
        if not num_measured:
            return Freshness(None, None, 0)
        p50_ms, p99_ms = np.percentile(recent, [50, 99])
        return Freshness(float(p50_ms), float(p99_ms), num_measured)


def stage_durations(stamps_NS: Int64Array, served_ms: int) -> tuple[Int64Array, NDArray[np.bool_]]:
    """Returns how long each stage of each action took in ms, none negative, and which ones would have been negative.

    `stamps_NS` are all known: the action's own time, then the end of each stage but the last. The stages of an action
    add up to `served_ms` minus the action's time, or to 0 if that is negative.

    >>> durations, negative = stage_durations(np.array([[1_000, 1_200, 1_150, 1_400, 1_500]]), 1_600)
    >>> durations.tolist(), negative.tolist()
    ([[200, 0, 200, 100, 100]], [[False, True, False, False, False]])
    """
    edges_NS = np.column_stack([stamps_NS, np.full(len(stamps_NS), served_ms, np.int64)])
    ordered_NS = np.minimum(np.maximum.accumulate(edges_NS, axis=1), served_ms)
    return np.diff(ordered_NS, axis=1), np.diff(edges_NS, axis=1) < 0


def _stamps(manifest: Manifest, applied_ms: int) -> Int64Array:
    """Returns the stamps of a manifest's actions, stamps_NS."""
    stamps_NS = np.full((len(manifest.feedback_ms), len(STAGES)), -1, np.int64)
    stamps_NS[:, 0] = manifest.feedback_ms
    if manifest.feedback_joined_ms:
        stamps_NS[:, 1] = manifest.feedback_joined_ms
    if manifest.feedback_trained_ms:
        stamps_NS[:, 2] = manifest.feedback_trained_ms
    stamps_NS[:, 3], stamps_NS[:, 4] = manifest.created_ms, applied_ms
    return stamps_NS
