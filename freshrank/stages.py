"""Quantiles of the stages an event goes through, from histograms that only count up."""

from collections import deque
from collections.abc import Mapping, Sequence

from freshrank.scrape import Figures
from ranker.freshness_stages import STAGES

METRIC = "freshrank_ranker_freshness_stage_seconds_bucket"
WINDOW_MS = 60_000
"""Quantiles are over so long."""

Counts = dict[str, dict[float, float]]
"""By stage, the number of actions at most so many seconds."""


class StageWindow:
    """The newest actions' stages."""

    def __init__(self) -> None:
        self._rounds: deque[tuple[int, Counts]] = deque()

    def observe(self, now_ms: int, figures: Figures) -> None:
        """Takes up one round; histograms that count less than before are of a ranker that was started again."""
        counts: Counts = {}
        for (bound, stage), value in figures.of(METRIC):
            of_stage = counts.setdefault(stage, {})
            of_stage[float(bound)] = of_stage.get(float(bound), 0.0) + value
        if self._rounds and any(_total(counts, stage) < _total(self._rounds[-1][1], stage) for stage in STAGES):
            self._rounds.clear()
        self._rounds.append((now_ms, counts))
        while len(self._rounds) > 2 and self._rounds[1][0] <= now_ms - WINDOW_MS:
            self._rounds.popleft()

    def quantiles_ms(self, quantiles: Sequence[float]) -> dict[str, dict[str, float | None]]:
        """Returns by stage `p50`, `p99`, ... in ms, and `n`, how many actions they are over."""
        first, last = (self._rounds[0][1], self._rounds[-1][1]) if self._rounds else ({}, {})
        found: dict[str, dict[str, float | None]] = {}
        for stage in STAGES:
            before = first.get(stage, {})
            counts = {bound: count - before.get(bound, 0.0) for bound, count in last.get(stage, {}).items()}
            found[stage] = {"n": max(counts.values(), default=0.0)}
            for quantile in quantiles:
                seconds = quantile_of(counts, quantile)
                found[stage][f"p{100 * quantile:.0f}"] = None if seconds is None else 1_000 * seconds
        return found


def _total(counts: Counts, stage: str) -> float:
    return max(counts.get(stage, {}).values(), default=0.0)


def quantile_of(counts: Mapping[float, float], quantile: float) -> float | None:
    """Returns a quantile of counts by upper bound, within a bucket by proportion; None of nothing.

    What lies beyond the last finite bound is that bound.

    >>> quantile_of({0.1: 50.0, 0.2: 100.0, float("inf"): 100.0}, 0.5)
    0.1
    """
    bounds = sorted(counts)
    if not bounds or counts[bounds[-1]] <= 0:
        return None
    wanted = quantile * counts[bounds[-1]]
    low, below = 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= wanted and bound < float("inf"):
            inside = counts[bound] - below
            return bound if inside <= 0 else low + (bound - low) * (wanted - below) / inside
        if bound < float("inf"):
            low, below = bound, counts[bound]
    return low
