"""The teacher that costs nothing: the score logged with the impression, turned back into the network's own logit.

Letters: B rows, M scenarios, T tasks, V versions known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.calibrator import Pairs, pairs_array
from model.hashing import Int64Array
from model.metrics import BoolArray, Float64Array, logit_of
from stream.schema import PolicyName


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedScores:
    """What was served with the impressions of B rows."""

    probability_BT: npt.NDArray[np.float32]
    """Calibrated; NaN where none was logged."""
    version_B: Int64Array
    """The snapshot that scored the row; 0: none."""
    impression_ms_B: Int64Array

    def take(self, rows_B: Int64Array) -> "ServedScores":
        """Returns some of the rows, in the given order."""
        return ServedScores(
            probability_BT=self.probability_BT[rows_B],
            version_B=self.version_B[rows_B],
            impression_ms_B=self.impression_ms_B[rows_B],
        )


class ServedTeacher:
    """Knows with which calibration each promoted version served.

    A version that it does not know, or that was denied, teaches nothing.
    """

    def __init__(self, policies: Sequence[PolicyName], max_versions: int) -> None:
        self._policies = tuple(policies)
        self._max_versions = max_versions
        self._pairs: list[Float64Array] = []
        """[M, T, 2] each: the calibrations, oldest first, none twice in a row."""
        self._first_V: list[int] = []
        """The versions, rising, and for each the place of its calibration."""
        self._place_V: list[int] = []
        self._denied: set[int] = set()

    def promoted(self, version: int, scenarios: Sequence[str], tasks: Sequence[str], pairs: Pairs) -> None:
        """Takes note of a version that went live, and of its calibration."""
        if self._first_V and version <= self._first_V[-1]:
            return
        own_MT2 = pairs_array(pairs, scenarios, tasks)
        if not self._pairs or not np.array_equal(self._pairs[-1], own_MT2):
            self._pairs.append(own_MT2)
        self._first_V.append(version)
        self._place_V.append(len(self._pairs) - 1)
        if len(self._first_V) > self._max_versions:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        self._denied.discard(self._first_V.pop(0))
        self._place_V.pop(0)
        unused = self._place_V[0]
        self._pairs = self._pairs[unused:]
        self._place_V = [place - unused for place in self._place_V] if unused else self._place_V

    def deny(self, version: int) -> None:
        """Takes note that a version teaches no more."""
        self._denied.add(version)

    def logits(self, scenario_B: Int64Array, served: ServedScores) -> tuple[Float64Array, dict[str, BoolArray]]:
        """Returns the network's own logits as they were, [B, T], and by reason where there are none, [B, 1] or [B, T].

        z = (logit(p) - b) / a; a task that settles at p / (1 + p) (`fnc`) is taken back into that space.
        """
        version_V, place_V = np.array(self._first_V, np.int64), np.array(self._place_V, np.int64)
        place_B = np.searchsorted(version_V, served.version_B).clip(max=max(len(version_V) - 1, 0))
        is_known_B = version_V[place_B] == served.version_B if len(version_V) else np.zeros(len(scenario_B), np.bool_)
        is_denied_B = np.isin(served.version_B, sorted(self._denied))
        slope_BT = np.ones(served.probability_BT.shape)
        offset_BT = np.zeros(served.probability_BT.shape)
        is_new_B = np.zeros(len(scenario_B), np.bool_)
        pair_B = place_V[place_B] if len(place_V) else place_B
        for pair in np.unique(pair_B[is_known_B]).tolist():
            pairs_MT2, rows = self._pairs[pair], np.flatnonzero(is_known_B & (pair_B == pair))
            is_new = scenario_B[rows] >= len(pairs_MT2)
            is_new_B[rows[is_new]] = True
            rows = rows[~is_new]
            slope_BT[rows], offset_BT[rows] = np.moveaxis(pairs_MT2[scenario_B[rows]], 2, 0)
        z_BT = (logit_of(served.probability_BT) - offset_BT) / slope_BT
        for task, policy in enumerate(self._policies):
            if policy == "fnc":
                # logit(p / (1 + p)) = log p
                z_BT[:, task] = -np.logaddexp(0.0, -z_BT[:, task])
        reasons = {
            "unknown_version": ~is_known_B[:, None] & ~is_denied_B[:, None],
            "denied_version": is_denied_B[:, None],
            "new_scenario": is_new_B[:, None],
            "unscored": np.isnan(served.probability_BT),
        }
        return z_BT, reasons

    def state(self) -> dict[str, Tensor]:
        """Returns everything for a bit-exact resume."""
        arrays = {
            "versions": np.array(self._first_V, np.int64),
            "places": np.array(self._place_V, np.int64),
            "denied": np.array(sorted(self._denied), np.int64),
        }
        arrays_of_pairs = {f"pairs.{place}": pairs_MT2.copy() for place, pairs_MT2 in enumerate(self._pairs)}
        return {name: torch.from_numpy(array) for name, array in (arrays | arrays_of_pairs).items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what `state` returned; from nothing it starts anew."""
        empty = torch.empty(0, dtype=torch.int64)
        self._first_V, self._place_V = (tensors.get(name, empty).tolist() for name in ("versions", "places"))
        self._denied = set(tensors.get("denied", empty).tolist())
        num_pairs = sum(name.startswith("pairs.") for name in tensors)
        self._pairs = [tensors[f"pairs.{place}"].numpy().copy() for place in range(num_pairs)]
