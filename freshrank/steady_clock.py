"""The time of day for those who must not follow it when it jumps.

A joiner whose topics are silent lets its clock carry the watermark on, and a watermark never comes back: a clock that
is set an hour ahead for a moment would close every open window. A ranker would date slates by it that nobody's feedback
fits. So they go by the time since the machine was started, held to the wall clock in small steps. A jump is believed
only when it has lasted: then it was this clock that was wrong.
"""

import logging
import time
from collections.abc import Callable

_logger = logging.getLogger(__name__)
STEP_MS = 1_000
"""Differences up to this are followed at once: no two machines agree on less."""
BELIEVED_AFTER_MS = 600_000
"""How long a jump must have lasted. A virtual machine that was halted is behind for as long, and its labels late."""


class SteadyClock:
    """A wall clock without jumps.

    >>> wall_ms, elapsed_ms = [50_000], [0]
    >>> clock = SteadyClock(lambda: wall_ms[0], lambda: elapsed_ms[0])
    >>> wall_ms[0], elapsed_ms[0] = 3_650_100, 100
    >>> clock.now_ms()
    50100
    """

    def __init__(self, wall_ms: Callable[[], int], elapsed_ms: Callable[[], int]) -> None:
        """`wall_ms` is ms since the epoch; `elapsed_ms` never goes back, and goes on while the machine sleeps."""
        self._wall_ms = wall_ms
        self._elapsed_ms = elapsed_ms
        self._offset_ms = wall_ms() - elapsed_ms()
        self._jumped_ms: int | None = None

    def now_ms(self) -> int:
        """Returns ms since the epoch."""
        elapsed_ms = self._elapsed_ms()
        ahead_ms = self._wall_ms() - elapsed_ms - self._offset_ms
        if abs(ahead_ms) <= STEP_MS:
            self._follow(ahead_ms)
        elif self._jumped_ms is None:
            self._jumped_ms = elapsed_ms
            _logger.warning("The wall clock has jumped, going on without it. ahead_ms=%d", ahead_ms)
        elif elapsed_ms - self._jumped_ms >= BELIEVED_AFTER_MS:
            _logger.warning("The wall clock has not come back, following it. ahead_ms=%d", ahead_ms)
            self._follow(ahead_ms)
        return elapsed_ms + self._offset_ms

    def _follow(self, ahead_ms: int) -> None:
        self._offset_ms += ahead_ms
        self._jumped_ms = None


def since_boot_ms() -> int:
    """Returns ms since the machine was started, its sleep included where the system can tell."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1_000_000
