"""When the feedback that a version is the first to know happened, was joined and was learned."""

import numpy as np

from model.metrics import Int64Array
from model.snapshot import MAX_FEEDBACK_TIMES


class FeedbackSample:
    """Feedback learned since the last version that went live: evenly thinned, never unbounded.

    >>> sample = FeedbackSample()
    >>> sample.add(np.array([1_000, 1_200]), np.array([1_300, 1_300]), trained_ms=1_350)
    >>> sample.stamps().tolist()
    [[1000, 1300, 1350], [1200, 1300, 1350]]
    """

    _ROOM = 16 * MAX_FEEDBACK_TIMES

    def __init__(self) -> None:
        self._stamps_N3: Int64Array = np.empty((0, 3), np.int64)

    def add(self, event_ms_N: Int64Array, joined_ms_N: Int64Array, trained_ms: int) -> None:
        """Takes in when actions happened, when the joiner wrote them to the log (-1 unknown), when they were learned.

        All in ms since the epoch; the first by the clock of who saw the action, the others processing time.
        """
        new_N3 = np.stack([event_ms_N, joined_ms_N, np.full_like(event_ms_N, trained_ms)], axis=1)
        self._stamps_N3 = np.concatenate([self._stamps_N3, new_N3])
        if len(self._stamps_N3) > self._ROOM:
            self._stamps_N3 = self._stamps_N3[::2]

    def stamps(self) -> Int64Array:
        """Returns the three times of at most `MAX_FEEDBACK_TIMES` actions, stamps_N3."""
        num_kept = min(len(self._stamps_N3), MAX_FEEDBACK_TIMES)
        return self._stamps_N3[np.linspace(0, len(self._stamps_N3) - 1, num_kept).astype(np.int64)]

    def clear(self) -> None:
        """Starts anew: those actions belong to a live version now."""
        self._stamps_N3 = self._stamps_N3[:0]
