"""What the ranker counts. Plain numbers: `freshrank` turns them into metrics, `GET /v1/model` shows them."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

LATENCY_BOUNDS_MS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 250.0, 1000.0)
"""Upper ends of the latency buckets; one more is open-ended."""


@dataclass(slots=True)
class Histogram:
    """Counts by bucket, cumulative over the life of the process.

    >>> histogram = Histogram((1.0, 10.0))
    >>> for value in (0.5, 1.0, 7.0, 99.0):
    ...     histogram.observe(value)
    >>> histogram.counts, histogram.total
    ([2, 1, 1], 107.5)
    """

    bounds: tuple[float, ...]
    """Upper end of each bucket, inclusive; values above the last one go into one more."""
    counts: list[int] = field(init=False)
    total: float = 0.0
    """Sum of all values."""

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Adds one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_all(self, values: NDArray[Any]) -> None:
        """Adds several values at once."""
        buckets, counts = np.unique(np.searchsorted(self.bounds, values), return_counts=True)
        for bucket, count in zip(buckets.tolist(), counts.tolist(), strict=True):
            self.counts[bucket] += count
        self.total += float(values.sum())


@dataclass(slots=True)
class RankerStats:
    """Counters since the start. Written by the event loop and the watcher's thread, each field by one of them only."""

    turned_away: Counter[str] = field(default_factory=Counter)
    """Requests turned away before they were looked at, by reason: `token`, `origin` (a page of another address),
    `encoding`, `rate`, `size`, `slow` (the body did not come), `busy` (too many at once)."""
    requests: int = 0
    """Rank requests that were answered."""
    requests_refused: int = 0
    """Rank requests refused with HTTP 400: see the answer for the field."""
    candidates: int = 0
    """Candidates of the answered requests."""
    explored: int = 0
    """Answered requests whose weights were drawn."""
    unknown_scenario: int = 0
    """Requests ranked as another scenario, the default one: the config does not list theirs, and has them taken as
    the default one or the model has no part for it yet."""
    degraded: Counter[str] = field(default_factory=Counter)
    """Answers that had to do without something, by reason."""
    unknown_features: Counter[str] = field(default_factory=Counter)
    """Feature names that are not in the config, ignored; at most 100 names, the rest under `other`."""
    sequences_read: int = 0
    """Sequences read, also empty ones."""
    sequences_failed: Counter[str] = field(default_factory=Counter)
    """Sequences not read, by reason: `timeout`, `unavailable`, `malformed`, `skipped` (the breaker was open)."""
    rows_cached: int = 0
    """Rows that are not in memory whose answer, a row or none, was still known."""
    rows_fetched: int = 0
    """Rows read from the row store."""
    rows_absent: int = 0
    """Rows that the row store was asked for and that do not exist: default rows."""
    rows_failed: Counter[str] = field(default_factory=Counter)
    """Requests that had to take default rows, by reason: `timeout`, `unavailable`, `lost` (the row store was emptied,
    its trainer writes it anew), `malformed`, `limit` (too many for one request), `skipped` (the breaker was open)."""
    impressions: int = 0
    """Impressions handed to the log."""
    impressions_dropped: int = 0
    """Impressions lost because the log's buffer was full."""
    feedback: int = 0
    """Actions handed to the log."""
    feedback_refused: int = 0
    """Feedback requests refused with HTTP 400."""
    feedback_dropped: int = 0
    """Actions not accepted (HTTP 503) because the log's buffer was full."""
    snapshots_applied: int = 0
    """Versions swapped in."""
    snapshots_refused: Counter[str] = field(default_factory=Counter)
    """Published versions that could not be served, by reason; each attempt counts."""
    snapshots_healed: int = 0
    """Times a broken chain of deltas was left by way of a newer full snapshot."""
    blenders_applied: int = 0
    """Times other learned weights, another share of them, or the config's were taken into service."""
    blenders_refused: Counter[str] = field(default_factory=Counter)
    """Versions of learned weights that could not be served, by reason; each attempt counts."""
    blender_fallback: Counter[str] = field(default_factory=Counter)
    """Requests that got the weights of the config instead of learned ones, by reason."""
    score_shift_alarms: int = 0
    """Windows of explored requests whose scores had moved (PSI above 0.1) from those the weights were learned on."""
    blender_store_unavailable: int = 0
    """Times the store of learned weights did not answer; no request explores then."""
    store_unavailable: int = 0
    """Times the snapshot store did not answer."""
    watcher_failures: int = 0
    """Rounds of the snapshot watcher that ended in an error nobody foresaw: see the log."""
    latency_ms: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS_MS))
    """Time from the body of a rank request being there to its answer being there, not yet encoded."""

    def counters(self) -> dict[str, int | dict[str, int]]:
        """Returns the counters by name; those by reason as mappings."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: dict(value) if isinstance(value, Counter) else value
            for name, value in named.items()
            if not isinstance(value, Histogram)
        }
