"""Rows that are not in memory, for one request: all that it lacks in one round trip, and what is known is kept.

Which rows a version has is the manifest's to say (`Manifest.cold_rows`): a model line without a row store never comes
here. What is not found in time is taken for the default row, and the answer says so.

Letters: N keys, C rows found, W embedding width.
"""

import logging
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import numpy as np
from redis.exceptions import RedisError

from model.hashing import Int64Array
from model.row_records import FoundRows, bucket_of, rows_as_of
from model.row_store import RowKeys, RowsAt
from model.serving import RowsBeside
from ranker.breaker import Breaker
from ranker.live import LiveModel
from ranker.redis_get import RedisGets
from ranker.row_cache import RowCache
from ranker.row_fetch_config import RowFetchConfig
from ranker.stats import RankerStats

logger = logging.getLogger(__name__)

FailureReason = Literal["timeout", "unavailable", "lost", "skipped"]


class Fetched(NamedTuple):
    """The rows of a request that are not in memory."""

    rows: RowsBeside | None
    """None: there are none."""
    is_degraded: bool
    """Whether there may be more than were found."""


class RowReader(Protocol):
    """Finds rows that are not in memory."""

    async def fetch(self, live: LiveModel, keys_N: Int64Array) -> Fetched:
        """Returns the rows of these keys as this version has them; to be asked when it has just become a request's.

        Never raises: a failure is no rows.
        """

    @property
    def is_down(self) -> bool:
        """Whether reads are failing at present."""

    def close(self) -> None:
        """Releases the connection."""


class NoRows:
    """A `RowReader` without a store: every row that is not in memory is missed."""

    is_down = False

    async def fetch(self, live: LiveModel, keys_N: Int64Array) -> Fetched:
        """See `RowReader.fetch`."""
        return Fetched(None, is_degraded=True)

    def close(self) -> None:
        """See `RowReader.close`."""


class RedisRowReader:
    """A `RowReader` on the Redis at `url`, for one model line and one event loop."""

    def __init__(
        self, url: str, keys: RowKeys, config: RowFetchConfig, stats: RankerStats, elapsed_ms: Callable[[], int]
    ) -> None:
        """Takes `elapsed_ms`, a clock that never goes back: one that was set back would keep the breaker open."""
        self._redis = RedisGets(url)
        self._keys = keys
        self._config = config
        self._stats = stats
        self._elapsed_ms = elapsed_ms
        self._breaker = Breaker(config.breaker)
        self._cache: RowCache | None = None
        self._cached_at: RowsAt | None = None  # whose answers the cache holds

    async def fetch(self, live: LiveModel, keys_N: Int64Array) -> Fetched:
        """See `RowReader.fetch`."""
        at, width = live.manifest.cold_rows, live.model.row_width
        assert at is not None, "the manifest says where its rows are"
        keys_N = np.unique(keys_N)
        cache = self._cache_of(live, at, width)
        found, is_known_N = cache.find(keys_N)
        asked = np.flatnonzero(~is_known_N)
        self._stats.rows_cached += len(keys_N) - len(asked)
        is_degraded = len(asked) > self._config.max_rows
        if is_degraded:
            self._stats.rows_failed["limit"] += 1
            asked = asked[: self._config.max_rows]
        if len(asked):
            answer = await self._ask(at, keys_N[asked], width)
            if answer is None:
                is_degraded = True
            else:
                found.weights_NW[asked], found.has_row_N[asked] = answer.weights_NW, answer.has_row_N
                is_degraded |= self._count(answer)
                if self._cached_at == at:  # no other version has gone live meanwhile
                    good = asked[~answer.is_bad_N]
                    cache.add(keys_N[good], found.weights_NW[good], found.has_row_N[good])
        if not found.has_row_N.any():
            return Fetched(None, is_degraded)
        return Fetched(RowsBeside(keys_N[found.has_row_N], found.weights_NW[found.has_row_N]), is_degraded)

    async def _ask(self, at: RowsAt, keys_N: Int64Array, width: int) -> FoundRows | None:
        """Returns what the store says of distinct, rising keys; None: nothing in time, which is counted."""
        if not self._breaker.allows(self._elapsed_ms()):
            return self._failed("skipped")
        buckets_U, bucket_N = np.unique(bucket_of(keys_N, at.num_buckets), return_inverse=True)
        names = [self._keys.mark(at.generation), *self._keys.buckets(at.generation, buckets_U.tolist())]
        try:
            mark, *values_U = await self._redis.mget(names, self._config.timeout_ms)
        except TimeoutError:
            return self._failed("timeout")
        except (RedisError, OSError):
            return self._failed("unavailable")
        if mark is None:
            return self._failed("lost")
        self._breaker.succeeded()
        return rows_as_of(values_U, keys_N, bucket_N, version=at.version, width=width)

    def _count(self, answer: FoundRows) -> bool:
        """Returns whether something stood there that is no row."""
        self._stats.rows_fetched += int(answer.has_row_N.sum())
        self._stats.rows_absent += int((~answer.has_row_N & ~answer.is_bad_N).sum())
        has_bad = bool(answer.is_bad_N.any())
        if has_bad:
            self._stats.rows_failed["malformed"] += 1
        return has_bad

    def _failed(self, reason: FailureReason) -> FoundRows | None:
        """Counts a failure. Returns None: there is no answer."""
        self._stats.rows_failed[reason] += 1
        if reason != "skipped":
            was_open = self._breaker.is_open
            self._breaker.failed(self._elapsed_ms())
            if self._breaker.is_open and not was_open:
                logger.warning("Rows are not found, requests go on with default rows: reason=%s", reason)
        return None

    def _cache_of(self, live: LiveModel, at: RowsAt, width: int) -> RowCache:
        """Returns the cache, rid of what has changed in the store up to this version, or emptied if nobody can tell."""
        before, self._cached_at = self._cached_at, at
        if self._cache is not None and before == at:
            return self._cache
        changed = live.changed_since(before) if before is not None else None
        if self._cache is None or changed is None:
            self._cache = RowCache(self._config.cache_rows, width=width)
        else:
            self._cache.drop(changed)
        return self._cache

    @property
    def is_down(self) -> bool:
        """See `RowReader.is_down`."""
        return self._breaker.is_open

    def close(self) -> None:
        """See `RowReader.close`."""
        self._redis.close()
