"""`freshrank` with a wall clock that can be moved while it runs: `python -m tests.drills.clock FILE join --config ...`.

FILE holds the seconds by which the clock is ahead. What does not ask Python for the time of day is as ever: durations,
and the C library of the Kafka client. libfaketime would move that one too, but a ranker hangs in it within seconds.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

_LOOK_EVERY_S = 0.1


class MovableClock:
    """Time of day plus what the file says, looked up ten times a second."""

    def __init__(self, path: Path, time_ns: Callable[[], int], monotonic_s: Callable[[], float]) -> None:
        self._path, self._time_ns, self._monotonic_s = path, time_ns, monotonic_s
        self._ahead_ns = 0
        self._due_s = 0.0

    def time_ns(self) -> int:
        """Returns ns since the epoch, by this clock."""
        now_s = self._monotonic_s()
        if now_s >= self._due_s:
            self._due_s = now_s + _LOOK_EVERY_S
            self._ahead_ns = int(self._path.read_text()) * 1_000_000_000
        return self._time_ns() + self._ahead_ns

    def time(self) -> float:
        """Returns seconds since the epoch, by this clock."""
        return self.time_ns() / 1e9


def main() -> None:
    """Moves the clock, then runs the command."""
    clock = MovableClock(Path(sys.argv[1]), time.time_ns, time.monotonic)
    time.time_ns, time.time = clock.time_ns, clock.time
    sys.argv[:2] = ["freshrank"]
    from freshrank.cli import main as freshrank

    freshrank()


if __name__ == "__main__":
    main()
