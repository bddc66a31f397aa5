"""Rows in the row store, over any history: every kept version finds there what its payloads do not hold, to the bit."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import redis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.exceptions import RowsLostError, StoreUnavailableError
from model.id_table import NO_ROW
from model.row_publish import MIN_BUCKETS, RowPublisher, RowStats
from model.row_store import MemoryRowStore, RowsAt, RowStore
from model.row_store_redis import RedisRowStore
from model.serving_rows import ServingRows
from model.snapshot import Manifest
from model.store import MemorySnapshotStore, StoreConfig
from tests.model.cold_world import ColdWorld

KEYS = list(range(1, 25))
FEW = KEYS[:6]
CHANGES = st.lists(
    st.tuples(st.sampled_from(["learn", "cool", "cool", "warm", "evict"]), st.lists(st.sampled_from(FEW), min_size=1)),
    max_size=3,
)
HISTORY = st.lists(
    st.tuples(CHANGES, st.sampled_from(["publish", "publish", "publish", "reject", "restart"])), min_size=3, max_size=25
)
History = list[tuple[list[tuple[str, list[int]]], str]]


@dataclass
class Line:
    """A model line: versions are published from a world that changes; each one is remembered as it was."""

    store: RowStore
    world: ColdWorld = field(default_factory=ColdWorld)
    snapshots: MemorySnapshotStore = field(default_factory=lambda: MemorySnapshotStore(StoreConfig(keep_fulls=2)))
    full_every: int = 3
    version: int = 0
    readers: dict[int, tuple[ServingRows, RowsAt, ServingRows]] = field(default_factory=dict)
    """By version: what a ranker holds, where it finds the rest, and what one holds that holds all."""
    held: ServingRows | None = None
    live: int = 0

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Lets a new trainer take over."""
        self.epoch = self.snapshots.next_epoch()
        self.stats = RowStats()
        self.rows = RowPublisher(self.store, self.world, width=self.world.width, stats=self.stats)
        self.deltas = self.full_every

    def publish(self, *, is_good: bool = True) -> RowsAt:
        """Makes the next version, and promotes it if it is good."""
        self.version += 1
        is_full = self.deltas + 1 >= self.full_every or self.rows.needs_full()
        tensors = self.world.serving_full() if is_full else self.world.serving_delta()
        at = self.rows.write(epoch=self.epoch, version=self.version, is_full=is_full)
        if not is_good:
            return at
        manifest = _manifest(self.version, self.epoch, 0 if is_full else self.live, at)
        self.snapshots.put(manifest, b"")
        self.snapshots.promote(manifest)
        self.world.mark_promoted()
        self.rows.went_live(self.snapshots, is_full=is_full)
        empty = ServingRows.empty(num_reserved=2, width=self.world.width)
        self.held = (empty if is_full or self.held is None else self.held).after(tensors)
        self.readers[self.version] = (self.held, at, self.world.complete())
        self.live, self.deltas = self.version, 0 if is_full else self.deltas + 1
        return at

    def assert_kept_versions_find_their_rows(self) -> None:
        for version in self.snapshots.versions():
            held, at, complete = self.readers[version]
            if at.generation == self.readers[self.live][1].generation:
                assert seen(held, self.rows, at) == seen(complete)


def seen(held: ServingRows, rows: RowPublisher | None = None, at: RowsAt | None = None) -> dict[int, list[float]]:
    """Returns what is known of every key: from memory, else from the store."""
    row_N = held.ids.lookup(np.array(KEYS))
    known = {key: held.weight[row].tolist() for key, row in zip(KEYS, row_N.tolist(), strict=True) if row != NO_ROW}
    missing_N = np.array([key for key in KEYS if key not in known], np.int64)
    if rows is not None and at is not None and len(missing_N):
        found = rows.read(at, missing_N)
        assert not found.is_bad_N.any()
        known |= {
            key: weights.tolist()
            for key, has_row, weights in zip(missing_N.tolist(), found.has_row_N, found.weights_NW, strict=True)
            if has_row
        }
    return known


def _manifest(version: int, epoch: int, base: int, at: RowsAt) -> Manifest:
    return Manifest(
        model="main",
        version=version,
        base_version=base,
        kind="delta" if base else "full",
        step=version,
        created_ms=version,
        watermark_ms=0,
        offsets={},
        schema_hash="s",
        config_hash="c",
        metrics={},
        payload_sha256="",
        payload_bytes=0,
        epoch=epoch,
        scenarios=["home"],
        tasks=["click"],
        model_config={},
        cold_rows=at,
    )


def live_through(line: Line, history: History) -> None:
    for changes, then in history:
        for what, keys in changes:
            getattr(line.world, what)(*keys)
        if then == "restart":
            line.start()
        elif then == "reject":
            line.publish(is_good=False)
        else:
            line.publish()
            line.assert_kept_versions_find_their_rows()


@given(history=HISTORY)
@settings(max_examples=150, deadline=None)
def test_hot_rows_and_the_store_are_all_rows_in_memory(history: History) -> None:
    line = Line(MemoryRowStore())
    line.world.learn(*FEW)
    line.publish()
    live_through(line, history)


@pytest.fixture
def redis_rows(redis_server: str) -> Iterator[Callable[[], RedisRowStore]]:
    opened: list[RedisRowStore] = []

    def open_store() -> RedisRowStore:
        opened.append(RedisRowStore(redis_server, "main", StoreConfig(prefix=f"test:{uuid.uuid4().hex}")))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.mark.integration
