"""One round of following the snapshot store: from the version in hand to the one the pointer names.

1. read the pointer, and find the way there: deltas on top of what is held, or a full one and the deltas after it
2. fetch, verify and apply each step on a copy
3. warm the result up with a recent request
4. swap one reference

Between the steps requests go first (`ranker.right_of_way`).

Whatever fails on the way is counted by reason, and the version in hand goes on serving. If a chain of deltas is broken,
the newest full snapshot heals it as soon as there is one that is newer than what is held.
"""

import logging
import time
from collections.abc import Callable

import numpy as np

from model.exceptions import (
    ModelError,
    SnapshotError,
    SnapshotFiniteError,
    SnapshotFormatError,
    SnapshotGapError,
    SnapshotHashError,
    SnapshotLengthError,
    SnapshotManifestError,
    SnapshotMissingError,
    SnapshotSchemaError,
)
from model.features import RowColumns
from model.snapshot import Manifest
from model.store import Lane, SnapshotStore, chain_to
from ranker.freshness import FreshnessRecorder
from ranker.live import LiveModel, next_live, warm_up
from ranker.right_of_way import RightOfWay
from ranker.stats import RankerStats
from ranker.version_churn import VersionChurn
from stream.schema import SchemaConfig

logger = logging.getLogger(__name__)

REASONS: dict[type[ModelError], str] = {
    SnapshotManifestError: "manifest",
    SnapshotLengthError: "torn",
    SnapshotHashError: "hash",
    SnapshotFormatError: "format",
    SnapshotFiniteError: "non_finite",
    SnapshotSchemaError: "schema",
    SnapshotGapError: "gap",
    SnapshotMissingError: "missing",
}
"""Why a published version is not served: the keys of `RankerStats.snapshots_refused`."""
MAX_SKIPPED = 100
"""Versions passed over by one swap whose feedback times are still looked up."""
WARM_UP_ITEMS = 64
"""Candidates of the made-up request that warms a model up before there was a real one."""


