"""How good the served rankings truly are: between random, 0, and the best possible, 1."""

from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class Lift:
    """Sums of true expected utility over requests: as served, in random order, in the best order."""

    requests: int = 0
    served: float = 0.0
    random: float = 0.0
    best: float = 0.0

    @property
    def share(self) -> float:
        """`(served - random) / (best - random)`; 0.0 before anything could be gained."""
        room = self.best - self.random
        return (self.served - self.random) / room if room > 0 else 0.0

    @property
    def regret(self) -> float:
        """Utility lost against the best order, per request."""
        return (self.best - self.served) / self.requests if self.requests else 0.0

    def add(self, served: float, random: float, best: float, *, sign: int = 1) -> None:
        """Adds one request, or takes it out again with `sign=-1`."""
        self.requests += sign
        self.served += sign * served
        self.random += sign * random
        self.best += sign * best


class LiftMeter:
    """Lift over the whole run and over the last `window_requests` requests.

    >>> meter = LiftMeter(window_requests=1)
    >>> for served in (1.0, 2.5):
    ...     meter.add(served=served, random=1.0, best=3.0)
    >>> meter.lifetime.share, meter.window.share
    (0.375, 0.75)
    """

    def __init__(self, window_requests: int = 1_000) -> None:
        self.lifetime = Lift()
        self.window = Lift()
        self._recent: deque[tuple[float, float, float]] = deque()
        self._window_requests = window_requests

    def add(self, *, served: float, random: float, best: float) -> None:
        """Adds one request's true expected utilities."""
        self.lifetime.add(served, random, best)
        self.window.add(served, random, best)
        self._recent.append((served, random, best))
        if len(self._recent) > self._window_requests:
            self.window.add(*self._recent.popleft(), sign=-1)
