"""The thread that follows the snapshot store. Serving never waits for it, and it outlives every failure of the store.

Announcements only wake it up; what should be served is what the store's pointer names (`ranker.follow`). So an
announcement that is lost, late or doubled changes nothing.
"""

import logging
from dataclasses import dataclass

from model.exceptions import StoreUnavailableError
from model.store import FIRST_ANNOUNCEMENT, SnapshotStore
from ranker.follow import SnapshotFollower
from ranker.stats import RankerStats
from ranker.watch_thread import WatchThread

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherConfig:
    """How the watcher waits."""

    block_ms: int = 500
    """Milliseconds one wait for announcements lasts, and so the longest time it takes to stop; at least 10."""
    first_backoff_ms: int = 50
    """Milliseconds before a store that does not answer is asked again; doubles each time; at least 1."""
    max_backoff_ms: int = 1_000
    """Longest of these waits; at least `first_backoff_ms`."""

    def __post_init__(self) -> None:
        for name, least in (("block_ms", 10), ("first_backoff_ms", 1), ("max_backoff_ms", self.first_backoff_ms)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")


class SnapshotWatcher(WatchThread):
    """Runs `follower.round` whenever the store announces something, and at least every `block_ms`."""

    def __init__(
        self, store: SnapshotStore, follower: SnapshotFollower, config: WatcherConfig, stats: RankerStats
    ) -> None:
        super().__init__("snapshot-watcher")
        self._store = store
        self._follower = follower
        self._config = config
        self._stats = stats
        self.has_looked = False
        """Whether the store was asked at least once, whatever came of it: until then nobody knows what to serve."""

    def run(self) -> None:
        """Follows the store until `stop` is called."""
        after_id = FIRST_ANNOUNCEMENT
        backoff_ms = self._config.first_backoff_ms
        while not self._stop.is_set():
            try:
                self._follower.round()
                self.has_looked = True
                for announcement in self._store.announcements(after_id, self._config.block_ms):
                    after_id = announcement.id
                backoff_ms = self._config.first_backoff_ms
                continue
            except StoreUnavailableError as error:
                if backoff_ms == self._config.first_backoff_ms:  # once per outage, not once per attempt
                    logger.warning("The snapshot store does not answer, going on with what is held: error=%s", error)
                self._stats.store_unavailable += 1
            except Exception:  # the outermost frame of the thread: what nobody foresaw must not end the watching
                logger.exception("The watcher failed, going on with what is held")
                self._stats.watcher_failures += 1
            self._follower.is_current = False
            self.has_looked = True
            self._stop.wait(backoff_ms / 1000)
            backoff_ms = min(2 * backoff_ms, self._config.max_backoff_ms)
