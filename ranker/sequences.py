"""The user's last actions, read from Redis with one command per request; an answer never waits long for them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from redis.exceptions import RedisError

from ranker.breaker import Breaker, BreakerConfig
from ranker.redis_get import RedisGets
from ranker.stats import RankerStats
from stream.codec import decode_sequence
from stream.exceptions import DecodeError
from stream.schema import Sequence

logger = logging.getLogger(__name__)

FailureReason = Literal["timeout", "unavailable", "malformed", "skipped"]
EMPTY = Sequence()


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceConfig:
    """Where sequences are, and how long a request may wait for its own."""

    prefix: str = "freshrank:seq:"
    """In front of the user id in every key; the agents write the same."""
    timeout_ms: int = 20
    """Milliseconds to wait for Redis, connecting included; at least 1."""
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    """When a Redis that does not answer is left alone."""

    def __post_init__(self) -> None:
        if self.timeout_ms < 1:
            raise ValueError(f"timeout_ms: {self.timeout_ms} is not allowed; at least 1")


class SequenceRead(NamedTuple):
    """A user's sequence, empty if the read failed."""

    sequence: Sequence
    is_degraded: bool


class SequenceReader(Protocol):
    """Finds the sequence of a user."""

    async def read(self, user_id: str) -> SequenceRead:
        """Returns the user's last actions, newest first. Never raises: a failure is an empty sequence."""

    @property
    def is_down(self) -> bool:
        """Whether reads are failing at present."""

    def close(self) -> None:
        """Releases the connections."""


class RedisSequenceReader:
    """A `SequenceReader` on Redis, for one event loop.

    While Redis does not answer, a breaker lets one request per `breaker.open_ms` try; the others go without at once.
    """

    def __init__(self, url: str, config: SequenceConfig, stats: RankerStats, elapsed_ms: Callable[[], int]) -> None:
        """Takes `elapsed_ms`, a clock that never goes back: one that was set back would keep the breaker open."""
        self._redis = RedisGets(url)
        self._config = config
        self._stats = stats
        self._elapsed_ms = elapsed_ms
        self._breaker = Breaker(config.breaker)

    async def read(self, user_id: str) -> SequenceRead:
        """See `SequenceReader.read`."""
        if not self._breaker.allows(self._elapsed_ms()):
            return self._without("skipped")
        try:
            value = await self._redis.get(self._config.prefix + user_id, self._config.timeout_ms)
        except TimeoutError:
            return self._without("timeout")
        except (RedisError, OSError):
            return self._without("unavailable")
        self._breaker.succeeded()
        try:
            sequence = EMPTY if value is None else decode_sequence(value)
        except DecodeError:
            return self._without("malformed")
        self._stats.sequences_read += 1
        return SequenceRead(sequence, is_degraded=False)

    def _without(self, reason: FailureReason) -> SequenceRead:
        self._stats.sequences_failed[reason] += 1
        if reason in ("timeout", "unavailable"):
            was_open = self._breaker.is_open
            self._breaker.failed(self._elapsed_ms())
            if self._breaker.is_open and not was_open:
                logger.warning("Redis does not answer, requests go on without sequences: reason=%s", reason)
        return SequenceRead(EMPTY, is_degraded=True)

    @property
    def is_down(self) -> bool:
        """See `SequenceReader.is_down`."""
        return self._breaker.is_open

    def close(self) -> None:
        """See `SequenceReader.close`."""
        self._redis.close()
