"""Sequences in Redis: a batch of users read, merged and written in three round trips, whatever its size."""

from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import WatchError

from stream import sequences
from stream.exceptions import DecodeError
from stream.schema import Feedback
from stream.sequences import StoredSequence


class SequenceStore:
    """Keys `<prefix><user_id>`; a value that is not a sequence is replaced."""

    def __init__(self, redis: Redis, *, prefix: str, length: int, ttl_s: int) -> None:
        self._redis = redis
        self._prefix = prefix
        self._length = length
        self._ttl_s = ttl_s
        self.num_conflicts = 0
        """Batches tried again because another writer had changed one of their users."""
        self.num_replaced = 0
        """Values in Redis that were not sequences of ours."""

    async def add(self, feedback_of: Mapping[str, Sequence[Feedback]]) -> None:
        """Adds feedback to the sequences of its users, all or none; one that stays as it is, is not written.

        Normally a user's partition has one reader. Around a rebalance it can have two; so the write holds only if
        nobody else has written in between, and is otherwise done again on what is there then.

        Raises:
            redis.RedisError: Redis is gone or refuses; nothing was written, or all of it.
        """
        keys = [self._prefix + user_id for user_id in feedback_of]
        while True:
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(*keys)
                values = await pipe.mget(keys)
                pipe.multi()  # type: ignore[no-untyped-call]  # redis-py has not typed it
                for key, value, feedback in zip(keys, values, feedback_of.values(), strict=True):
                    merged = sequences.encode(sequences.merge(self._decode(value), feedback, self._length))
                    if merged != value:  # else nothing new: the user has not come back, and is to be forgotten in time
                        pipe.set(key, merged, ex=self._ttl_s)
                try:
                    await pipe.execute()
                    return
                except WatchError:
                    self.num_conflicts += 1

    def _decode(self, value: Any) -> StoredSequence:
        if value is None:
            return StoredSequence()
        try:
            return sequences.decode(value)
        except DecodeError:
            self.num_replaced += 1
            return StoredSequence()
