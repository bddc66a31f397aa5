"""The metrics agent on a real Redis: each message counts once, whoever takes it up and however often it comes."""

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stream.agents_config import AgentCounters
from stream.metrics_agent import Delivery, MetricsAgent
from stream.online_metrics import PartitionMetrics
from stream.online_metrics_config import OnlineMetricsConfig
from stream.partition_store import PartitionStore
from stream.settled_labels import read_settled
from tests.stream.served_labels import SCHEMA, random_log

CONFIG = OnlineMetricsConfig(window_labels=60, cohort_labels=25, drift_block_labels=10)
LOG = [Delivery(0, 3 * n, value) for n, value in enumerate(random_log(5, 20))]  # transactions leave gaps


def expected(deliveries: list[Delivery]) -> bytes:
    metrics = PartitionMetrics(CONFIG)
    for delivery in deliveries:
        metrics.fold(delivery.offset, read_settled(delivery.value, tuple(SCHEMA.tasks)))
    return metrics.encode()


class Workers:
    """Agents that share one store."""

    def __init__(self, redis: Redis) -> None:
        self.store = PartitionStore(redis, prefix=f"{uuid.uuid4().hex}:", topic="examples")
        self.end = 1_000

    def agent(self) -> MetricsAgent:
        async def end_offset(_partition: int) -> int:
            return self.end

        self.counters = AgentCounters()
        return MetricsAgent(CONFIG, SCHEMA, self.store, self.counters, end_offset)


@pytest.fixture
def run(redis_server: str) -> Callable[[Callable[[Workers], Awaitable[None]]], None]:
    async def with_redis(test: Callable[[Workers], Awaitable[None]]) -> None:
        async with Redis.from_url(redis_server) as redis:
            await test(Workers(redis))

    return lambda test: asyncio.run(with_redis(test))


def test_a_message_that_comes_again_changes_nothing(run) -> None:
    async def test(workers: Workers) -> None:
        agent = workers.agent()
        for delivered in (LOG[:12], LOG[4:12], LOG[9:], LOG):
            await agent.take(delivered)
        assert await workers.store.load(0) == expected(LOG)
        assert workers.counters.examples_repeated == 8 + 3 + len(LOG)

    run(test)


def test_another_agent_goes_on_from_the_stored_state(run) -> None:
    async def test(workers: Workers) -> None:
        await workers.agent().take(LOG[:10])
        agent = workers.agent()
        await agent.take(LOG[6:])
        assert await workers.store.load(0) == expected(LOG)
        assert (workers.counters.examples_repeated, len(agent.figures())) == (4, 4)

    run(test)


def test_an_agent_that_was_cut_off_cannot_set_the_state_back(run) -> None:
    async def test(workers: Workers) -> None:
        late, owner = workers.agent(), workers.agent()
        await late.take(LOG[:5])
        await owner.take(LOG[3:15])
        await late.take(LOG[5:8])
        assert await workers.store.load(0) == expected(LOG[:15])
        await late.take(LOG[8:])  # it has read the other one's state, and is right again
        assert await workers.store.load(0) == expected(LOG)

    run(test)


def test_what_is_in_memory_is_read_back_after_a_rebalance(run) -> None:
    async def test(workers: Workers) -> None:
        agent, other = workers.agent(), workers.agent()
        await agent.take(LOG[:5])
        agent.forget()
        assert agent.figures() == []
        await other.take(LOG[5:9])
        await agent.take(LOG[9:])
        assert await workers.store.load(0) == expected(LOG)

    run(test)


def test_a_state_beyond_the_end_is_of_a_topic_that_is_gone(run) -> None:
    async def test(workers: Workers) -> None:
        await workers.agent().take(LOG)
        workers.end = LOG[-1].offset
        again = workers.agent()
        await again.take(LOG[:3])
        assert await workers.store.load(0) == expected(LOG[:3])

    run(test)


def test_a_damaged_state_starts_anew(run) -> None:
    async def test(workers: Workers) -> None:
        await workers.store.save(0, 900, b"damaged")
        await workers.agent().take(LOG)
        assert await workers.store.load(0) == expected(LOG)

    run(test)


def test_a_message_that_cannot_be_read_is_counted_and_passed(run) -> None:
    async def test(workers: Workers) -> None:
        agent = workers.agent()
        await agent.take([LOG[0], Delivery(0, 1, b"poison"), LOG[1], Delivery(0, LOG[1].offset + 1, b"poison")])
        assert workers.counters.examples_malformed == 2
        await agent.take(LOG[2:])
        assert await workers.store.load(0) == expected(LOG)

    run(test)


def test_partitions_are_kept_apart(run) -> None:
    async def test(workers: Workers) -> None:
        other = [Delivery(1, n, value) for n, value in enumerate(random_log(6, 20))]
        await workers.agent().take([delivery for pair in zip(LOG, other, strict=True) for delivery in pair])
        assert await workers.store.load(0) == expected(LOG)
        assert await workers.store.load(1) == expected(other)

    run(test)


def test_alarms_count_once_when_they_are_stored(run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Down(PartitionStore):
        async def save(self, partition: int, next_offset: int, state: bytes) -> bool:
            nonlocal num_asked
            num_asked += 1
            assert not agent.alarms
            if num_asked == 1:
                raise RedisConnectionError("gone")
            return await PartitionStore.save(self, partition, next_offset, state)

    async def test(workers: Workers) -> None:
        nonlocal agent
        workers.store.__class__ = Down
        agent = workers.agent()
        monkeypatch.setattr("stream.online_drift.DriftDetector.update", lambda *_: next(updates) and 1)
        await agent.take(LOG)
        assert sum(agent.alarms.values()) == next(updates) - 1 > 4
        assert workers.counters.redis_failures == 1

    num_asked, updates = 0, itertools.count(1)
    agent = None
    run(test)
