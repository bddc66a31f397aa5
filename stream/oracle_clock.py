"""How far the joiner's watermark can have been, and must be, judged by the log alone.

The joiner's watermark depends on when it read what, and nobody has written that down. Two bounds can be told from the
log, and they are all that a judgement needs:

- **at most**, when it read a message: the largest event time before it in its topic, less `out_of_orderness_ms`. A
  topic that is quiet does not hold the watermark back, so after a pause it may also have gone on with the clock until
  the message that ended the pause was logged. What is in time by this bound was in time.
- **at least**, in the end: what the joiner has written next to its labels, and what the log makes it reach if it is no
  more than `lag_ms` behind.
"""

from stream.oracle import OracleConfig


class ReadClock:
    """One partition of an input topic: messages in, in offset order; bounds out."""

    def __init__(self, config: OracleConfig, *, slack_ms: int) -> None:
        """`slack_ms`: how much later than it was logged a message after a pause may have been read."""
        self._config = config
        self._slack_ms = slack_ms
        self._event_ms = -1
        self._quiet_until_ms = -1
        self._logged_ms = -1

    def read(self, logged_ms: int) -> int:
        """Returns the largest watermark that there can have been when the next message was read.

        `logged_ms` is the log's own time of the message, -1 if unknown: the log is taken to have no pauses then.
        """
        config = self._config
        if logged_ms >= 0:
            # Half of it, as clocks of several machines have stamped the messages.
            if self._logged_ms < 0 or logged_ms - self._logged_ms >= config.idle_ms // 2:
                self._quiet_until_ms = max(self._quiet_until_ms, logged_ms + self._slack_ms + config.max_ahead_ms)
            self._logged_ms = max(self._logged_ms, logged_ms)
        return max(self._event_ms, self._quiet_until_ms) - config.out_of_orderness_ms

    def observe(self, event_ms: int) -> None:
        """Takes note of the event time of the message, if it could be decoded."""
        self._event_ms = max(self._event_ms, event_ms)


class ReachClock:
    """What both topics of one partition make the joiner's watermark reach at least."""

    def __init__(self, config: OracleConfig, *, as_of_ms: int | None, lag_ms: int) -> None:
        """`as_of_ms`: when the log was read; None for a recorded one, which ends with its last event."""
        self._config = config
        self._known_ms = None if as_of_ms is None else as_of_ms - lag_ms
        self._event_ms = {"impressions": -1, "feedback": -1}
        self._logged_ms = {"impressions": -1, "feedback": -1}

    def observe(self, topic: str, event_ms: int, logged_ms: int) -> None:
        """Takes one event of either topic."""
        self._logged_ms[topic] = max(self._logged_ms[topic], logged_ms)
        if self._known_ms is not None and logged_ms > self._known_ms:
            return
        if logged_ms >= 0:
            event_ms = min(event_ms, logged_ms + self._config.max_ahead_ms)
        self._event_ms[topic] = max(self._event_ms[topic], event_ms)

    @property
    def watermark_ms(self) -> int:
        """The watermark that has been reached for certain; negative if none."""
        live = list(self._event_ms.values())
        if self._known_ms is not None:
            quiet_from_ms = self._known_ms - 2 * self._config.idle_ms
            live = [self._event_ms[topic] for topic, logged in self._logged_ms.items() if logged > quiet_from_ms]
        return min(live, default=self._known_ms or -1) - self._config.out_of_orderness_ms
