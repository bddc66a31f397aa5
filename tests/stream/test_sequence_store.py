"""Sequences in a real Redis: what is written when, and for how long it stays."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from stream.schema import Feedback
from stream.sequence_store import SequenceStore
from stream.sequences import decode

TTL_S = 1_000


def act(n: int, ts: int) -> Feedback:
    return Feedback("r1", "u1", f"i{n}", "click", ts, event_id=f"e{n}")


class Users:
    """A store of sequences of three."""

    def __init__(self, redis: Redis) -> None:
        self.redis, self.prefix = redis, f"{uuid.uuid4().hex}:"
        self.store = SequenceStore(redis, prefix=self.prefix, length=3, ttl_s=TTL_S)

    async def add(self, *feedback: Feedback) -> None:
        await self.store.add({"u1": feedback})

    async def items(self) -> list[str]:
        value = await self.redis.get(f"{self.prefix}u1")
        return decode(value).item_id if value else []

    async def ttl_after(self, *feedback: Feedback) -> int:
        """Returns the time to live after adding feedback, had it been 5 s before."""
        await self.redis.expire(f"{self.prefix}u1", 5)
        await self.add(*feedback)
        return int(await self.redis.ttl(f"{self.prefix}u1"))


@pytest.fixture
def run(redis_server: str) -> Callable[[Callable[[Users], Awaitable[None]]], None]:
    async def with_redis(test: Callable[[Users], Awaitable[None]]) -> None:
        async with Redis.from_url(redis_server) as redis:
            await test(Users(redis))

    return lambda test: asyncio.run(with_redis(test))


def test_what_has_fallen_out_does_not_come_back(run) -> None:
    async def test(users: Users) -> None:
        for n in range(6):
            await users.add(act(n, ts=10 * n))
        await users.add(act(0, ts=0), act(2, ts=20))  # duplicates of what is gone
        await users.add(act(9, ts=25))  # older than all that is kept
        assert await users.items() == ["i5", "i4", "i3"]
        await users.add(act(10, ts=45))  # late, but not too late
        assert await users.items() == ["i5", "i10", "i4"]

    run(test)


def test_it_is_forgotten_in_time_unless_there_is_news(run) -> None:
    async def test(users: Users) -> None:
        await users.add(act(1, ts=1))
        assert TTL_S - 5 <= await users.redis.ttl(f"{users.prefix}u1") <= TTL_S
        assert await users.ttl_after(act(1, ts=1)) <= 5
        assert await users.ttl_after(act(2, ts=2)) > 5

    run(test)


def test_two_writers_at_once_lose_nothing(run) -> None:
    async def test(users: Users) -> None:
        await asyncio.gather(*(users.add(act(n, ts=n)) for n in range(8)))
        assert await users.items() == ["i7", "i6", "i5"]

    run(test)


def test_a_value_that_is_no_sequence_is_replaced(run) -> None:
    async def test(users: Users) -> None:
        await users.redis.set(f"{users.prefix}u1", b"{broken")
        await users.add(act(1, ts=1))
        assert await users.items() == ["i1"]
        assert users.store.num_replaced == 1

    run(test)
