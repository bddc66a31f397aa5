"""A circuit breaker: a service that is down is asked once in a while, not once per request."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """When to stop asking, and when to try again."""

    max_failures: int = 3
    """Failures in a row that open the breaker; at least 1."""
    open_ms: int = 1_000
    """Milliseconds without asking before one request tries again; at least 1."""

    def __post_init__(self) -> None:
        for name in ("max_failures", "open_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")


class Breaker:
    """Closed (ask) -> open (do not ask) -> one trial -> closed again, or open for another while. For one thread.

    >>> breaker = Breaker(BreakerConfig(max_failures=1, open_ms=100))
    >>> breaker.failed(now_ms=0)
    >>> [breaker.allows(now_ms) for now_ms in (99, 100, 101)]  # one trial at 100, nobody else until it is decided
    [False, True, False]
    >>> breaker.succeeded()
    >>> breaker.allows(102)
    True
    """

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self._num_failures = 0
        self._retry_ms = 0

    @property
    def is_open(self) -> bool:
        """Whether the service counts as down."""
        return self._num_failures >= self._config.max_failures

    def allows(self, now_ms: int) -> bool:
        """Returns whether to ask now; a True while the breaker is open is the trial."""
        if not self.is_open:
            return True
        if now_ms < self._retry_ms:
            return False
        self._retry_ms = now_ms + self._config.open_ms
        return True

    def succeeded(self) -> None:
        """Notes an answer."""
        self._num_failures = 0

    def failed(self, now_ms: int) -> None:
        """Notes a failure."""
        self._num_failures += 1
        self._retry_ms = now_ms + self._config.open_ms
