"""The watcher's thread: announcements wake it, and no failure of the store ends it."""

import pytest

from model.exceptions import StoreUnavailableError
from model.snapshot import Manifest
from model.store import Announcement, Lane, MemorySnapshotStore
from ranker.watcher import WatcherConfig
from tests.ranker.given import Trainer, parts, wait_for


class Moody(MemorySnapshotStore):
    """A store that can be out of order, in a way it foresees or in one that nobody did."""

    trouble: Exception | None = None

    def pointer(self, lane: Lane = "canary") -> Manifest | None:
        if self.trouble:
            raise self.trouble
        return super().pointer(lane)

    def announcements(self, after_id: str, block_ms: int) -> list[Announcement]:
        if self.trouble:
            raise self.trouble
        return super().announcements(after_id, block_ms)


def test_it_starts_with_what_is_there_and_takes_up_what_is_announced() -> None:
    given = parts()
    trainer = Trainer(given.store)
    trainer.publish("full")
    follower = given.ranker.follower
    given.watcher.start()
    try:
        wait_for(lambda: follower.live, "the first version is served")
        for kind in ("delta", "delta", "full"):
            version = trainer.publish(kind).version
            wait_for(lambda v=version: follower.live and follower.live.manifest.version == v, f"version {version}")
    finally:
        given.watcher.stop()
    assert follower.is_current


@pytest.mark.parametrize(
    ("trouble", "counter"),
    [
        (StoreUnavailableError("snapshot store does not answer"), "store_unavailable"),
        (RuntimeError("nobody foresaw this"), "watcher_failures"),
    ],
)
def test_trouble_is_counted_and_what_was_missed_is_caught_up_with(trouble: Exception, counter: str) -> None:
    store = Moody()
    given = parts(store=store)
    trainer = Trainer(store)
    trainer.publish("full")
    follower = given.ranker.follower
    given.watcher.start()
    try:
        wait_for(lambda: follower.live, "the first version is served")
        store.trouble = trouble
        wait_for(lambda: getattr(given.stats, counter) >= 3, "trouble is counted")
        assert not follower.is_current and follower.live is not None
        trainer.publish("delta")
        trainer.publish("delta")
        store.trouble = None
        wait_for(lambda: follower.live and follower.live.manifest.version == 3, "the newest version")
        wait_for(lambda: follower.is_current, "all is well again")
    finally:
        given.watcher.stop()


def test_it_stops_while_the_store_is_away() -> None:
    store = Moody()
    store.trouble = StoreUnavailableError("gone")
    given = parts(store=store)
    given.watcher.start()
    wait_for(lambda: given.stats.store_unavailable, "it has tried")
    given.watcher.stop()
    assert not given.watcher._thread.is_alive()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_ms": 9}, "block_ms: 9 is not allowed; at least 10"),
        ({"first_backoff_ms": 0}, "first_backoff_ms: 0 is not allowed; at least 1"),
        ({"first_backoff_ms": 20, "max_backoff_ms": 10}, "max_backoff_ms: 10 is not allowed; at least 20"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WatcherConfig(**settings)
