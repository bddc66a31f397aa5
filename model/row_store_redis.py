"""The row store on Redis: a bucket is a string, and many are read by one `MGET`. Its keys: `model.row_store.RowKeys`.

Rows never expire, so `maxmemory-policy` must not be one that evicts any key (`allkeys-*`): a bucket that Redis threw
away looks like rows that do not exist.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from model.exceptions import StoreUnavailableError
from model.row_store import PIECE, RowKeys, rows_lost
from model.store import StoreConfig

_WRITE = """
-- KEYS: mark, bucket ...   ARGV: value of each bucket
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for n = 1, #ARGV do
  if ARGV[n] == '' then redis.call('UNLINK', KEYS[n + 1]) else redis.call('SET', KEYS[n + 1], ARGV[n]) end
end
return 1
"""


class RedisRowStore:
    """A `RowStore` on the Redis at `url`, for one model line, beside its snapshots. Connects on first use."""

    def __init__(self, url: str, model: str, config: StoreConfig | None = None) -> None:
        config = config or StoreConfig()
        timeout_s = config.timeout_ms / 1000
        self._keys = RowKeys(config.prefix, model)
        self._redis: Any = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._write = self._redis.register_script(_WRITE)

    def create(self, generation: str, num_buckets: int) -> None:
        """See `RowStore.create`."""
        with _unavailable():
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hset(self._keys.generations, generation, num_buckets)
            pipeline.set(self._keys.mark(generation), num_buckets)
            pipeline.execute()

    def generations(self) -> dict[str, int]:
        """See `RowStore.generations`."""
        with _unavailable():
            entries = self._redis.hgetall(self._keys.generations)
        return {generation.decode(): int(num_buckets) for generation, num_buckets in entries.items()}

    def has(self, generation: str) -> bool:
        """See `RowStore.has`."""
        with _unavailable():
            return bool(self._redis.exists(self._keys.mark(generation)))

    def read(self, generation: str, buckets: Sequence[int]) -> list[bytes | None]:
        """See `RowStore.read`."""
        with _unavailable():
            replies = self._redis.mget([self._keys.mark(generation), *self._keys.buckets(generation, buckets)])
        mark, *values = cast(list[bytes | None], replies)
        if mark is None:
            raise rows_lost(generation)
        return values

    def write(self, generation: str, values: Mapping[int, bytes]) -> None:
        """See `RowStore.write`."""
        buckets, mark = list(values), self._keys.mark(generation)
        for start in range(0, len(buckets), PIECE):
            piece = buckets[start : start + PIECE]
            keys = [mark, *self._keys.buckets(generation, piece)]
            with _unavailable():
                is_written = self._write(keys=keys, args=[values[bucket] for bucket in piece])
            if not is_written:
                raise rows_lost(generation)

    def drop(self, generation: str, buckets: range) -> None:
        """See `RowStore.drop`. The mark goes first."""
        with _unavailable():
            self._redis.unlink(self._keys.mark(generation))
            for start in range(0, len(buckets), PIECE):
                self._redis.unlink(*self._keys.buckets(generation, buckets[start : start + PIECE]))

    def forget(self, generation: str) -> None:
        """See `RowStore.forget`."""
        with _unavailable():
            self._redis.hdel(self._keys.generations, generation)

    def close(self) -> None:
        """See `RowStore.close`."""
        self._redis.close()


@contextmanager
def _unavailable() -> Iterator[None]:
    """Turns the client's errors into ours: whoever writes rows need not know Redis."""
    try:
        yield
    except redis.RedisError as error:
        raise StoreUnavailableError(f"row store does not answer: {error}") from error
