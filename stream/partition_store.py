"""State of partitions in Redis: a value and the offset it goes on from, one never without the other.

Keys `<prefix><topic>:<partition>`, hashes. A state is only replaced by one that goes further: a worker that was cut
off and comes back late cannot put an older one over it.
"""

from typing import Any, cast

from redis.asyncio import Redis

_SAVE = """
local held = redis.call('HGET', KEYS[1], 'offset')
if held and tonumber(held) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'offset', ARGV[1], 'state', ARGV[2])
return 1
"""


class PartitionStore:
    """The states of one topic's partitions. Every method raises `redis.RedisError` while Redis is gone."""

    def __init__(self, redis: Redis, *, prefix: str, topic: str) -> None:
        self._redis: Any = redis  # its types do not tell the answers of scripts and hashes
        self._save = self._redis.register_script(_SAVE)
        self._key = f"{prefix}{topic}:"

    async def load(self, partition: int) -> bytes | None:
        """Returns a partition's state; None if there is none."""
        return cast(bytes | None, await self._redis.hget(f"{self._key}{partition}", "state"))

    async def save(self, partition: int, next_offset: int, state: bytes) -> bool:
        """Stores a partition's state; returns False, having done nothing, if the one stored goes further."""
        return bool(await self._save(keys=[f"{self._key}{partition}"], args=[next_offset, state]))

    async def discard(self, partition: int) -> None:
        """Forgets a partition's state."""
        await self._redis.delete(f"{self._key}{partition}")
