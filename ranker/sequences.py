"""The user's last actions, read from Redis with one command per request; an answer never waits long for them."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ranker.breaker import Breaker, BreakerConfig
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
    max_connections: int = 64
    """Most connections to Redis; at least 1."""
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    """When a Redis that does not answer is left alone."""

    def __post_init__(self) -> None:
        for name in ("timeout_ms", "max_connections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")


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

    async def close(self) -> None:
        """Releases the connections."""


class RedisSequenceReader:
    """A `SequenceReader` on Redis, for one event loop.

    While Redis does not answer, a breaker lets one request per `breaker.open_ms` try; the others go without at once.
    """

    def __init__(self, url: str, config: SequenceConfig, stats: RankerStats, now_ms: Callable[[], int]) -> None:
        # No retries of the client's own: they would multiply the timeout.
        self._redis = Redis.from_url(
            url, max_connections=config.max_connections, retry=Retry(NoBackoff(), 0), socket_timeout=None
        )
        self._config = config
        self._stats = stats
        self._now_ms = now_ms
        self._breaker = Breaker(config.breaker)

    async def read(self, user_id: str) -> SequenceRead:
        """See `SequenceReader.read`."""
        if not self._breaker.allows(self._now_ms()):
            return self._without("skipped")
        try:
            async with asyncio.timeout(self._config.timeout_ms / 1000):
                value = await self._redis.get(self._config.prefix + user_id)
        except TimeoutError:
            return self._without("timeout")
        except (RedisError, OSError):
            return self._without("unavailable")
        self._breaker.succeeded()
        try:
            sequence = EMPTY if value is None else decode_sequence(cast(bytes, value))
        except DecodeError:
            return self._without("malformed")
        self._stats.sequences_read += 1
        return SequenceRead(sequence, is_degraded=False)

    def _without(self, reason: FailureReason) -> SequenceRead:
        self._stats.sequences_failed[reason] += 1
        if reason in ("timeout", "unavailable"):
            was_open = self._breaker.is_open
            self._breaker.failed(self._now_ms())
            if self._breaker.is_open and not was_open:
                logger.warning("Redis does not answer, requests go on without sequences: reason=%s", reason)
        return SequenceRead(EMPTY, is_degraded=True)

    @property
    def is_down(self) -> bool:
        """See `SequenceReader.is_down`."""
        return self._breaker.is_open

    async def close(self) -> None:
        """See `SequenceReader.close`."""
        await self._redis.aclose()
