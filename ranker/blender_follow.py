"""Following the store of learned weights: what serves, who explores, and the thread that looks.

Exploration is a lease. Each look that finds the switch on extends it by two seconds; a look that finds it off, absent
or unreadable ends it at once, and a store that hangs lets it run out. So the switch acts within two seconds, whatever
state the store is in. Learned weights are different: what is held goes on serving while the store is away.
"""

import logging
from collections.abc import Callable

from ranker.stats import RankerStats
from ranker.watch_thread import WatchThread
from utility_blender.blend import STATIC_VERSION, Blender
from utility_blender.exceptions import BlenderUnavailableError, BlenderVersionError
from utility_blender.learned import policy_from_dict
from utility_blender.serving import Lanes, ReadyVersion
from utility_blender.store import BlenderStore, Pointer

logger = logging.getLogger(__name__)

LEASE_S = 2.0
"""Seconds that requests explore after a look that found the switch on."""
POLL_S = 0.5
"""Seconds between two looks."""


class BlenderFollower:
    """Keeps the lanes of a blender and its lease at what the store says. For one thread."""

    def __init__(
        self,
        store: BlenderStore,
        blender: Blender,
        stats: RankerStats,
        *,
        schema_hash: str,
        elapsed_s: Callable[[], float],
        may_explore: bool = True,
    ) -> None:
        """From here on the switch decides who explores, unless the config leaves it out.

        Args:
            store: What is followed.
            blender: What is kept up to date.
            stats: Counts.
            schema_hash: Versions of other schemas are refused.
            elapsed_s: The blender's own clock.
            may_explore: False: this ranker never explores, whatever the switch says. For one that serves models on
                trial: a draw must be the only thing that is left to chance.
        """
        self._store = store
        self._blender = blender
        self._stats = stats
        self._schema_hash = schema_hash
        self._elapsed_s = elapsed_s
        self._served: Pointer | None = None  # the lanes are what this one says
        self._refused: Pointer | None = None  # told about in the log already
        self._has_switch = blender.law.kill_switch and may_explore
        if self._has_switch or not may_explore:
            blender.explore_until_s = 0.0

    def round(self) -> None:
        """Looks once.

        Raises:
            BlenderUnavailableError: the store does not answer; the lanes have not changed, and nobody explores.
        """
        if self._has_switch:
            self._renew()
        pointer = self._store.pointer()
        if pointer is None or pointer == self._served:  # a pointer that is gone is no news: stay
            return
        try:
            self._blender.lanes = self._lanes(pointer)
        except BlenderVersionError as error:
            self._refuse(pointer, error)
            return
        self._served = pointer
        self._stats.blenders_applied += 1
        logger.info("The weights are those of: version=%d share=%g", pointer.version, pointer.share)

    def _renew(self) -> None:
        start_s = self._elapsed_s()
        try:
            is_on = self._store.exploration()
        except BaseException:
            self._blender.explore_until_s = 0.0
            raise
        self._blender.explore_until_s = start_s + LEASE_S if is_on else 0.0

    def _lanes(self, pointer: Pointer) -> Lanes:
        """Returns what a pointer says.

        Raises:
            BlenderVersionError: one of the versions cannot be served.
        """
        newest = self._ready(pointer.version)
        if pointer.share == 1 or newest is None:
            return Lanes(stable=newest)
        return Lanes(stable=self._ready(pointer.previous), trial=newest, share=pointer.share)

    def _ready(self, number: int) -> ReadyVersion | None:
        if number == STATIC_VERSION:
            return None
        lanes = self._blender.lanes
        for held in (lanes.stable, lanes.trial):
            if held is not None and held.version == number:  # a version never changes
                return held
        version = self._store.get(number)
        if number in self._store.denied():
            raise BlenderVersionError("denied", f"version {number} was rolled back")
        if version.schema_hash != self._schema_hash:
            raise BlenderVersionError("schema", f"made for schema {version.schema_hash}, not {self._schema_hash}")
        try:
            policy = policy_from_dict(version.policy)
        except ValueError as error:
            raise BlenderVersionError("policy", str(error)) from error
        return self._blender.made_ready(version, policy)

    def _refuse(self, pointer: Pointer, error: BlenderVersionError) -> None:
        """Goes on with what is held, but for what was rolled back: the config's weights take its place."""
        self._stats.blenders_refused[error.reason] += 1
        denied, lanes = self._store.denied(), self._blender.lanes
        if lanes.trial is not None and lanes.trial.version in denied:
            lanes = Lanes(stable=lanes.stable)
        if lanes.stable is not None and lanes.stable.version in denied:
            lanes = Lanes()
        self._blender.lanes = lanes
        if pointer != self._refused:  # once per pointer, not once per look
            logger.warning(
                "Learned weights cannot be served, going on with: version=%d reason=%s error=%s",
                lanes.version,
                error.reason,
                error,
            )
        self._refused = pointer


class BlenderWatcher(WatchThread):
    """The thread that looks, apart from that of the snapshots: the switch must act while a large model is loading."""

    def __init__(self, follower: BlenderFollower, stats: RankerStats) -> None:
        super().__init__("blender-watcher")
        self._follower = follower
        self._stats = stats

    def run(self) -> None:
        """Looks every half second until `stop` is called."""
        is_away = False
        while not self._stop.is_set():
            try:
                self._follower.round()
                is_away = False
            except BlenderUnavailableError as error:
                if not is_away:  # once per outage
                    logger.warning("The store of learned weights does not answer: error=%s", error)
                is_away = True
                self._stats.blender_store_unavailable += 1
            except Exception:  # the outermost frame of the thread: what nobody foresaw must not end the watching
                logger.exception("Looking for learned weights failed, going on with what is held")
                self._stats.watcher_failures += 1
            self._stop.wait(POLL_S)
