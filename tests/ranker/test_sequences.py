"""Reading sequences from a real Redis that is healthy, slow, paused, dead, restarted, or holds nonsense."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
import redis

from ranker.breaker import Breaker, BreakerConfig
from ranker.redis_get import MAX_UNHEARD, RedisGets
from ranker.sequences import RedisSequenceReader, SequenceConfig
from ranker.stats import RankerStats
from stream.codec import encode_sequence
from stream.schema import Sequence
from tests.ranker.given import Clock, RedisProcess, redis_process

SEQUENCE = Sequence(["i2", "i1"], ["order", "click"], [2_000, 1_000])
PATIENT = SequenceConfig(timeout_ms=5_000)
HASTY = SequenceConfig(timeout_ms=30, breaker=BreakerConfig(max_failures=3, open_ms=1_000))


@pytest.fixture
def server() -> Iterator[RedisProcess]:
    with redis_process() as process:
        yield process


class Reading:
    """Runs a test's body with a reader, in one event loop."""

    def __init__(self, url: str, config: SequenceConfig) -> None:
        self.clock, self.stats = Clock(), RankerStats()
        self.reader = RedisSequenceReader(url, config, self.stats, self.clock)

    def run(self, story: Callable[["Reading"], Awaitable[None]]) -> RankerStats:
        async def told() -> None:
            await story(self)
            self.reader.close()
            await asyncio.sleep(0)

        asyncio.run(told())
        return self.stats

    async def sequence(self) -> Sequence:
        return (await self.reader.read("u1")).sequence


def write(server: RedisProcess, value: bytes = encode_sequence(SEQUENCE)) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set("freshrank:seq:u1", value)


def test_a_users_sequence_is_read_and_a_stranger_has_an_empty_one(server: RedisProcess) -> None:
    write(server)

    async def story(reading: Reading) -> None:
        assert await reading.reader.read("u1") == (SEQUENCE, False)
        assert await reading.reader.read("stranger") == (Sequence(), False)

    assert Reading(server.url, PATIENT).run(story).sequences_read == 2


def test_a_value_of_any_size_and_with_any_bytes_arrives_whole(server: RedisProcess) -> None:
    long = Sequence(["i\r\n\u00e9" + "x" * 5_000] * 300, ["click"] * 300, [1] * 300)
    write(server, encode_sequence(long))

    async def story(reading: Reading) -> None:
        assert await reading.sequence() == long

    Reading(server.url, PATIENT).run(story)


def test_many_requests_at_once_each_get_their_own(server: RedisProcess) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.mset({f"freshrank:seq:u{n}": encode_sequence(Sequence([f"i{n}"], ["click"], [n])) for n in range(200)})

    async def story(reading: Reading) -> None:
        reads = await asyncio.gather(*(reading.reader.read(f"u{n}") for n in range(200)))
        assert [read.sequence.item_id for read in reads] == [[f"i{n}"] for n in range(200)]

    Reading(server.url, PATIENT).run(story)


@pytest.mark.parametrize("value", [b"", b"{", b'{"item_id": ["a"], "action": [], "ts": []}', b"\xff"])
def test_nonsense_is_an_empty_sequence_and_counted(server: RedisProcess, value: bytes) -> None:
    write(server, value)

    async def story(reading: Reading) -> None:
        assert await reading.reader.read("u1") == (Sequence(), True)
        assert not reading.reader.is_down

    assert Reading(server.url, PATIENT).run(story).sequences_failed == {"malformed": 1}


def test_a_key_of_another_type_is_refused_by_redis_and_costs_no_connection(server: RedisProcess) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.lpush("freshrank:seq:u1", "x")
        client.set("freshrank:seq:u2", encode_sequence(SEQUENCE))

    async def story(reading: Reading) -> None:
        both = await asyncio.gather(reading.reader.read("u1"), reading.reader.read("u2"))
        assert both[0] == (Sequence(), True) and both[1] == (SEQUENCE, False)

    assert Reading(server.url, PATIENT).run(story).sequences_failed == {"unavailable": 1}


def test_a_paused_redis_costs_three_timeouts_then_nobody_waits_and_one_in_a_while_tries(server: RedisProcess) -> None:
    write(server)

    async def story(reading: Reading) -> None:
        assert (await reading.reader.read("u1")).sequence in (SEQUENCE, Sequence())  # connects, however slowly
        reading.stats.sequences_failed.clear()
        reading.reader._breaker.succeeded()
        server.pause()
        for _ in range(50):
            assert await reading.reader.read("u1") == (Sequence(), True)
        assert reading.stats.sequences_failed == {"timeout": 3, "skipped": 47}
        assert reading.reader.is_down
        reading.clock.now_ms += HASTY.breaker.open_ms
        await reading.reader.read("u1")
        await reading.reader.read("u1")
        assert reading.stats.sequences_failed == {"timeout": 4, "skipped": 48}
        server.resume()
        for _ in range(200):
            reading.clock.now_ms += HASTY.breaker.open_ms
            if await reading.sequence() == SEQUENCE:
                break
        assert not reading.reader.is_down

    Reading(server.url, HASTY).run(story)


