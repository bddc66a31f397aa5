"""Drift alarms on the calibration of what was served: river's ADWIN on standardized calibration errors.

Every `block_labels` labels give one value, z = sum(score - label) / sqrt(sum score (1 - score)): on the average zero,
of variance one, while scores are calibrated, whatever the base rate. A steady bias is no drift; a change of it is. The
base rate itself is not watched: it changes with the hour of the day, and a model that follows it does no harm.

ADWIN's state cannot be written down, but it is a function of the values since its last alarm. So those are the state,
at most `_MOST_VALUES` of them: then the older half is forgotten and ADWIN starts anew on the newer one.
"""

import math
from typing import Any

import msgspec
from river.drift import ADWIN

from stream.settled_labels import Labels

_MOST_VALUES = 1_000
_MOST_Z = 8.0
"""One label that a score of nearly 0 called impossible must not decide alone."""


class DriftState(msgspec.Struct):
    """What a detector goes on from: the values since its last alarm, and the block it has begun."""

    values: list[float] = []
    num_labels: int = 0
    error_sum: float = 0.0
    variance_sum: float = 0.0


class DriftDetector:
    """Watches the labels of one cell in order."""

    def __init__(self, *, block_labels: int, delta: float, state: DriftState | None = None) -> None:
        self._block_labels = block_labels
        self._delta = delta
        self.state = state or DriftState()
        self._restart()

    def update(self, labels: Labels) -> int:
        """Takes up labels; returns how many alarms they raise."""
        score_N = labels["score"].astype(float)
        error_N = score_N - labels["label"]
        variance_N = score_N * (1.0 - score_N)
        num_alarms = start = 0
        state = self.state
        while start < len(labels):
            end = min(len(labels), start + self._block_labels - state.num_labels)
            state.num_labels += end - start
            state.error_sum += float(error_N[start:end].sum())
            state.variance_sum += float(variance_N[start:end].sum())
            start = end
            if state.num_labels == self._block_labels:
                num_alarms += self._take(state.error_sum / math.sqrt(max(state.variance_sum, 1e-9)))
                state.num_labels, state.error_sum, state.variance_sum = 0, 0.0, 0.0
        return num_alarms

    def _take(self, z: float) -> bool:
        value = min(max(z, -_MOST_Z), _MOST_Z)
        self.state.values.append(value)
        self._adwin.update(value)
        if self._adwin.drift_detected:
            self.state.values.clear()  # as ADWIN itself does at the next value
            return True
        if len(self.state.values) == _MOST_VALUES:
            del self.state.values[: _MOST_VALUES // 2]
            self._restart()
        return False

    def _restart(self) -> None:
        self._adwin = _adwin(self._delta)
        for value in self.state.values:
            self._adwin.update(value)


def _adwin(delta: float) -> Any:
    # It looks at every value: a block has been waited for already.
    return ADWIN(delta=delta, clock=1)  # type: ignore[no-untyped-call]  # river has no types
