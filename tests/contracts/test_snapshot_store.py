"""What every snapshot store must do: one suite, run on the one in memory and on a real Redis."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec
import pytest
import redis

from model.exceptions import (
    PointerOrderError,
    SnapshotGapError,
    SnapshotLengthError,
    SnapshotMissingError,
    StaleEpochError,
    StoreUnavailableError,
)
from model.gate_report import Finding
from model.rollback import roll_back_to
from model.snapshot import Manifest, SnapshotKind, payload_sha256
from model.store import FIRST_ANNOUNCEMENT, MemorySnapshotStore, SnapshotStore, StoreConfig, chain_to
from model.store_redis import PART_BYTES, RedisSnapshotStore

CONFIG = StoreConfig(keep_fulls=2, keep_rejected=2, timeout_ms=4_000)
OpenStore = Callable[[StoreConfig], SnapshotStore]


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.integration)])
def open_store(request: pytest.FixtureRequest) -> Iterator[OpenStore]:
    """Opens stores that see the same content, as two processes would."""
    if request.param == "memory":
        shared: list[MemorySnapshotStore] = []

        def open_memory(config: StoreConfig) -> SnapshotStore:
            if not shared:
                shared.append(MemorySnapshotStore(config))
            return shared[0]

        yield open_memory
        return
    url: str = request.getfixturevalue("redis_server")
    opened: list[RedisSnapshotStore] = []

    def open_redis(config: StoreConfig) -> SnapshotStore:
        prefix = f"test:{request.node.name}"
        opened.append(RedisSnapshotStore(url, "main", replace(config, prefix=prefix)))
        return opened[-1]

    yield open_redis
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> SnapshotStore:
    return open_store(CONFIG)


def snapshot(version: int, kind: SnapshotKind = "full", base: int = 0, epoch: int = 1) -> tuple[Manifest, bytes]:
    payload = f"weights of {version} by {epoch}".encode()
    manifest = Manifest(
        model="main",
        version=version,
        base_version=base,
        kind=kind,
        step=version * 10,
        created_ms=1_000 + version,
        watermark_ms=900,
        offsets={0: 5, 1: 7},
        schema_hash="s",
        config_hash="c",
        metrics={"click": {"all": {"auc": None, "ne": 0.9}}},
        payload_sha256=payload_sha256(payload),
        payload_bytes=len(payload),
        epoch=epoch,
        scenarios=["home"],
        tasks=["click"],
        model_config={"preset": "small"},
        feedback_ms=[890, 895],
        run_id="r",
    )
    return manifest, payload


def publish(store: SnapshotStore, version: int, kind: SnapshotKind = "full", base: int = 0, epoch: int = 1) -> Manifest:
    manifest, payload = snapshot(version, kind, base, epoch)
    store.put(manifest, payload)
    assert store.promote(manifest)
    return manifest


def test_an_empty_store_has_nothing_and_says_so(store: SnapshotStore) -> None:
    assert store.pointer() is None
    assert store.latest_full() is None
    assert store.manifest(1) is None
    assert store.versions() == []
    assert store.rejected() == []
    assert store.announcements(FIRST_ANNOUNCEMENT, block_ms=1) == []
    with pytest.raises(SnapshotMissingError, match="version 1 is not in the store"):
        store.payload(snapshot(1)[0])


def test_a_promoted_version_comes_back_as_it_was_put(store: SnapshotStore) -> None:
    manifest = publish(store, 1, epoch=store.next_epoch())
    assert store.pointer() == store.manifest(1) == store.latest_full() == manifest
    assert store.payload(manifest) == snapshot(1)[1]


def test_a_version_is_invisible_until_it_is_promoted(store: SnapshotStore) -> None:
    epoch = store.next_epoch()
    first = publish(store, 1, epoch=epoch)
    store.put(*snapshot(2, epoch=epoch))
    assert store.pointer() == first
    assert store.versions() == [1]
    assert store.manifest(2) is None


def test_the_pointer_never_names_what_was_not_put(store: SnapshotStore) -> None:
    manifest, _ = snapshot(1, epoch=store.next_epoch())
    with pytest.raises(SnapshotMissingError, match="version 1"):
        store.promote(manifest)
    assert store.pointer() is None


def test_epochs_rise_and_an_older_one_is_fenced(open_store: OpenStore) -> None:
    old_trainer, new_trainer = open_store(CONFIG), open_store(CONFIG)
    old_epoch, new_epoch = old_trainer.next_epoch(), new_trainer.next_epoch()
    assert new_epoch > old_epoch
    stale, payload = snapshot(1, epoch=old_epoch)
    old_trainer.put(stale, payload)
    with pytest.raises(StaleEpochError, match=f"epoch {new_epoch}; this one holds epoch {old_epoch}"):
        old_trainer.promote(stale)
    assert new_trainer.pointer() is None


def test_a_paused_trainer_cannot_overwrite_what_its_successor_published(open_store: OpenStore) -> None:
    old_trainer, new_trainer = open_store(CONFIG), open_store(CONFIG)
    old_epoch, new_epoch = old_trainer.next_epoch(), new_trainer.next_epoch()
    published = publish(new_trainer, 1, epoch=new_epoch)
    old_trainer.put(*snapshot(1, epoch=old_epoch))
    assert new_trainer.pointer() == published
    assert new_trainer.payload(published) == snapshot(1, epoch=new_epoch)[1]


def test_the_pointer_moves_forward_only(store: SnapshotStore) -> None:
    epoch = store.next_epoch()
    fifth = publish(store, 5, epoch=epoch)
    earlier, payload = snapshot(4, epoch=epoch)
    store.put(earlier, payload)
    with pytest.raises(PointerOrderError, match="version 4 is not after the live version 5"):
        store.promote(earlier)
    assert store.pointer() == fifth


def test_promoting_twice_is_told_apart_and_announced_once(store: SnapshotStore) -> None:
    manifest = publish(store, 1, epoch=store.next_epoch())
    assert store.promote(manifest) is False
    assert [announcement.version for announcement in store.announcements(FIRST_ANNOUNCEMENT, block_ms=1)] == [1]


def test_a_delta_must_stand_on_the_live_version(store: SnapshotStore) -> None:
    epoch = store.next_epoch()
    publish(store, 1, epoch=epoch)
    publish(store, 2, "delta", base=1, epoch=epoch)
    wrong, payload = snapshot(3, "delta", base=1, epoch=epoch)
    store.put(wrong, payload)
    with pytest.raises(SnapshotGapError, match="delta 3 is built on version 1, the live version is 2"):
        store.promote(wrong)


def test_announcements_come_in_order_and_each_once(store: SnapshotStore) -> None:
    epoch = store.next_epoch()
    publish(store, 1, epoch=epoch)
    publish(store, 2, "delta", base=1, epoch=epoch)
    seen = store.announcements(FIRST_ANNOUNCEMENT, block_ms=1)
    assert [(announcement.version, announcement.kind) for announcement in seen] == [(1, "full"), (2, "delta")]
    assert store.announcements(seen[-1].id, block_ms=1) == []
    publish(store, 3, "delta", base=2, epoch=epoch)
    assert [announcement.version for announcement in store.announcements(seen[-1].id, block_ms=1)] == [3]


def test_a_waiting_reader_is_woken_by_a_promotion(open_store: OpenStore) -> None:
    trainer, ranker = open_store(CONFIG), open_store(CONFIG)
    epoch = trainer.next_epoch()
    woken: list[int] = []

    def wait() -> None:
        deadline_s = time.monotonic() + 20
        while not woken and time.monotonic() < deadline_s:
            woken.extend(announcement.version for announcement in ranker.announcements(FIRST_ANNOUNCEMENT, 2_000))

    reader = threading.Thread(target=wait)
    reader.start()
    publish(trainer, 1, epoch=epoch)
    reader.join(timeout=20)
    assert woken == [1]


def test_a_wait_without_news_ends_empty(store: SnapshotStore) -> None:
    assert store.announcements(FIRST_ANNOUNCEMENT, block_ms=30) == []


def test_rejected_versions_are_kept_newest_first_up_to_the_limit(store: SnapshotStore) -> None:
    epoch = store.next_epoch()
    for version in (1, 2, 3):
        manifest, payload = snapshot(version, epoch=epoch)
        store.put(manifest, payload)
        store.reject(manifest, f"reason {version}")
    assert [(entry.manifest.version, entry.reason) for entry in store.rejected()] == [(3, "reason 3"), (2, "reason 2")]
    assert store.pointer() is None
    assert publish(store, 4, epoch=epoch) == store.pointer()


def test_old_versions_go_with_the_full_one_before_the_kept_ones(store: SnapshotStore) -> None:
    epoch = store.next_epoch()
    publish(store, 1, epoch=epoch)
    publish(store, 2, "delta", base=1, epoch=epoch)
    publish(store, 3, epoch=epoch)
    publish(store, 4, "delta", base=3, epoch=epoch)
    assert store.versions() == [1, 2, 3, 4]
    newest = publish(store, 5, epoch=epoch)
    assert store.versions() == [3, 4, 5]
    assert store.manifest(2) is None
    assert store.latest_full() == newest


def test_the_chain_leads_from_a_full_one_or_from_what_is_held(store: SnapshotStore) -> None:
    epoch = store.next_epoch()
    chain = [
        publish(store, 1, epoch=epoch),
        publish(store, 2, "delta", base=1, epoch=epoch),
        publish(store, 4, "delta", base=2, epoch=epoch),
    ]
    assert chain_to(store, chain[-1]) == chain
    assert chain_to(store, chain[-1], held=chain[1]) == chain[2:]
    assert chain_to(store, chain[0], held=chain[1]) == chain[:1]
    stranger = msgspec.structs.replace(chain[1], run_id="another run")
    assert chain_to(store, chain[-1], held=stranger) == chain


def test_a_broken_chain_is_a_gap(store: SnapshotStore) -> None:
    publish(store, 1, epoch=store.next_epoch())
    orphan, _ = snapshot(9, "delta", base=8)
    with pytest.raises(SnapshotGapError, match="version 8 is not in the store, so version 9 cannot be reached"):
        chain_to(store, orphan)


def roll_back(store: SnapshotStore, target: int, *, now: int) -> Manifest:
    return roll_back_to(store, target, reason="worse than before", now_ms=now)


def test_a_rollback_is_an_old_full_version_under_a_new_number_and_epoch(open_store: OpenStore) -> None:
    trainer, ranker = open_store(CONFIG), open_store(CONFIG)
    epoch = trainer.next_epoch()
    publish(trainer, 1, epoch=epoch)
    publish(trainer, 2, "delta", base=1, epoch=epoch)
    publish(trainer, 3, epoch=epoch)
    candidate, payload = snapshot(6, "delta", base=3, epoch=epoch)
    trainer.put(candidate, payload)  # never promoted; its number is taken all the same
    back = roll_back(trainer, 1, now=77)
    assert (back.version, back.kind, back.created_ms) == (7, "full", 77)
    assert back.epoch > epoch
    assert ranker.pointer() == ranker.pointer("stable") == ranker.latest_full() == back
    assert ranker.payload(back) == snapshot(1, epoch=epoch)[1]
    assert ranker.denied() == {2, 3}
    [record] = ranker.rollbacks()
    assert (record.version, record.target, record.denied, record.epoch) == (7, 1, [2, 3], back.epoch)
    assert (record.reason, record.at_ms) == ("worse than before", 77)
    assert ranker.announcements(FIRST_ANNOUNCEMENT, 1)[-1].version == 7
    with pytest.raises(StaleEpochError):
        trainer.promote(candidate)
    assert ranker.pointer() == back


def test_versions_that_were_denied_are_no_target_and_never_healed_from(store: SnapshotStore) -> None:
    epoch = store.next_epoch()
    for version in (1, 2, 3):
        publish(store, version, epoch=epoch)
    roll_back(store, 2, now=1)
    with pytest.raises(SnapshotMissingError, match="version 3 was rolled back; full versions that are kept: 2, 4"):
        roll_back(store, 3, now=2)
    assert store.denied() == {3}
    with pytest.raises(SnapshotMissingError, match="version 9 is not kept as a full one"):
        roll_back(store, 9, now=2)


def test_the_stable_lane_follows_when_it_is_released(open_store: OpenStore) -> None:
    store = open_store(replace(CONFIG, keep_fulls=1))
    epoch = store.next_epoch()
    for version, kind, base in ((1, "full", 0), (2, "delta", 1), (3, "delta", 2), (4, "full", 0)):
        manifest, payload = snapshot(version, "full" if kind == "full" else "delta", base, epoch)
        store.put(manifest, payload)
        store.promote(manifest, release=False)
    stable = store.pointer("stable")
    assert stable is not None and stable.version == 1, "the first version of all is released at once"
    assert store.versions() == [1, 2, 3, 4], "what the stable lane needs stays, beyond keep_fulls too"
    assert [store.release(3, epoch), store.release(2, epoch), store.release(9, epoch)] == [True, False, False]
    held = store.pointer("stable")
    assert held is not None and held.version == 3
    assert [manifest.version for manifest in chain_to(store, held, stable)] == [2, 3]
    heal, newest = store.latest_full("stable"), store.pointer()
    assert heal is not None and newest is not None and (heal.version, newest.version) == (1, 4)
    later = store.next_epoch()
    with pytest.raises(StaleEpochError, match=f"this one holds epoch {epoch} and must stop"):
        store.release(4, epoch)
    assert store.release(4, later)
    publish(store, 5, epoch=later)
    assert store.versions() == [5]


def test_a_rejected_version_keeps_its_findings_and_its_payload(store: SnapshotStore) -> None:
    manifest, payload = snapshot(1, epoch=store.next_epoch())
    store.put(manifest, payload)
    findings = [Finding(check="psi", state="block", text="moved")]
    store.reject(manifest, "psi: moved", findings)
    assert store.rejected()[0].findings == findings
    assert store.payload(manifest) == payload
    assert store.last_version() == 1
    with pytest.raises(SnapshotMissingError):
        store.payload(snapshot(2)[0])


def test_a_payload_of_another_length_than_its_manifest_says_is_not_fetched(store: SnapshotStore) -> None:
    manifest, payload = snapshot(1, epoch=store.next_epoch())
    for put in (b"", payload[:-1], payload + b"x"):
        store.put(manifest, put)
        with pytest.raises(SnapshotLengthError, match=f"has {len(put)} bytes, its manifest says {len(payload)}"):
            store.payload(manifest)


def test_a_payload_larger_than_allowed_is_not_fetched_whatever_its_manifest_says(open_store: OpenStore) -> None:
    store = open_store(replace(CONFIG, max_payload_bytes=3))
    manifest, payload = snapshot(1, epoch=store.next_epoch())
    store.put(manifest, payload)
    with pytest.raises(SnapshotLengthError, match="at most 3 are allowed: model=main version=1"):
        store.payload(manifest)


def test_a_payload_of_several_parts_is_fetched_whole(store: SnapshotStore) -> None:
    payload = bytes(range(256)) * (PART_BYTES // 100)
    manifest = msgspec.structs.replace(snapshot(1, epoch=store.next_epoch())[0], payload_bytes=len(payload))
    store.put(manifest, payload)
    fetched = store.payload(manifest)
    assert fetched == payload
    store.put(msgspec.structs.replace(manifest, version=2), fetched)
    assert store.payload(msgspec.structs.replace(manifest, version=2)) == payload


@pytest.mark.integration
def test_only_live_versions_never_expire(redis_server: str) -> None:
    config = replace(CONFIG, prefix="test:expiry", keep_fulls=1, candidate_ttl_s=500, retired_ttl_s=50)
    store = RedisSnapshotStore(redis_server, "main", config)
    client = redis.Redis.from_url(redis_server)
    epoch = store.next_epoch()
    key = "test:expiry:{main}:payload:%d:" + str(epoch)
    store.put(*snapshot(1, epoch=epoch))
    assert 0 < client.ttl(key % 1) <= 500
    store.promote(snapshot(1, epoch=epoch)[0])
    assert client.ttl(key % 1) == -1
    publish(store, 2, epoch=epoch)
    assert 0 < client.ttl(key % 1) <= 50
    client.close()
    store.close()


@pytest.mark.integration
def test_a_store_that_lost_everything_takes_the_same_trainer_again(redis_server: str) -> None:
    config = replace(CONFIG, prefix="test:lost")
    store = RedisSnapshotStore(redis_server, "main", config)
    epoch = store.next_epoch() + 6
    publish(store, 7, epoch=epoch)
    client = redis.Redis.from_url(redis_server)
    client.delete(*client.keys("test:lost:*"))
    delta, payload = snapshot(8, "delta", base=7, epoch=epoch)
    store.put(delta, payload)
    with pytest.raises(SnapshotGapError):
        store.promote(delta)
    assert publish(store, 9, epoch=epoch) == store.pointer()
    assert store.next_epoch() > epoch
    client.close()
    store.close()


@pytest.mark.integration
def test_a_redis_that_is_gone_is_one_error_class(free_port: Callable[[], int]) -> None:
    store = RedisSnapshotStore(f"redis://127.0.0.1:{free_port()}/0", "main", replace(CONFIG, timeout_ms=200))
    manifest, payload = snapshot(1)
    for call in (
        store.next_epoch,
        store.pointer,
        store.versions,
        store.latest_full,
        store.rejected,
        store.rollbacks,
        store.denied,
        store.last_version,
        lambda: store.release(1, 1),
        lambda: store.pointer("stable"),
        lambda: store.put(manifest, payload),
        lambda: store.promote(manifest),
        lambda: store.reject(manifest, "reason"),
        lambda: store.manifest(1),
        lambda: store.payload(manifest),
        lambda: store.announcements(FIRST_ANNOUNCEMENT, 10),
    ):
        with pytest.raises(StoreUnavailableError, match="snapshot store does not answer"):
            call()
    store.close()
