"""What every row store must do: one suite, run on the one in memory and on a real Redis."""

import uuid
from collections.abc import Iterator

import numpy as np
import pytest
import redis

from model.exceptions import RowsLostError, StoreUnavailableError
from model.row_records import bucket_of, records_of
from model.row_store import PIECE, MemoryRowStore, RowKeys, RowsAt, RowStore, fetch_rows
from model.row_store_redis import RedisRowStore
from model.store import StoreConfig

WIDTH = 2


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest) -> Iterator[RowStore]:
    if request.param == "memory":
        yield MemoryRowStore()
        return
    url: str = request.getfixturevalue("redis_server")
    opened = RedisRowStore(url, "main", StoreConfig(prefix=f"test:{uuid.uuid4().hex}"))
    yield opened
    opened.close()


def test_a_generation_is_there_from_its_making_to_its_end(store: RowStore) -> None:
    assert store.generations() == {} and not store.has("3.7")
    with pytest.raises(RowsLostError, match=r"does not hold generation 3\.7"):
        store.read("3.7", [0])
    with pytest.raises(RowsLostError, match=r"does not hold generation 3\.7"):
        store.write("3.7", {0: b"x"})
    store.create("3.7", 4)
    assert store.has("3.7") and store.generations() == {"3.7": 4}
    store.write("3.7", {0: b"a", 2: b"b"})
    assert store.read("3.7", [2, 1, 0]) == [b"b", None, b"a"]
    store.write("3.7", {0: b"", 1: b"c"})
    assert store.read("3.7", [0, 1]) == [None, b"c"]
    store.drop("3.7", range(2))
    assert not store.has("3.7") and store.generations() == {"3.7": 4}
    with pytest.raises(RowsLostError):
        store.write("3.7", {2: b"late"})  # a writer that slept: it leaves nothing behind
    store.drop("3.7", range(2, 4))
    store.forget("3.7")
    assert store.generations() == {}
    store.create("3.7", 4)
    assert store.read("3.7", range(4)) == [None] * 4


def test_generations_share_nothing(store: RowStore) -> None:
    for generation in ("1.1", "2.9"):
        store.create(generation, 2)
        store.write(generation, {1: generation.encode()})
    store.drop("1.1", range(2))
    assert store.read("2.9", [1]) == [b"2.9"]


def test_more_buckets_than_one_command_writes(store: RowStore) -> None:
    num_buckets = 4 * PIECE
    store.create("1.1", num_buckets)
    keys_N = np.unique(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 2 * PIECE + 1))
    weights_NW = np.random.default_rng(1).standard_normal((len(keys_N), WIDTH)).astype(np.float32)
    records = records_of(keys_N, 5, weights_NW)
    buckets = bucket_of(keys_N, num_buckets)
    store.write("1.1", {n: records[buckets == n].tobytes() for n in np.unique(buckets).tolist()})
    found = fetch_rows(store, RowsAt("1.1", num_buckets, 5), keys_N, WIDTH)
    assert found.has_row_N.all() and np.array_equal(found.weights_NW, weights_NW)
    assert not fetch_rows(store, RowsAt("1.1", num_buckets, 4), keys_N, WIDTH).has_row_N.any()


@pytest.mark.integration
def test_in_redis_rows_lie_beside_the_snapshots_of_their_model(redis_url: str) -> None:
    store = RedisRowStore(redis_url, "main", StoreConfig(prefix="p"))
    store.create("1.1", 8)
    store.write("1.1", {3: b"x"})
    with redis.Redis.from_url(redis_url) as client:
        assert sorted(client.keys()) == [b"p:{main}:rows", b"p:{main}:rows:1.1", b"p:{main}:rows:1.1:3"]
        assert RowKeys("p", "main").buckets("1.1", [3]) == ["p:{main}:rows:1.1:3"]
        client.flushall()
    assert not store.has("1.1")
    store.close()


@pytest.mark.integration
def test_a_redis_that_is_away_is_an_error_of_ours() -> None:
    store = RedisRowStore("redis://127.0.0.1:1/0", "main", StoreConfig(timeout_ms=50))
    for ask in (lambda: store.has("1"), lambda: store.read("1", [0]), lambda: store.write("1", {0: b"x"})):
        with pytest.raises(StoreUnavailableError, match="row store does not answer"):
            ask()
    store.close()
