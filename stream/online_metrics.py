"""Online metrics of one partition of `examples`: windows, drift alarms and version cohorts by scenario and task.

What is known of a partition is a function of its messages in order and of nothing else. So a state that is stored
together with the offset it goes on from is right whoever wrote it, and reading on from there gives what a worker that
never stopped would have.

    message -> settled labels -> 1 wait until their window has closed -> 2 window, 3 cohorts, 4 drift

1: a policy may send positives at once and the negatives of the same slate when the window closes. Counted as they come
a young version, or growing traffic, would look better than it is; so positives wait for their negatives. What has
closed is counted once per `_STEP_MS` of the watermark: small portions would cost ten times as much.
"""

from collections import Counter
from typing import NamedTuple

import msgspec
import numpy as np

from stream.exceptions import DecodeError
from stream.online_drift import DriftDetector, DriftState
from stream.online_metrics_config import OnlineMetricsConfig
from stream.settled_labels import LABEL, Cell, Labels, SettledMessage
from stream.version_cohorts import Cohort, VersionCohorts

SCORED = np.dtype([("score", "<f4"), ("label", "i1")])
_STATE_VERSION = 1
_STEP_MS = 1_000


class _CellState(msgspec.Struct):
    waiting: bytes
    window: bytes
    drift: DriftState
    cohorts: tuple[Cohort, ...]


class _PartitionState(msgspec.Struct):
    next_offset: int
    step: int
    """Watermark at which closed labels were last counted, in steps."""
    cells: dict[str, dict[str, _CellState]]
    """By scenario and task."""
    settings: tuple[int, int, int, float] = (0, 0, 0, 0.0)
    version: int = _STATE_VERSION


class CellMetrics:
    """One scenario and task of one partition."""

    def __init__(self, config: OnlineMetricsConfig, state: _CellState | None = None) -> None:
        self._config = config
        self._waiting = [np.frombuffer(state.waiting if state else b"", LABEL)]
        self.window = np.frombuffer(state.window if state else b"", SCORED)
        """Scores and labels, the oldest first. Replaced, never changed, so that another thread may look at it."""
        self.cohorts = VersionCohorts(least_labels=config.cohort_labels, state=state.cohorts if state else ())
        self._drift = DriftDetector(
            block_labels=config.drift_block_labels, delta=config.drift_delta, state=state.drift if state else None
        )

    def add(self, labels: Labels) -> None:
        """Takes up labels."""
        self._waiting.append(labels)

    def count_closed(self, watermark_ms: int) -> int:
        """Counts the labels whose window has closed; returns how many drift alarms they raise."""
        waiting = np.concatenate(self._waiting)
        waiting = waiting[np.argsort(waiting["close_ms"], kind="stable")]
        num_closed = int(np.searchsorted(waiting["close_ms"], watermark_ms))
        num_closed = max(num_closed, len(waiting) - self._config.max_waiting)
        closed, self._waiting = waiting[:num_closed], [waiting[num_closed:]]
        if not num_closed:
            return 0
        scored = np.empty(num_closed, SCORED)
        scored["score"], scored["label"] = closed["score"], closed["label"]
        self.window = np.concatenate((self.window, scored))[-self._config.window_labels :]
        self.cohorts.update(closed)
        return self._drift.update(closed)

    def state(self) -> _CellState:
        """Returns what another worker goes on from."""
        waiting = b"".join(labels.tobytes() for labels in self._waiting)
        return _CellState(waiting, self.window.tobytes(), self._drift.state, self.cohorts.state)


class FoldResult(NamedTuple):
    """What one message came to, beside the figures."""

    alarms: Counter[Cell]
    num_labels: int
    num_left_out: int
    """Labels of scenarios beyond `max_scenarios`."""


class PartitionMetrics:
    """All scenarios and tasks of one partition, and the offset to go on from."""

    def __init__(self, config: OnlineMetricsConfig) -> None:
        self._config = config
        self.next_offset = 0
        self._step = -1
        self.cells: dict[Cell, CellMetrics] = {}
        self._scenarios: set[str] = set()

    def fold(self, offset: int, message: SettledMessage) -> FoldResult:
        """Takes up one message. It must be the next one of the partition: offset at least `next_offset`."""
        assert offset >= self.next_offset, f"offset {offset} has been taken up; the next is {self.next_offset}"
        self.next_offset = offset + 1
        alarms: Counter[Cell] = Counter()
        num_labels = num_left_out = 0
        for (scenario, task), labels in message.labels.items():
            if scenario not in self._scenarios and len(self._scenarios) == self._config.max_scenarios:
                num_left_out += len(labels)
                continue
            self._scenarios.add(scenario)
            if (scenario, task) not in self.cells:
                self.cells[scenario, task] = CellMetrics(self._config)
            self.cells[scenario, task].add(labels)
            num_labels += len(labels)
        step = message.watermark_ms // _STEP_MS
        if step != self._step:
            self._step = step
            for cell, metrics in self.cells.items():
                if num_alarms := metrics.count_closed(message.watermark_ms):
                    alarms[cell] = num_alarms
        return FoldResult(alarms, num_labels, num_left_out)

    def skip(self, offset: int) -> None:
        """Leaves out a message that could not be read."""
        self.next_offset = offset + 1

    def encode(self) -> bytes:
        """Returns the state, offset and all, as one value."""
        cells: dict[str, dict[str, _CellState]] = {}
        for (scenario, task), cell in self.cells.items():
            cells.setdefault(scenario, {})[task] = cell.state()
        return msgspec.msgpack.encode(_PartitionState(self.next_offset, self._step, cells, _settings(self._config)))

    @classmethod
    def decode(cls, data: bytes, config: OnlineMetricsConfig) -> "PartitionMetrics":
        """Returns the metrics whose state is in `data`.

        Raises:
            DecodeError: no state of ours, or one that was kept under other settings.
        """
        try:
            state = _DECODER.decode(data)
            if (state.version, state.settings) != (_STATE_VERSION, _settings(config)):
                raise ValueError("kept by another release or under other settings")
            metrics = cls(config)
            metrics.next_offset, metrics._step = state.next_offset, state.step
            metrics.cells = {
                (scenario, task): CellMetrics(config, cell)
                for scenario, cells in state.cells.items()
                for task, cell in cells.items()
            }
            metrics._scenarios = set(state.cells)
        except (msgspec.MsgspecError, ValueError) as error:
            raise DecodeError(f"state of online metrics: {error}") from error
        return metrics


_DECODER = msgspec.msgpack.Decoder(_PartitionState)


def _settings(config: OnlineMetricsConfig) -> tuple[int, int, int, float]:
    """Returns the settings that what is kept depends on."""
    return (config.window_labels, config.cohort_labels, config.drift_block_labels, config.drift_delta)
