"""A ranker that holds only hot rows answers, bit by bit, as one that holds all, or says that it could not."""

import asyncio
from collections.abc import Awaitable, Iterator
from typing import Any

import numpy as np
import pytest
import redis
from redis.exceptions import ResponseError

from model.hashing import Int64Array
from model.row_records import FoundRows
from model.row_store import RowsAt
from ranker.redis_get import RedisGets
from ranker.row_fetch import NoRows, RedisRowReader
from ranker.row_fetch_config import RowFetchConfig
from tests.ranker.cold_given import HASTY, ColdLine, request_of
from tests.ranker.given import RedisProcess, redis_process

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisProcess]:
    with redis_process() as process:
        yield process


@pytest.fixture
def server(shared: RedisProcess) -> RedisProcess:
    with redis.Redis.from_url(shared.url) as client:
        client.flushall()
    return shared


@pytest.mark.parametrize("seed", range(2))
def test_hot_rows_and_fetched_ones_score_as_all_rows_do(server: RedisProcess, seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    line = ColdLine(server.url, seed=seed)
    num_other = 0

    async def story(line: ColdLine) -> None:
        nonlocal num_other
        for _ in range(30):
            line.learn()
            if rng.random() < 0.3:
                line.evict()
            assert line.publish() is not None
            if rng.random() < 0.7:  # else the next round goes over several versions
                line.follow()
            if line.given.ranker.follower.live is None:
                continue
            for _ in range(3):
                request = request_of(rng)
                answer = await line.ask_and_compare(request)
                assert not {"rows", "non_finite"} & set(answer.degraded)
                hot = line.given.ranker.follower.live.score(line.columns(request)).tolist()
                num_other += hot != list(line.expected(request, answer.snapshot).values())

    line.tell(story)
    stats, evicted = line.given.stats, line.learner.trained.table.counters["item_id"].evictions
    assert num_other > 45, "hot rows alone would have done"
    assert stats.rows_cached > 30 and stats.rows_fetched > 150 and stats.rows_absent > 15 and evicted["asked"] > 3
    assert line.stats.snapshots["full"] >= 7 and line.stats.snapshots["delta"] >= 20 and not stats.rows_failed


def test_what_was_asked_for_once_is_known_until_it_changes(server: RedisProcess) -> None:
    line = ColdLine(server.url, full_every=3)

    async def story(line: ColdLine) -> None:
        request = request_of(np.random.default_rng(5))
        for _ in range(6):
            line.step()
        line.follow()
        await line.ask_and_compare(request)
        stats = line.given.stats
        asked = stats.rows_fetched + stats.rows_absent
        await line.ask_and_compare(request)
        assert stats.rows_fetched + stats.rows_absent == asked and stats.rows_cached == asked
        for _ in range(5):  # deltas and full versions
            line.publish()
            line.follow()
            await line.ask_and_compare(request)
        assert stats.rows_fetched + stats.rows_absent == asked, "nothing has changed"
        for _ in range(10):
            line.step()
            line.follow()
            await line.ask_and_compare(request)
        assert stats.rows_fetched + stats.rows_absent > asked
        line.step()
        for _ in range(20):  # more versions at once than a ranker remembers
            line.publish()
        line.follow()
        await line.ask_and_compare(request)

    line.tell(story)


def test_a_redis_that_dies_and_comes_back_empty_is_filled_anew(shared: RedisProcess) -> None:
    with redis_process() as own:
        line = ColdLine(own.url, full_every=100, rows=HASTY)

        async def story(line: ColdLine) -> None:
            rng = np.random.default_rng(3)
            for _ in range(6):
                line.step()
            line.follow()
            requests = [request_of(rng) for _ in range(6)]
            own.kill()
            for request in requests:
                answer = await line.ask(request)
                assert "rows" in answer.degraded and answer.items[0].utility is not None
            failed = dict(line.given.stats.rows_failed)
            assert failed.keys() == {"unavailable", "skipped"} and failed["unavailable"] == 2, "no retry storm"
            assert "rows" in line.given.ranker.health().degraded
            assert line.step() is None, "nothing is published without its rows"
            own.start()
            line.clock_ms.now_ms += 2_000
            lost = await line.ask(requests[0])
            assert "rows" in lost.degraded and line.given.stats.rows_failed["lost"] == 1
            manifest = line.step()
            assert manifest is not None and manifest.kind == "full"
            line.follow()
            line.clock_ms.now_ms += 2_000
            for request in requests:
                answer = await line.ask_and_compare(request)
                assert "rows" not in answer.degraded
            assert line.stats.cold.generations == 2 and "rows" not in line.given.ranker.health().degraded

        line.tell(story)


def test_a_redis_that_hangs_costs_the_time_limit_and_the_rows(shared: RedisProcess) -> None:
    with redis_process() as own:
        line = ColdLine(own.url, rows=HASTY)

        async def story(line: ColdLine) -> None:
            for _ in range(6):
                line.step()
            line.follow()
            request = request_of(np.random.default_rng(1))
            own.pause()
            for _ in range(4):
                assert "rows" in (await line.ask(request)).degraded
            assert line.given.stats.rows_failed == {"timeout": 2, "skipped": 2}
            own.resume()
            line.clock_ms.now_ms += 2_000
            assert "rows" not in (await line.ask_and_compare(request)).degraded

        line.tell(story)


class HeldReader(RedisRowReader):
    """A reader whose answers wait until they are let go."""

    def hold(self) -> None:
        self.gate = asyncio.Event()

    async def _ask(self, at: RowsAt, keys_N: Int64Array, width: int) -> FoundRows | None:
        answer = await super()._ask(at, keys_N, width)
        await self.gate.wait()
        return answer


@pytest.mark.parametrize("is_read_before", [True, False], ids=["read before the swap", "read after it"])
def test_a_swap_while_rows_are_on_their_way(server: RedisProcess, is_read_before: bool) -> None:
    class LateReader(HeldReader):
        async def _ask(self, at: RowsAt, keys_N: Int64Array, width: int) -> FoundRows | None:
            await self.gate.wait()
            return await RedisRowReader._ask(self, at, keys_N, width)

    line = ColdLine(server.url, reader=HeldReader if is_read_before else LateReader)

    async def story(line: ColdLine) -> None:
        reader = line.reader
        assert isinstance(reader, HeldReader)
        rng = np.random.default_rng(7)
        for _ in range(6):
            line.step()
        line.follow()
        for _ in range(6):
            requests = [request_of(rng) for _ in range(4)]
            reader.hold()
            under_way = [asyncio.create_task(line.ask(request)) for request in requests]
            for _ in range(5):
                await asyncio.sleep(0.002)
            before = line.given.ranker.follower.live
            assert before is not None
            for _ in range(2):
                line.step()
                line.evict()
            line.publish()
            line.follow()
            newer = [asyncio.create_task(line.ask(request)) for request in requests[:2]]
            await asyncio.sleep(0.002)
            reader.gate.set()
            for request, task in zip(requests * 2, under_way + newer, strict=False):
                answer = await task
                assert (answer.snapshot == before.manifest.version) == (task in under_way)
                assert line.scores_of(answer) == line.expected(request, answer.snapshot)
                assert "rows" not in answer.degraded
            for request in requests:
                answer = await line.ask_and_compare(request)
                assert answer.snapshot > before.manifest.version

    line.tell(story)


def test_what_is_no_row_is_a_default_row_and_is_asked_for_again(server: RedisProcess) -> None:
    line = ColdLine(server.url)

    async def story(line: ColdLine) -> None:
        for _ in range(6):
            line.step()
        line.follow()
        request = request_of(np.random.default_rng(2))
        with redis.Redis.from_url(server.url) as client:
            good = {key: client.get(key) for key in client.keys("test:{test}:rows:1.1:*")}
            client.mset(dict.fromkeys(good, b"\xff" * 24))
            for number in (1, 2):
                answer = await line.ask(request)
                assert "rows" in answer.degraded and line.given.stats.rows_failed == {"malformed": number}
            client.mset({key: value for key, value in good.items() if value is not None})
        answer = await line.ask_and_compare(request)
        assert "rows" not in answer.degraded

    line.tell(story)


def test_a_request_that_lacks_too_many_rows_takes_default_ones(server: RedisProcess) -> None:
    line = ColdLine(server.url, rows=RowFetchConfig(timeout_ms=5_000, max_rows=2))

    async def story(line: ColdLine) -> None:
        for _ in range(6):
            line.step()
        line.follow()
        answer = await line.ask(request_of(np.random.default_rng(2)))
        assert "rows" in answer.degraded and line.given.stats.rows_failed == {"limit": 1}
        assert line.given.stats.rows_fetched + line.given.stats.rows_absent == 2

    line.tell(story)


def test_a_small_cache_changes_no_score(server: RedisProcess) -> None:
    line = ColdLine(server.url, rows=RowFetchConfig(timeout_ms=5_000, cache_rows=9))

    async def story(line: ColdLine) -> None:
        rng = np.random.default_rng(9)
        for _ in range(15):
            line.step()
            line.follow()
            for _ in range(3):
                await line.ask_and_compare(request_of(rng))

    line.tell(story)


def test_without_a_reader_every_answer_says_what_it_lacks(server: RedisProcess) -> None:
    line = ColdLine(server.url)

    async def story(line: ColdLine) -> None:
        from dataclasses import replace

        line.given.ranker = replace(line.given.ranker, rows=NoRows())
        for _ in range(6):
            line.step()
        line.follow()
        assert "rows" in (await line.ask(request_of(np.random.default_rng(2)))).degraded

    line.tell(story)


def test_many_values_of_any_size_arrive_whole_and_in_order(server: RedisProcess) -> None:
    rng = np.random.default_rng(0)
    values = {f"k{n}": rng.bytes(int(rng.integers(0, 4_000))) + b"\r\n$3\r\n" for n in range(1_500)}
    with redis.Redis.from_url(server.url) as client:
        client.mset(values)
        client.lpush("list", "no string")

    async def story() -> None:
        gets = RedisGets(server.url)
        names = [f"k{n}" for n in rng.permutation(1_600)]
        asked: list[Awaitable[Any]] = [gets.mget(names, 10_000), gets.get("k3", 10_000)]
        asked += [gets.get("k1599", 10_000), gets.mget(["k9"], 10_000)]
        many, one, none, single = await asyncio.gather(*asked)
        assert many == [values.get(name) for name in names]
        assert (one, none, single) == (values["k3"], None, [values["k9"]])
        assert await gets.mget(["list", "k1"], 10_000) == [None, values["k1"]]
        with pytest.raises(ResponseError):
            await gets.get("list", 10_000)
        gets.close()

    asyncio.run(story())


@pytest.mark.parametrize("name", ["timeout_ms", "cache_rows", "max_rows"])
def test_settings_that_are_not_allowed(name: str) -> None:
    changes: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name}: 0 is not allowed; at least 1"):
        RowFetchConfig(**changes)
