"""Requests go first: work beside the event loop waits for moments in which nobody is being answered.

In one interpreter only one thread at a time runs Python. A thread that builds the next version while a request is
scored takes turns with it, and the request pays. So that thread asks here between its steps, and goes on when no
request is under way, or when it has waited long enough: a ranker that is never idle gets new versions all the same.
"""

import threading
from collections.abc import Callable
from types import TracebackType

PATIENCE_S = 0.25
"""Seconds that one piece of work beside the requests waits for them, over all its steps."""


class RightOfWay:
    """Entered by the event loop, once for each request; asked by other threads."""

    def __init__(self, elapsed_s: Callable[[], float], patience_s: float = PATIENCE_S) -> None:
        """`elapsed_s` is a clock that never goes back, in seconds."""
        self._elapsed_s = elapsed_s
        self._patience_s = patience_s
        self._num_under_way = 0
        self._is_free = threading.Event()
        self._is_free.set()

    def __enter__(self) -> None:
        self._num_under_way += 1
        self._is_free.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._num_under_way -= 1
        if not self._num_under_way:
            self._is_free.set()

    def patience(self) -> Callable[[], None]:
        """Returns a function to be called between the steps of one piece of work: it waits while requests are."""
        left_s = self._patience_s

        def give_way() -> None:
            nonlocal left_s
            until_s = self._elapsed_s() + left_s
            while self._num_under_way and left_s > 0:  # asked again: the next request may have come since it was free
                self._is_free.wait(left_s)
                left_s = until_s - self._elapsed_s()

        return give_way