def test_a_reply_that_comes_after_its_reader_has_gone_is_nobody_elses(server: RedisProcess) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.mset({"a": "of a", "b": "of b"})

    async def story() -> None:
        gets = RedisGets(server.url)
        assert await gets.get("a", timeout_ms=5_000) == b"of a"
        server.pause()
        with pytest.raises(TimeoutError):
            await gets.get("a", timeout_ms=10)
        server.resume()
        assert await gets.get("b", timeout_ms=5_000) == b"of b"
        gets.close()

    asyncio.run(story())


def test_a_connection_that_nobody_closed_but_that_is_silent_is_made_anew(server: RedisProcess) -> None:
    write(server)

    async def story() -> None:
        gets = RedisGets(server.url)
        await gets.get("x", timeout_ms=5_000)
        server.pause()
        for _ in range(MAX_UNHEARD):
            with pytest.raises(TimeoutError):
                await gets.get("x", timeout_ms=5)
        silent = gets._connection
        server.resume()
        assert await gets.get("freshrank:seq:u1", timeout_ms=5_000) == encode_sequence(SEQUENCE)
        assert gets._connection is not silent
        gets.close()

    asyncio.run(story())


def test_an_attempt_to_connect_that_hears_nothing_is_given_up_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranker.redis_get.CONNECT_LIMIT_S", 0.05)

    async def story() -> int:
        num_attempts = 0

        async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal num_attempts
            num_attempts += 1
            await reader.read()
            writer.close()

        async with await asyncio.start_server(stay_silent, "127.0.0.1", 0) as server:
            gets = RedisGets(f"redis://:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
            while num_attempts < 3:
                with pytest.raises(TimeoutError):
                    await gets.get("key", 20)
            gets.close()
            await asyncio.sleep(0.1)
        return num_attempts

    assert asyncio.run(asyncio.wait_for(story(), 20)) == 3


def test_a_killed_redis_is_noticed_and_a_new_one_is_found(server: RedisProcess) -> None:
    write(server)

    async def story(reading: Reading) -> None:
        assert await reading.sequence() == SEQUENCE
        server.kill()
        for _ in range(10):
            assert await reading.reader.read("u1") == (Sequence(), True)
        assert reading.stats.sequences_failed == {"unavailable": 3, "skipped": 7}
        server.start()
        write(server)
        reading.clock.now_ms += PATIENT.breaker.open_ms
        assert await reading.reader.read("u1") == (SEQUENCE, False)
        assert not reading.reader.is_down

    Reading(server.url, PATIENT).run(story)


def test_a_loop_that_was_busy_for_longer_than_the_limit_still_gets_replies_that_were_in_time(
    server: RedisProcess,
) -> None:
    """Scoring holds the loop for milliseconds; a reply that waited behind it is no timeout."""
    write(server)

    async def story(reading: Reading) -> None:
        await reading.reader.read("u1")
        is_over = False

        async def busy() -> None:
            while not is_over:
                until_s = time.perf_counter() + 2 * HASTY.timeout_ms / 1000
                while time.perf_counter() < until_s:
                    pass
                await asyncio.sleep(0)

        other = asyncio.create_task(busy())
        failed_before = reading.stats.sequences_failed.total()
        for _ in range(10):
            await reading.sequence()
        is_over = True
        await other
        assert reading.stats.sequences_failed.total() <= failed_before + 1

    Reading(server.url, HASTY).run(story)


def test_user_password_and_database_of_the_address_are_used() -> None:
    with redis_process("--requirepass", "secret") as server:
        with redis.Redis(port=server.port, password="secret", db=3) as client:
            client.set("freshrank:seq:u1", encode_sequence(SEQUENCE))

        async def story(reading: Reading) -> None:
            assert await reading.sequence() == SEQUENCE

        Reading(f"redis://:secret@127.0.0.1:{server.port}/3", PATIENT).run(story)

        async def wrong(reading: Reading) -> None:
            assert await reading.reader.read("u1") == (Sequence(), True)

        stats = Reading(f"redis://:wrong@127.0.0.1:{server.port}/3", PATIENT).run(wrong)
        assert stats.sequences_failed == {"unavailable": 1}


def test_the_breaker_closes_again_only_after_a_success() -> None:
    breaker = Breaker(BreakerConfig(max_failures=2, open_ms=10))
    breaker.failed(0)
    assert breaker.allows(1) and not breaker.is_open
    breaker.failed(1)
    assert [breaker.allows(t) for t in (2, 10, 11, 12, 20, 21)] == [False, False, True, False, False, True]
    breaker.failed(21)
    assert not breaker.allows(30) and breaker.allows(31)
    breaker.succeeded()
    assert breaker.allows(32) and breaker.allows(32) and not breaker.is_open
