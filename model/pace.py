"""When something is due again, on a clock that somebody may set: a step back must not make it wait for the way back."""

from collections.abc import Callable


class Pace:
    """Due once so much time has passed; at once if the clock was set back behind where the wait began.

    >>> time_ms = [5_000]
    >>> pace = Pace(lambda: time_ms[0])
    >>> pace.wait(100)
    >>> due = []
    >>> for time_ms[0] in (5_099, 5_100, 1_000):
    ...     due.append(pace.is_due())
    >>> due
    [False, True, True]
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        """Due from the start; `now_ms` is a wall clock."""
        self._now_ms = now_ms
        self._from_ms = now_ms()
        self._wait_ms = 0

    def wait(self, wait_ms: int) -> None:
        """Is due `wait_ms` from now."""
        self._from_ms, self._wait_ms = self._now_ms(), wait_ms

    def left_ms(self) -> int:
        """Returns how long the wait still is; 0 once it is over."""
        passed_ms = self._now_ms() - self._from_ms
        return self._wait_ms - passed_ms if 0 <= passed_ms < self._wait_ms else 0

    def is_due(self) -> bool:
        """Returns whether the wait is over."""
        return self.left_ms() == 0
