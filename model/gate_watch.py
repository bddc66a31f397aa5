"""What the trainer does about its gate: windows, lanes, and the way back when something is out of order.

A window that fails, or a canary lane that is worse, moves the pointer back (`model.rollback`) and ends this trainer
with `RolledBackError`. The next one goes on from a checkpoint of before, skips the offsets of the failed window, and
from their end on looks at its examples without learning them until a window is in order: a poisoned stretch of any
length costs what was in it, and is never learned.
"""

import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from model.canary import Canary
from model.checkpoint import Position
from model.exceptions import RolledBackError, SnapshotMissingError, StoreUnavailableError
from model.features import EncodedBatch
from model.gate import PublishGate
from model.gate_config import GateConfig
from model.gate_data import BatchCounts
from model.gate_report import Finding, blocked, sentence
from model.publish import Publisher
from model.rollback import full_versions, has_checkpoint_before, roll_back_to
from model.step_columns import StepColumns
from model.store import Rollback, SnapshotStore

logger = logging.getLogger(__name__)

_WINDOWS_KEPT = 1_000
"""Windows in order whose positions are remembered, to know where one that fails began."""
Positions = Mapping[int, Position]
_CURED_BY_LEARNING = ("calibration", "ne_relative", "unknown", "rows")
"""Checks that block and no more: they speak of the model or of volume, and going back would not make it better."""


class GateWatch:
    """One trainer's watch over its gate and its lanes. Reads no clock: times are passed in."""

    def __init__(
        self,
        config: GateConfig,
        gate: PublishGate,
        canary: Canary,
        *,
        store: SnapshotStore | None,
        folder: Path | None,
        deterministic: bool,
    ) -> None:
        """`folder`: of the checkpoints."""
        self._config, self._store, self._folder = config, store, folder
        self._goes_back = config.on_failure == "rollback" and not deterministic
        self.gate, self.canary = gate, canary
        self.rollback_epoch = 0
        """Epoch of the last rollback that the weights are behind; 0 for none."""
        self._orderly: deque[tuple[int, dict[int, Position]]] = deque(maxlen=_WINDOWS_KEPT)
        self._hold_from: dict[int, int] = {}

    def observe(
        self, seen: StepColumns, counts: BatchCounts, slates: EncodedBatch, *, now_ms: int, watermark_ms: int
    ) -> None:
        """Shows a micro-batch, and its scores from before it is learned, to who judges it."""
        self.gate.observe(seen, counts, slates, now_ms=now_ms, watermark_ms=watermark_ms)
        self.canary.observe(seen.version_B, seen.impression_ms_B, seen.label_BT, seen.settled_BT, seen.served_BT)

    def look(
        self,
        positions: Positions,
        publisher: Publisher | None,
        *,
        now_ms: int,
        watermark_ms: int,
        grace_ms: int,
        rows_learned: int,
    ) -> None:
        """Judges the window of data and labels if it is over, and the lanes. `positions`: what is next to be learned.

        Raises:
            RolledBackError: something is out of order, and the pointer is back where it was not.
            StaleEpochError: another trainer has taken over, or a rollback was made by hand.
        """
        if any(p in positions and positions[p].offset >= first for p, first in self._hold_from.items()):
            self._hold_from = {}
            self.gate.hold()
        if not self.gate.is_window_due(now_ms):
            return
        findings = self.gate.close_window(
            now_ms=now_ms, watermark_ms=watermark_ms, grace_ms=grace_ms, rows_learned=rows_learned
        )
        if publisher is not None:
            publisher.watch_lanes()
        bad = [finding for finding in blocked(findings) if finding.check not in _CURED_BY_LEARNING]
        if not bad:
            self._orderly.append((now_ms, dict(positions)))
        elif self._goes_back and not self.gate.is_holding and self._store is not None and self._folder is not None:
            self._roll_back(self._store, self._folder, bad, positions, publisher, now_ms)
        tripped = blocked(self.canary.judge(now_ms))
        if tripped and self._store is not None and publisher is not None:
            self._leave_canary(self._store, tripped, publisher.stats.released, now_ms)

    def _roll_back(
        self,
        store: SnapshotStore,
        folder: Path,
        bad: list[Finding],
        positions: Positions,
        publisher: Publisher | None,
        now_ms: int,
    ) -> None:
        """Goes back to before the window that failed; holds where there is nothing to go back to."""
        before_ms = now_ms - self._config.window_ms - max(finding.delay_ms for finding in bad)
        try:
            fulls = full_versions(store) if publisher is not None and publisher.stats.version else []
            target = next((full for full in reversed(fulls) if full.created_ms <= before_ms), next(iter(fulls), None))
            if target is None or not has_checkpoint_before(folder, target.version):
                self.gate.hold()
                logger.error("There is nothing to go back to, nothing is learned until the data are in order")
                return
            since = next((at for at_ms, at in reversed(self._orderly) if at_ms <= before_ms), None) or {}
            quarantine = {p: (since[p].offset, end.offset) for p, end in positions.items() if p in since}
            manifest = roll_back_to(
                store, target.version, reason=sentence(bad), now_ms=now_ms, quarantine=quarantine, hold=True
            )
        except (StoreUnavailableError, SnapshotMissingError) as error:
            self.gate.hold()
            logger.error("Not rolled back, nothing is learned until the data are in order error=%s", error)
            return
        raise RolledBackError(f"version {target.version} serves again as {manifest.version}: {sentence(bad)}")

    @staticmethod
    def _leave_canary(store: SnapshotStore, tripped: list[Finding], released: int, now_ms: int) -> None:
        """Goes back to the newest full version that the stable lane has served."""
        try:
            fulls = [full for full in full_versions(store) if full.version <= released]
            if not fulls:
                logger.error("The canary lane is worse, and there is nothing to go back to: %s", sentence(tripped))
                return
            manifest = roll_back_to(store, fulls[-1].version, reason=sentence(tripped), now_ms=now_ms)
        except (StoreUnavailableError, SnapshotMissingError) as error:
            logger.error("The canary lane is worse, not rolled back yet error=%s", error)
            return
        raise RolledBackError(f"version {fulls[-1].version} serves again as {manifest.version}: {sentence(tripped)}")

    def last_rollback(self) -> Rollback | None:
        """Returns what was rolled back last; None if nothing, or if the store does not answer.

        A rollback that is missed here is noticed at the first publish, for another epoch serves then.
        """
        if self._store is None:
            return None
        try:
            return next(iter(self._store.rollbacks()), None)
        except StoreUnavailableError as error:
            logger.warning("The store does not say whether there was a rollback error=%s", error)
            return None

    def take_up(self, rollback: Rollback, positions: Positions, known_epoch: int) -> None:
        """Goes on after a rollback, from a checkpoint that knew of those up to `known_epoch`."""
        self.rollback_epoch = rollback.epoch
        ends = {partition: end for partition, (_, end) in rollback.quarantine.items()}
        is_new = known_epoch < rollback.epoch
        if is_new:
            logger.warning(
                "Going on from before a rollback target=%d quarantine=%s reason=%s",
                rollback.target,
                rollback.quarantine,
                rollback.reason,
            )
        if rollback.hold and not any(p in positions and positions[p].offset >= end for p, end in ends.items()):
            self._hold_from = ends
        if rollback.hold and is_new and not ends:
            self.gate.hold()