@given(history=HISTORY)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_on_a_real_redis_hot_rows_and_the_store_are_all_rows_in_memory(
    redis_rows: Callable[[], RedisRowStore], history: History
) -> None:
    line = Line(redis_rows())
    line.world.learn(*FEW)
    line.publish()
    live_through(line, history)


@pytest.mark.integration
def test_a_redis_that_lost_everything_gets_all_rows_anew_with_a_full_version(redis_url: str) -> None:
    store = RedisRowStore(redis_url, "main")
    line = Line(store, full_every=100)
    line.world.learn(*KEYS)
    line.world.cool(*KEYS[:20])
    first = line.publish()
    line.world.learn(21)
    assert line.publish().generation == first.generation
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    held, at, _ = line.readers[line.live]
    with pytest.raises(RowsLostError):
        seen(held, line.rows, at)
    line.world.evict(3)
    assert line.rows.needs_full()
    healed = line.publish()
    assert (healed.generation, line.stats.generations) == ("1.3", 2)
    line.assert_kept_versions_find_their_rows()
    assert seen(*line.readers[3][:1]).keys() == {21, 22, 23, 24}
    store.close()


def test_a_paused_trainer_cannot_touch_the_rows_of_a_newer_one() -> None:
    store = MemoryRowStore()
    line = Line(store, full_every=1)
    line.world.learn(*KEYS)
    line.world.cool(*KEYS)
    line.publish()
    old, old_epoch = line.rows, line.epoch
    line.start()
    newest = line.publish()
    expected = seen(line.readers[line.live][2])
    line.world.learn(5)
    line.world.cool(5)
    line.world.evict(7)
    assert old.write(epoch=old_epoch, version=99, is_full=False).generation == "1.1"
    assert seen(line.readers[line.live][0], line.rows, newest) == expected
    for _ in range(3):
        line.publish()
    assert list(store.generations()) == ["2.2"], "the older one's rows are gone"
    line.world.cool(5)
    line.world.learn(6)
    line.world.cool(6)
    with pytest.raises(RowsLostError):
        old.write(epoch=old_epoch, version=100, is_full=False)
    assert list(store.generations()) == ["2.2"] and not store.has("1.1")


def test_rows_of_a_lane_that_is_behind_stay() -> None:
    store = MemoryRowStore()
    line = Line(store, full_every=1)
    line.world.learn(*KEYS)
    line.world.cool(*KEYS)
    line.publish()
    stable = line.readers[1]
    line.start()
    for _ in range(4):
        line.version += 1
        at = line.rows.write(epoch=line.epoch, version=line.version, is_full=True)
        manifest = _manifest(line.version, line.epoch, 0, at)
        line.snapshots.put(manifest, b"")
        line.snapshots.promote(manifest, release=False)
        line.rows.went_live(line.snapshots, is_full=True)
    assert seen(stable[0], line.rows, stable[1]) == seen(stable[2])


def test_what_versions_that_are_no_longer_kept_needed_is_removed() -> None:
    line = Line(MemoryRowStore(), full_every=1)
    line.world.learn(*KEYS)
    line.world.cool(*KEYS)
    line.publish()
    for _ in range(6):
        line.world.learn(1, 2, 3)
        line.world.cool(1, 2, 3)
        line.world.evict(4)
        line.publish()
    assert line.stats.records == len(line.world.rows) + 3 * 1, "two fulls are kept: one older row for each of 1, 2, 3"
    for _ in range(3):
        line.publish()
    assert line.stats.records == len(line.world.rows) == 23


def test_too_many_rows_for_their_buckets_begin_a_new_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.row_publish.MIN_BUCKETS", 1)
    line = Line(MemoryRowStore(), full_every=100)
    line.world.learn(*KEYS)
    line.world.cool(1, 2)
    assert line.publish().num_buckets == 1
    line.world.cool(*KEYS)
    assert line.publish().generation == "1.1"
    widened = line.publish()
    assert (widened.generation, widened.num_buckets) == ("1.3", 4)
    line.assert_kept_versions_find_their_rows()
    assert MIN_BUCKETS & (MIN_BUCKETS - 1) == 0


class AwayStore(MemoryRowStore):
    """Does not answer while it is away."""

    is_away = False

    def generations(self) -> dict[str, int]:
        if self.is_away:
            raise StoreUnavailableError("away")
        return super().generations()


def test_a_version_that_is_live_does_not_suffer_from_tidying_that_fails() -> None:
    store = AwayStore()
    line = Line(store, full_every=1)
    line.world.learn(*KEYS)
    store.is_away = True
    line.publish()
    assert line.live == 1


def test_rows_of_bfloat16_are_kept_to_the_bit() -> None:
    class Half(ColdWorld):
        def cold_rows(self) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
            for keys, weights in super().cold_rows():
                yield keys, weights.bfloat16()

    line = Line(MemoryRowStore(), world=Half())
    line.world.learn(*KEYS)
    line.world.cool(*KEYS)
    found = line.rows.read(line.publish(), np.array(KEYS))
    expected = torch.stack([line.world.rows[key] for key in KEYS]).bfloat16()
    assert torch.equal(torch.from_numpy(found.weights_NW).bfloat16(), expected)
