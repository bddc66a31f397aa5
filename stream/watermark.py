"""How far event time has come in a partition pair: no event before the watermark is expected any more.

Pure: the processing clock comes in as a value. Everything else in the joiner asks only `has_passed(watermark, edge)`.
"""

NO_WATERMARK = -1
"""Before the first event. Event times are at least 0, so that it has passed nothing."""


def has_passed(watermark_ms: int, edge_ms: int) -> bool:
    """Returns whether no event at or before `edge_ms` is expected any more.

    The watermark W says that no event with an event time < W is expected, so one *at* W still is: passing is strict.

    >>> [has_passed(watermark_ms, 62_000) for watermark_ms in (61_999, 62_000, 62_001)]
    [False, False, True]
    """
    return watermark_ms > edge_ms


class TopicClock:
    """Event time and quietness of one topic's partition."""

    def __init__(self, now_ms: int, *, max_ahead_ms: int, idle_ms: int, event_ms: int = NO_WATERMARK) -> None:
        self._max_ahead_ms = max_ahead_ms
        self._idle_ms = idle_ms
        self._heard_ms = now_ms
        self._looked_ms = now_ms
        self._is_at_end = False
        self.event_ms = event_ms
        """Largest event time seen, none clamped beyond the processing clock + `max_ahead_ms`."""

    def observe(self, event_ms: int, now_ms: int) -> bool:
        """Takes note of an event; returns whether its clock was ahead and it was clamped."""
        self._heard_ms = now_ms
        self._is_at_end = False
        limit_ms = now_ms + self._max_ahead_ms
        is_ahead = event_ms > limit_ms
        if is_ahead:
            event_ms = limit_ms
        if event_ms > self.event_ms:
            self.event_ms = event_ms
        return is_ahead

    def is_quiet(self, now_ms: int) -> bool:
        """Returns whether nothing came for `idle_ms`."""
        return now_ms - self._heard_ms >= self._idle_ms

    def should_look(self, now_ms: int) -> bool:
        """Returns whether to find out if a quiet topic is at its end; every `idle_ms`, for it costs a round trip."""
        return self.is_quiet(now_ms) and now_ms - self._looked_ms >= self._idle_ms

    def look(self, *, is_at_end: bool, now_ms: int) -> None:
        """Takes note of whether everything in the topic has been observed."""
        self._is_at_end = is_at_end
        self._looked_ms = now_ms

    def is_idle(self, now_ms: int) -> bool:
        """Returns whether the topic is quiet because there is nothing to read, and so must not hold the pair back."""
        return self._is_at_end and self.is_quiet(now_ms)


class PairWatermark:
    """The watermark of one partition of `impressions` and `feedback` together; it never moves back.

    | impressions | feedback | watermark = out_of_orderness_ms before ... |
    |---|---|---|
    | live | live | the smaller of the two topics' event times |
    | live | idle | the impressions' event time (and the other way round) |
    | idle | idle | the processing clock: the last slates of a quiet night close too |
    """

    def __init__(
        self, impressions: TopicClock, feedback: TopicClock, *, out_of_orderness_ms: int, start_ms: int = NO_WATERMARK
    ) -> None:
        self.impressions = impressions
        self.feedback = feedback
        self._out_of_orderness_ms = out_of_orderness_ms
        self._watermark_ms = start_ms

    def advance(self, now_ms: int) -> int:
        """Returns the watermark at processing time `now_ms`, at least the one returned before."""
        live_ms = [clock.event_ms for clock in (self.impressions, self.feedback) if not clock.is_idle(now_ms)]
        event_ms = min(live_ms, default=now_ms)
        self._watermark_ms = max(self._watermark_ms, event_ms - self._out_of_orderness_ms)
        return self._watermark_ms
