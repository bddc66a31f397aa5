"""From a model in training to a live snapshot: candidate, gate, promotion, in the numbered order of `model.store`.

Where rows have left memory, theirs is the step before and the one after (`model.row_publish`).
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from model.calibrator import Pairs
from model.canary import Canary
from model.exceptions import SnapshotGapError, StaleEpochError, StoreError, StoreUnavailableError
from model.feedback_sample import FeedbackSample
from model.gate import PublishGate
from model.gate_report import blocked, sentence
from model.progressive import Report
from model.row_publish import RowPublisher, RowStats
from model.scenario_registry import ScenarioRegistry
from model.snapshot import Manifest, encode_payload, payload_sha256
from model.store import SnapshotStore, stale_epoch

logger = logging.getLogger(__name__)


class Published(Protocol):
    """A model in training as a publisher sees it."""

    @property
    def registry(self) -> ScenarioRegistry:
        """The scenarios it has, by index."""

    def serving_full(self) -> dict[str, Tensor]:
        """Returns what serving needs, complete."""

    def serving_delta(self) -> dict[str, Tensor]:
        """Returns what changed since the last promoted export."""

    def mark_promoted(self) -> None:
        """Makes the last export the base of the next delta."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What all snapshots of one run have in common."""

    model: str
    schema_hash: str
    config_hash: str
    tasks: list[str]
    model_config: dict[str, Any]
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the weights have learned."""

    step: int
    watermark_ms: int
    offsets: dict[int, int]
    metrics: Report
    rows: int = 0
    """Rows learned, over all time."""
    calibration: Pairs = field(default_factory=dict)


@dataclass(slots=True)
class PublishStats:
    """What one publisher did, and what is live by it."""

    snapshots: Counter[str] = field(default_factory=lambda: Counter(full=0, delta=0))
    """Snapshots that went live, by kind: `full`, `delta`."""
    failures: Counter[str] = field(default_factory=lambda: Counter(unavailable=0, rejected=0, refused=0, frozen=0))
    """Snapshots that did not, by reason: `unavailable` (the store does not answer), `rejected` (by the gate), `frozen`
    (not even tried, after many rejections), `refused` (by the store; the next one is a full one)."""
    version: int = 0
    """The version that is live by this trainer; 0 before the first."""
    released: int = 0
    """The version that the stable lane serves by this trainer; 0 before the first."""
    epoch: int = 0
    """The epoch this trainer holds; 0 before the store gave one."""
    payload_bytes: int = 0
    """Size of the last payload that went live."""
    rows: int = 0
    """Embedding rows in it."""
    last_ms: int = 0
    """How long the last successful publish kept the trainer from training."""
    cold: RowStats = field(default_factory=RowStats)
    """What was done with the row store."""


class Publisher:
    """Publishes a model's weights to one store. Runs on the trainer's thread: nothing is learned meanwhile.

    The first snapshot of a trainer is a full one, and so is the first after a scenario was added. A delta follows only
    on a live version of its own epoch: whatever was lost in between (a store that forgot, a candidate that failed),
    rows stay marked until a version with them is live.
    """

    def __init__(
        self,
        store: SnapshotStore,
        identity: Identity,
        *,
        full_every: int,
        now_ms: Callable[[], int],
        last_version: int,
        stats: PublishStats,
        gate: PublishGate,
        canary: Canary,
        rows: RowPublisher | None = None,
    ) -> None:
        """`rows` writes those that have left memory; None: none ever do."""
        self._store = store
        self._identity = identity
        self._full_every = full_every
        self._now_ms = now_ms
        self._version = last_version
        self._gate = gate
        self._canary = canary
        self._rows = rows
        self._deltas_since_full = 0
        self._candidate_rows = 0
        self.feedback = FeedbackSample()
        self.stats = stats

    @property
    def last_version(self) -> int:
        """The last version number given out, live or not."""
        return self._version

    def publish(self, model: Published, progress: Progress) -> Manifest | None:
        """Returns the manifest that went live; None if none did, which is counted and logged.

        Raises:
            StaleEpochError: another trainer has taken over.
        """
        started_ms = self._now_ms()
        try:
            manifest = self._publish(model, progress)
        except StoreUnavailableError as error:
            self.stats.failures["unavailable"] += 1
            logger.warning("Snapshot not published, training goes on error=%s", error)
            return None
        except StaleEpochError:
            raise
        except (StoreError, SnapshotGapError) as error:
            self._refused(error)
            return None
        self.stats.last_ms = self._now_ms() - started_ms
        return manifest

    def _publish(self, model: Published, progress: Progress) -> Manifest | None:
        gate = self._gate
        if not self.stats.epoch:
            self._start()
        live = self._store.pointer()
        if live is not None and live.epoch > self.stats.epoch:
            raise stale_epoch(live, live.epoch, self.stats.epoch)
        if gate.is_frozen:
            self.stats.failures["frozen"] += 1
            return None
        if live is not None and live.epoch == self.stats.epoch and live.version != self.stats.version:
            # The answer to the last promotion was lost. Rows stay marked, so the next delta holds them once more.
            gate.promoted(live)
            self._went_live(live, self._candidate_rows)
        is_delta = (
            live is not None
            and live.epoch == self.stats.epoch
            and live.scenarios == list(model.registry.names)
            and self._deltas_since_full + 1 < self._full_every
            and not (self._rows is not None and self._rows.needs_full())
        )
        tensors = model.serving_delta() if is_delta else model.serving_full()
        payload = encode_payload(tensors)
        num_rows = self._candidate_rows = len(tensors["rows.keys"])
        # Every candidate has a number of its own, so that no key of the store is ever written twice.
        self._version += 1
        at = None
        if self._rows is not None:
            at = self._rows.write(epoch=self.stats.epoch, version=self._version, is_full=not is_delta)  # 0
            gate.level0.read_cold = partial(self._rows.read, at)
        event_ms, joined_ms, trained_ms = self.feedback.stamps().T.tolist()
        manifest = Manifest(
            **{name: getattr(self._identity, name) for name in Identity.__dataclass_fields__},
            scenarios=list(model.registry.names),
            scenario_parents=dict(model.registry.parents),
            version=self._version,
            base_version=live.version if live is not None and is_delta else 0,
            kind="delta" if is_delta else "full",
            step=progress.step,
            created_ms=self._now_ms(),
            watermark_ms=progress.watermark_ms,
            offsets=progress.offsets,
            metrics=progress.metrics,
            payload_sha256=payload_sha256(payload),
            payload_bytes=len(payload),
            epoch=self.stats.epoch,
            feedback_ms=event_ms,
            feedback_joined_ms=joined_ms,
            feedback_trained_ms=trained_ms,
            calibration=progress.calibration,
            cold_rows=at,
        )
        self._store.put(manifest, payload)  # 1, 2
        findings = gate.judge(manifest, tensors, num_rows=num_rows, rows_learned=progress.rows)  # 3
        if blocked(findings):
            gate.rejected()
            self.stats.failures["rejected"] += 1
            self._store.reject(manifest, sentence(findings), findings)
            logger.error("Snapshot failed its gate version=%d reasons=%s", manifest.version, sentence(findings))
            return None
        self._store.promote(manifest, release=not self._canary.is_on)  # 4
        model.mark_promoted()
        self.feedback.clear()
        gate.promoted(manifest)
        self._went_live(manifest, num_rows)
        if self._rows is not None:
            self._rows.went_live(self._store, is_full=not is_delta)  # 5
        return manifest

    def _start(self) -> None:
        """Claims the right to publish; done at the first publish, so that training starts without the store too."""
        self._version = max(self._version, self._store.last_version())
        self.stats.epoch = self._store.next_epoch()
        self._gate.level0.last_version = self._version
        stable = self._store.pointer("stable")
        if stable is not None:
            self._released(stable.version)
        logger.info("Publishing starts epoch=%d after_version=%d", self.stats.epoch, self._version)

    def watch_lanes(self) -> None:
        """Lets the stable lane follow what has served the canary lane long enough; looks for who has taken over.

        Raises:
            StaleEpochError: another trainer has taken over, or a rollback was made.
        """
        if not self.stats.epoch:
            return
        try:
            live = self._store.pointer()
            if live is not None and live.epoch > self.stats.epoch:
                raise stale_epoch(live, live.epoch, self.stats.epoch)
            due = self._canary.due(self._now_ms()) if self._canary.is_on else None
            if due is not None and self._store.release(due, self.stats.epoch):
                self._released(due)
        except StoreUnavailableError as error:
            logger.warning("Lanes not looked at, training goes on error=%s", error)

    def _released(self, version: int) -> None:
        self.stats.released = version
        self._canary.released(version, self._now_ms())

    def _went_live(self, manifest: Manifest, num_rows: int) -> None:
        self._deltas_since_full = 0 if manifest.kind == "full" else self._deltas_since_full + 1
        self.stats.snapshots[manifest.kind] += 1
        if self._canary.is_on and self.stats.released:
            self._canary.promoted(manifest.version, self._now_ms())
        else:  # the first of all goes to both lanes, or there is but one
            self._released(manifest.version)
        self.stats.version = manifest.version
        self.stats.payload_bytes = manifest.payload_bytes
        self.stats.rows = num_rows

    def _refused(self, error: Exception) -> None:
        self.stats.failures["refused"] += 1
        self._deltas_since_full = self._full_every
        logger.warning("Snapshot refused, the next one is a full one error=%s", error)
