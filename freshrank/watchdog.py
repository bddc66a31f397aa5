"""Ends a process whose work stands still.

A client library that hangs in a call of its own takes no signal and raises nothing, while its heartbeats go on: such a
process would keep its partitions and do nothing with them. The only way out is to end it; what it had not committed is
done again by the next owner, as after any crash.
"""

import math
import os
import threading
from collections.abc import Callable

from freshrank.command import fail
from freshrank.exits import CommandError, ExitCode

_TICK_S = 1.0


class Watchdog:
    """Watches a loop that asks `should_stop` at each turn; a turn of more than `limit_s` ends the process.

    So does one call of the client library of more than `call_limit_s`: `call` returns the number of the call that is
    waited for, None if none is. Limits are counted in ticks of this process, not on a clock: time in which the process
    was stopped does not count.
    """

    def __init__(
        self,
        should_stop: Callable[[], bool],
        limit_s: float,
        end: Callable[[float], None],
        *,
        call: Callable[[], int | None] = lambda: None,
        call_limit_s: float = math.inf,
        tick_s: float = _TICK_S,
    ) -> None:
        self._should_stop = should_stop
        self._end = end
        self._watched: tuple[tuple[Callable[[], int | None], float], ...] = (
            (lambda: self._num_turns, limit_s),
            (call, call_limit_s),
        )
        self._tick_s = tick_s
        self._num_turns = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def should_stop(self) -> bool:
        """Returns what the function given returns, and notes that another turn has begun."""
        self._num_turns += 1
        return self._should_stop()

    def _watch(self) -> None:
        seen = [look() for look, _ in self._watched]
        stood_still_s = [0.0] * len(seen)
        while not self._is_over.wait(self._tick_s):
            for n, (look, limit_s) in enumerate(self._watched):
                now = look()
                stood_still_s[n] = stood_still_s[n] + self._tick_s if now is not None and now == seen[n] else 0.0
                seen[n] = now
                if stood_still_s[n] >= limit_s:
                    self._end(stood_still_s[n])
                    return


def end_process(stood_still_s: float) -> None:
    """Tells what has happened in one line and ends the process, `BROKER_GONE`."""
    sentence = (
        f"the Kafka client has not come back for {stood_still_s:g} s: ending without commit, another joiner or the "
        "next start goes on from what was committed"
    )
    os._exit(fail(CommandError(ExitCode.BROKER_GONE, sentence)))
