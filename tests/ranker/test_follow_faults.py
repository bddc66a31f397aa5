"""What a store can do to a ranker beside handing out bad bytes: it forgets, comes back older, or tells things twice."""

import threading
from dataclasses import replace

import msgspec
import pytest
import redis

from model.snapshot import encode_manifest
from model.store import Announcement, MemorySnapshotStore, StoreConfig
from model.store_redis import RedisSnapshotStore
from ranker.follow import SnapshotFollower
from ranker.watcher import SnapshotWatcher, WatcherConfig
from tests.ranker.given import DEADLINE_S, SCHEMA, Trainer
from tests.ranker.test_follow import Given


def given_with(store: MemorySnapshotStore | RedisSnapshotStore) -> Given:
    given = Given()
    given.store = store  # type: ignore[assignment]  # either will do
    given.trainer = Trainer(store)
    given.follower = SnapshotFollower(store, SCHEMA, given.stats, given.freshness)
    return given


def is_current(given: Given) -> bool:
    return given.follower.is_current


def test_a_store_that_forgot_everything_changes_nothing_until_the_next_full_one() -> None:
    given = Given()
    for kind in ("full", "delta"):
        given.trainer.publish(kind)
    given.follower.round()
    held = given.follower.live
    given.follower._store = given.trainer.store = MemorySnapshotStore()
    given.follower.round()
    assert given.follower.live is held and not is_current(given)
    given.trainer.publish("full")
    given.follower.round()
    assert given.version == 3 and is_current(given)
    given.assert_serves_what_was_trained()


def test_a_delta_of_another_trainer_is_not_applied_to_the_version_of_the_same_number() -> None:
    """Redis lost everything, a new trainer counts from 1 again: its delta 3 stands on its own 2, not on ours."""
    given = Given()
    for kind in ("full", "delta"):
        given.trainer.publish(kind)
    given.follower.round()
    assert given.version == 2
    anew = MemorySnapshotStore()
    given.follower._store = anew
    given.trainer = Trainer(anew, seed=5)
    for version, kind in ((1, "full"), (2, "delta"), (3, "delta")):
        given.trainer.publish(kind, created_ms=1_000 + version)
    given.follower.round()
    assert given.version == 3
    given.assert_serves_what_was_trained()


def test_a_ranker_that_starts_late_takes_all_deltas_since_the_last_full_one() -> None:
    given = Given()
    for number in range(26):
        given.trainer.publish("delta" if number % 20 else "full")
    given.follower.round()
    assert given.version == 26 and given.stats.snapshots_applied == 1 and is_current(given)
    given.assert_serves_what_was_trained()


class Garbled(MemorySnapshotStore):
    """Announces what there is backwards, twice, and with numbers that never were."""

    def announcements(self, after_id: str, block_ms: int) -> list[Announcement]:
        told = super().announcements(after_id, block_ms)
        return [*told[::-1], *told, *(one._replace(version=99, kind="delta") for one in told)]


def test_announcements_that_come_twice_backwards_or_for_nothing_change_nothing() -> None:
    given = given_with(Garbled())
    watcher = SnapshotWatcher(given.store, given.follower, WatcherConfig(block_ms=10), given.stats)
    watcher.start()
    for number in range(4):
        given.trainer.publish("delta" if number else "full")
    arrived = threading.Event()
    for _ in range(int(DEADLINE_S / 0.01)):
        if given.version == 4 or arrived.wait(0.01):
            break
    watcher.stop()
    assert given.version == 4 and given.stats.watcher_failures == 0 and not given.stats.snapshots_refused
    given.assert_serves_what_was_trained()


def test_a_payload_larger_than_allowed_is_refused_and_a_smaller_full_one_heals() -> None:
    given = given_with(MemorySnapshotStore())
    first = given.trainer.publish("full")
    given.follower.round()
    limit = replace(given.store._config, max_payload_bytes=first.payload_bytes - 1)
    given.store._config, generous = limit, given.store._config
    given.trainer.publish("full")
    given.follower.round()
    assert given.version == 1 and given.stats.snapshots_refused == {"torn": 1}
    given.store._config = generous
    given.trainer.publish("full")
    given.follower.round()
    assert given.version == 3 and is_current(given)


@pytest.mark.integration
def test_on_a_real_redis_what_somebody_did_to_its_keys_is_refused_and_healed(redis_server: str) -> None:
    store = RedisSnapshotStore(redis_server, "main", StoreConfig(prefix="test:follow-faults"))
    given, client = given_with(store), redis.Redis.from_url(redis_server)
    given.trainer.publish("full")
    given.follower.round()
    epoch = given.trainer.epoch
    key = "test:follow-faults:{main}:%s:%d:" + str(epoch)
    refused: dict[str, int] = {}
    for kind in ("full", "delta"):
        for reason in ("hash", "torn", "missing", "manifest", "format of tomorrow", "kind"):
            good = given.follower.live
            given.trainer.publish("full")
            given.follower.round()
            assert given.follower.live is not good
            good = given.follower.live
            manifest = given.trainer.publish(kind)
            payload_key, manifest_key = (key % (what, manifest.version) for what in ("payload", "manifest"))
            if reason == "hash":
                client.setrange(payload_key, manifest.payload_bytes - 4, b"\x01\x02\x03\x04")
            elif reason == "torn":
                client.append(payload_key, b"x" * 5_000_000)
            elif reason == "missing":
                client.delete(payload_key)
            elif reason == "manifest":
                client.set(manifest_key, encode_manifest(manifest)[:-20])
            elif reason == "format of tomorrow":
                client.set(manifest_key, encode_manifest(msgspec.structs.replace(manifest, format=2)))
            else:
                lie = msgspec.structs.replace(manifest, kind="delta" if kind == "full" else "full")
                client.set(manifest_key, encode_manifest(lie))
            counted = reason if reason in ("hash", "torn", "missing") else "manifest"
            refused[counted] = refused.get(counted, 0) + 1
            given.follower.round()
            assert given.follower.live is good and not is_current(given), (kind, reason)
            assert given.stats.snapshots_refused == refused, (kind, reason)
    client.delete(*client.keys("test:follow-faults:*"))
    given.follower.round()
    assert given.follower.live is good and not is_current(given)
    given.trainer.epoch = store.next_epoch() + epoch
    given.trainer.publish("full")
    given.follower.round()
    assert is_current(given)
    given.assert_serves_what_was_trained()
    client.close()
    store.close()


def test_a_store_restored_from_a_backup_is_passed_over_until_its_trainer_has_gone_past_us() -> None:
    """The pointer leads back, to a version that was made before ours; the next one made after ours is served."""
    given = Given()
    given.trainer.publish("full")
    given.trainer.publish("full")
    given.follower.round()
    held = given.follower.live
    restored = MemorySnapshotStore()
    given.follower._store = given.trainer.store = restored
    given.trainer.version = 0
    given.trainer.publish("full")  # made at 1, as its number: the backup
    given.follower.round()
    assert given.follower.live is held
    given.trainer.publish("full", created_ms=50)
    given.follower.round()
    assert given.follower.live is not held and given.version == 2
    given.assert_serves_what_was_trained()
