"""A poisoned stream through a real Redis: what it taught never stays in service, and what follows is learned again.

The trainer is the real one, on checkpoints and a `RedisSnapshotStore`; the rankers' own follower reads the same Redis,
and a thread keeps asking it for scores all the while.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.exceptions import RolledBackError, StaleEpochError
from model.features import RowColumns
from model.rollback import roll_back_to
from model.store import StoreConfig
from model.store_redis import RedisSnapshotStore
from model.trainer_config import TrainerConfig
from ranker.follow import SnapshotFollower
from ranker.freshness import FreshnessRecorder
from ranker.stats import RankerStats
from ranker.watcher import SnapshotWatcher, WatcherConfig
from tests.conftest import WaitUntil
from tests.model.example_log import METRICS
from tests.model.gate_stream import GATE, SCHEMA, Running, Spoil, bots, flipped, messages

pytestmark = pytest.mark.integration
CONFIG = TrainerConfig(batch_rows=64, metrics=METRICS, publish_interval_ms=2_000, full_every=3)
EARLY = replace(GATE, warm_up_rows=3_000, calibration=None, ne_margin=None)  # it is a young model
WARM_S = 65
REQUEST = RowColumns(
    scenario=["home"],
    user_id=["u1"],
    item_id=[f"i{n}" for n in range(20)],
    request_index_B=np.zeros(20, np.int64),
)


class Ranker:
    """The part of a ranker that follows the store, and somebody who asks it without a pause."""

    def __init__(self, store: RedisSnapshotStore) -> None:
        self.stats = RankerStats()
        self.follower = SnapshotFollower(store, SCHEMA, self.stats, FreshnessRecorder(lambda: 0))
        self._watcher = SnapshotWatcher(store, self.follower, WatcherConfig(block_ms=200), self.stats)
        self._is_over = threading.Event()
        self._asker = threading.Thread(target=self._ask)
        self.served: list[int] = []
        self.errors: list[Exception] = []

    def start(self) -> None:
        self._watcher.start()
        self._asker.start()

    def _ask(self) -> None:
        while not self._is_over.wait(0.01):
            live = self.follower.live
            if live is None:
                continue
            try:
                assert np.isfinite(live.score(REQUEST)).all()
            except Exception as error:
                self.errors.append(error)
            if not self.served or self.served[-1] != live.manifest.version:
                self.served.append(live.manifest.version)

    def stop(self) -> None:
        self._is_over.set()
        self._asker.join()
        self._watcher.stop()


@pytest.fixture
def store(redis_server: str, request: pytest.FixtureRequest) -> Iterator[RedisSnapshotStore]:
    config = StoreConfig(prefix=f"test:{request.node.name}", keep_fulls=10, timeout_ms=20_000)
    opened = RedisSnapshotStore(redis_server, "main", config)
    yield opened
    opened.close()


@pytest.fixture
def ranker(store: RedisSnapshotStore) -> Iterator[Ranker]:
    running = Ranker(store)
    running.start()
    yield running
    running.stop()
    assert running.errors == []
    assert running.served == sorted(running.served), "version numbers only rise"


def warm(store: RedisSnapshotStore, folder: Path) -> Running:
    running = Running(gate=EARLY, store=store, folder=folder, config=CONFIG)
    running.feed(messages(1), WARM_S - 25)
    assert running.trainer.checkpoint() is not None
    running.feed(messages(1, first=running.offset), 25)
    return running


def successor(before: Running, store: RedisSnapshotStore, folder: Path) -> Running:
    """What the supervisor starts again, at the position its checkpoint says."""
    running = Running(gate=EARLY, store=store, folder=folder, config=CONFIG)
    assert running.trainer.resume()
    running.clock.ms = before.clock.ms
    running.offset = running.trainer.positions[0].offset
    return running


def poisoned(spoil: Spoil, first: int, end: int) -> Iterator[bytes]:
    """A log that is poisoned from one offset to another, from its beginning: messages are the same at each reading."""
    clean, dirty = messages(1), messages(1, spoil)
    for offset, (good, bad) in enumerate(zip(clean, dirty, strict=False)):
        yield bad if first <= offset < end else good


def from_offset(stream: Iterator[bytes], offset: int) -> Iterator[bytes]:
    for _ in range(offset):
        next(stream)
    return stream


@pytest.mark.parametrize("spoil", [flipped(0.3), bots(0.3)], ids=["flips", "bots"])
def test_poison_is_rolled_back_within_one_gate_interval_and_never_learned(
    store: RedisSnapshotStore, ranker: Ranker, tmp_path: Path, wait_until: WaitUntil, spoil: Spoil
) -> None:
    running = warm(store, tmp_path)
    start, live_before = running.offset, running.trainer.publish_stats.version
    poison = (start, start + 40)
    interval_s = GATE.window_ms // 1_000
    settle_s = 5  # label window, grace and what a cohort needs to close
    with pytest.raises(RolledBackError, match="serves again as"):
        running.feed(from_offset(poisoned(spoil, *poison), start), 2 * interval_s + settle_s)
    [record] = store.rollbacks()
    taught = {version for version in range(live_before + 1, record.version)} & set(store.versions())
    assert taught <= set(record.denied) == store.denied()
    assert record.target <= live_before
    wait_until(lambda: ranker.follower.live and ranker.follower.live.manifest.version == record.version, "rolled back")
    assert record.quarantine[0][0] <= start < record.quarantine[0][1]

    again = successor(running, store, tmp_path)
    assert again.offset < start
    again.feed(from_offset(poisoned(spoil, *poison), again.offset), poison[1] - again.offset + 35)
    stats = again.trainer.stats
    assert stats.quarantined >= record.quarantine[0][1] - record.quarantine[0][0] - 1
    assert stats.held >= 150 * (poison[1] - record.quarantine[0][1]), "what followed was looked at, not learned"
    assert not again.trainer.gate.is_holding
    assert again.trainer.gate.window_state == "pass"
    assert len(store.rollbacks()) == 1
    live = store.pointer()
    assert live is not None and live.version > record.version and live.kind in ("full", "delta")
    assert live.version not in store.denied()


def test_a_rollback_by_hand_stops_the_trainer_and_reaches_the_rankers(
    store: RedisSnapshotStore, ranker: Ranker, tmp_path: Path, wait_until: WaitUntil
) -> None:
    running = warm(store, tmp_path)
    target = next(version for version in store.versions() if (m := store.manifest(version)) and m.kind == "full")
    manifest = roll_back_to(store, target, reason="clicks fell", now_ms=running.clock.ms, quarantine={0: (50, 60)})
    wait_until(
        lambda: ranker.follower.live and ranker.follower.live.manifest.version == manifest.version, "rolled back", 10.0
    )
    with pytest.raises(StaleEpochError):
        running.feed(messages(1, first=running.offset), 3)
    denied = store.denied()
    assert min(denied) > target
    again = Running(gate=EARLY, store=store, folder=tmp_path, config=CONFIG)
    found = again.trainer.resume()
    assert not found, "every checkpoint is newer than the target: the log is read anew"
    again.clock.ms = running.clock.ms
    again.feed(messages(1), 62)
    assert again.trainer.stats.quarantined == 10
    live = store.pointer()
    assert live is not None and live.version > manifest.version and live.version not in denied
    assert live.base_version not in denied
