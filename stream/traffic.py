"""The traffic ratio of `eager`: how much traffic there was a window ago, per traffic when the slate was shown.

`eager` sends a positive at its feedback and a negative a window after its slate, so that at any time positives of
slates shown lately meet negatives of slates shown a window before. While traffic grows, positives weigh too much. With

    ratio = n(feedback - window - grace) / n(slate)        n: impressions of the scenario per time

the expected weight of the positives emitted at a time is that of the negatives emitted then. n is the mean of the
three buckets of window / 96 that were complete `out_of_orderness_ms` before: a function of the log, not of when it is
read, so that a replay stamps the same ratios.
"""

from collections.abc import Iterable

_BUCKETS_PER_WINDOW = 96
_NUM_MEANT = 3
MAX_RATIO = 10.0


class Traffic:
    """Impressions per scenario and bucket of event time, as long as they may be asked for."""

    def __init__(self, window_ms: int, grace_ms: int, out_of_orderness_ms: int) -> None:
        self._window_ms, self._grace_ms, self._lag_ms = window_ms, grace_ms, out_of_orderness_ms
        self._bucket_ms = max(1, window_ms // _BUCKETS_PER_WINDOW)
        # Feedback may still come for slates as old as window + grace, and asks for the window before.
        self.keep_ms = 2 * (window_ms + grace_ms) + out_of_orderness_ms + (_NUM_MEANT + 1) * self._bucket_ms
        """How old, in ms before the watermark, an impression may be that still counts."""
        self._counts: dict[int, dict[str, int]] = {}
        self._first_offset: dict[int, int] = {}
        self._kept_from = 0

    def observe(self, scenario: str, shown_ms: int, offset: int) -> None:
        """Counts one impression, whatever becomes of it."""
        bucket = shown_ms // self._bucket_ms
        if bucket < self._kept_from:
            return
        counts = self._counts.get(bucket)
        if counts is None:
            counts = self._counts[bucket] = {}
            self._first_offset[bucket] = offset
        counts[scenario] = counts.get(scenario, 0) + 1

    def ratio(self, scenario: str, shown_ms: int, feedback_ms: int) -> float:
        """Returns the ratio of a positive, 0 to `MAX_RATIO`; 0 where there was no traffic a window ago."""
        before = self._around(scenario, feedback_ms - self._window_ms - self._grace_ms)
        now = self._around(scenario, shown_ms)
        if before == 0:
            return 0.0
        return min(before / now, MAX_RATIO) if now else MAX_RATIO

    def _around(self, scenario: str, at_ms: int) -> int:
        """Returns the impressions of the last buckets that were complete at a time."""
        end = (at_ms - self._lag_ms) // self._bucket_ms
        found = (self._counts.get(bucket) for bucket in range(end - _NUM_MEANT, end))
        return sum(counts.get(scenario, 0) for counts in found if counts is not None)

    def forget(self, watermark_ms: int) -> None:
        """Drops what no open slate can ask for any more."""
        kept_from = (watermark_ms - self.keep_ms) // self._bucket_ms
        if kept_from > self._kept_from:
            self._kept_from = kept_from
            for bucket in [bucket for bucket in self._counts if bucket < kept_from]:
                del self._counts[bucket], self._first_offset[bucket]

    def oldest_needed(self) -> Iterable[int]:
        """Yields, per bucket, the offset of its first impression: from the smallest on, a replay counts the same."""
        return self._first_offset.values()

    def state(self) -> list[tuple[int, int, dict[str, int]]]:
        """Returns bucket, first offset and counts per scenario of each bucket; for snapshots."""
        return [(bucket, self._first_offset[bucket], dict(counts)) for bucket, counts in self._counts.items()]

    def load_state(self, buckets: Iterable[tuple[int, int, dict[str, int]]]) -> None:
        """Takes up what `state` returned."""
        for bucket, first_offset, counts in buckets:
            if bucket < self._kept_from:
                continue
            self._counts[bucket], self._first_offset[bucket] = dict(counts), first_offset