class SnapshotFollower:
    """Owner of the live model: `live` is read by whoever scores, and replaced by one thread alone."""

    def __init__(
        self,
        store: SnapshotStore,
        schema: SchemaConfig,
        stats: RankerStats,
        freshness: FreshnessRecorder,
        churn: VersionChurn | None = None,
        lane: Lane = "stable",
        elapsed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.live: LiveModel | None = None
        self.is_current = False
        """Whether the last round ended at the version the pointer names."""
        self.recent_columns: RowColumns | None = None
        """A recent request, left here by whoever scores, to warm new versions up with."""
        self.churn = churn
        """Compares each version with the one before; whoever scores tells it the requests. None: nobody does."""
        self.right_of_way = RightOfWay(elapsed_s)
        """Entered by whoever scores, for each request: what is done here then waits between its steps."""
        self._give_way = self.right_of_way.patience()
        self._store = store
        self.lane = lane
        """Whose versions are followed."""
        self._schema = schema
        self._stats = stats
        self._freshness = freshness
        self._given_up: Manifest | None = None  # it cannot be reached, and no second try will change that
        self._measured_version: int | None = None  # feedback of versions up to here is with the recorder, or too old

    def round(self) -> None:
        """Goes to the version the pointer names, or as far as it can.

        Raises:
            StoreUnavailableError: the store does not answer; nothing has changed.
        """
        held = self.live
        self._give_way = self.right_of_way.patience()
        try:
            target = self._target(held)
        except SnapshotError as error:
            self._refuse(error)
            self.is_current = False
            return
        if self._measured_version is None:  # before we started nobody waited for us: not a matter of freshness
            self._measured_version = target.version if target else 0
        if target is None or (held is not None and target == held.manifest):
            self.is_current = (target is None) == (held is None)  # a pointer that is gone is no good news
        elif target != self._given_up:
            self.is_current = self._go(held, target)
            self._given_up = None if self.is_current else target

    def _target(self, held: LiveModel | None) -> Manifest | None:
        """Returns what should be served; None: nothing yet."""
        pointer = self._store.pointer(self.lane)
        if held is None or pointer is None:
            return pointer
        if pointer.version < held.manifest.version and pointer.created_ms <= held.manifest.created_ms:
            return held.manifest  # an old pointer (a restored backup) leads back in time: stay
        return pointer

    def _go(self, held: LiveModel | None, target: Manifest) -> bool:
        """Returns whether `target` is served now; if not, something in between may be."""
        reached, failed = held, None
        try:
            for manifest in chain_to(self._store, target, held.manifest if held else None):
                failed = manifest
                reached = self._step(reached, manifest)
        except (SnapshotError, SnapshotMissingError) as error:
            self._refuse(error)
            reached = self._healed(reached, failed)
        if reached is None or reached is held:
            return False
        return self._swap(reached) and reached.manifest == target

    def _step(self, held: LiveModel | None, manifest: Manifest) -> LiveModel:
        self._give_way()
        payload = self._store.payload(manifest)
        self._give_way()
        return next_live(self._schema, held, manifest, payload, self._give_way)

    def _healed(self, reached: LiveModel | None, failed: Manifest | None) -> LiveModel | None:
        """Returns the newest full version if it is newer than `reached` and whole, else `reached`."""
        try:
            full = self._store.latest_full(self.lane)
            if full is None or full == failed or (reached is not None and full.version <= reached.manifest.version):
                return reached
            healed = self._step(None, full)
        except (SnapshotError, SnapshotMissingError) as error:
            self._refuse(error)
            return reached
        self._stats.snapshots_healed += 1
        return healed

    def _swap(self, reached: LiveModel) -> bool:
        """Warms `reached` up and makes it the live one. False: its scores are not fit to be served."""
        self._give_way()
        try:
            warm_up(reached, self.recent_columns or _made_up_columns(self._schema))
        except SnapshotError as error:
            self._refuse(error)
            return False
        for manifest in self._newly_measured(reached.manifest):
            self._freshness.arrived(reached.manifest.version, manifest)
        self._measured_version = reached.manifest.version
        held, self.live = self.live, reached
        self._stats.snapshots_applied += 1
        logger.debug("Serving a new version: version=%d kind=%s", reached.manifest.version, reached.manifest.kind)
        if self.churn is not None and held is not None:
            self.churn.compare(held, reached, self._give_way)
        return True

    def _newly_measured(self, reached: Manifest) -> list[Manifest]:
        """Returns the manifests whose feedback `reached` is the first version served here to know."""
        assert self._measured_version is not None, "a version is reached only after the pointer was read"
        first = max(self._measured_version + 1, reached.version - MAX_SKIPPED)
        skipped = [self._skipped(version) for version in range(first, reached.version)]
        newest = [reached] if reached.version > self._measured_version else []
        return [manifest for manifest in skipped if manifest is not None] + newest

    def _skipped(self, version: int) -> Manifest | None:
        try:
            return self._store.manifest(version)
        except SnapshotError:  # its feedback goes unmeasured; that is no reason not to serve a good version
            return None

    def _refuse(self, error: ModelError) -> None:
        reason = next(name for kind, name in REASONS.items() if isinstance(error, kind))
        self._stats.snapshots_refused[reason] += 1
        held = self.live.manifest.version if self.live else 0
        logger.warning("A snapshot cannot be served, going on with: version=%d reason=%s error=%s", held, reason, error)


def _made_up_columns(schema: SchemaConfig) -> RowColumns:
    return RowColumns(
        scenario=[schema.scenarios[0]],
        user_id=["warm-up"],
        item_id=[f"warm-up-{n}" for n in range(WARM_UP_ITEMS)],
        request_index_B=np.zeros(WARM_UP_ITEMS, np.int64),
    )
