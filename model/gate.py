"""The publish gate, level 0: what a candidate snapshot must be before anybody may serve it.

Checks, at every publish: all values finite; the version rises; a delta stands on the last promoted version; not
suspiciously many rows. Checks that need labels (NE, calibration) or a probe set (drift, churn) are not here yet.
"""

import statistics
from collections import deque

import torch

from model.snapshot import Manifest, first_non_finite

MAX_ROWS_FACTOR = 10
"""A delta may hold at most so many times the usual rows per step."""
_USUAL_OVER = 20
"""Promoted deltas that "usual" is the median of; fewer are not judged."""


class PublishGate:
    """Judges candidates one after the other and remembers what was promoted."""

    def __init__(self, last_version: int) -> None:
        self._last_version = last_version
        self._promoted: Manifest | None = None
        self._rows_per_step: deque[float] = deque(maxlen=_USUAL_OVER)

    def reasons(self, manifest: Manifest, tensors: dict[str, torch.Tensor], num_rows: int) -> list[str]:
        """Returns why this candidate must not be served; empty if it may be."""
        found = []
        bad = first_non_finite(tensors)
        if bad is not None:
            found.append(f"tensor {bad} holds NaN or infinity")
        if manifest.version <= self._last_version:
            found.append(f"version {manifest.version} is not after version {self._last_version}")
        self._last_version = max(self._last_version, manifest.version)
        if manifest.kind == "delta":
            found += self._delta_reasons(manifest, num_rows)
        return found

    def _delta_reasons(self, manifest: Manifest, num_rows: int) -> list[str]:
        if self._promoted is None or manifest.base_version != self._promoted.version:
            live = self._promoted.version if self._promoted else 0
            return [f"its base is version {manifest.base_version}, the last promoted one is {live}"]
        if len(self._rows_per_step) < _USUAL_OVER:
            return []
        usual = statistics.median(self._rows_per_step)
        rows_per_step = self._per_step(manifest, num_rows)
        if rows_per_step > MAX_ROWS_FACTOR * usual:
            return [f"{rows_per_step:.0f} rows per step, usual are {usual:.0f}"]
        return []

    def promoted(self, manifest: Manifest, num_rows: int) -> None:
        """Takes note that this version went live."""
        if manifest.kind == "delta":
            self._rows_per_step.append(self._per_step(manifest, num_rows))
        self._promoted = manifest

    def _per_step(self, manifest: Manifest, num_rows: int) -> float:
        steps = manifest.step - (self._promoted.step if self._promoted else 0)
        return num_rows / max(1, steps)
