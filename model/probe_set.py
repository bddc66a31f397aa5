"""A fixed set of recent slates that every version is scored on, by what its payload holds and nothing else.

Letters: B rows, R requests, K rows of the longest request, T tasks, N keys.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import ModelConfig
from model.features import EncodedBatch, FeatureEncoder
from model.metrics import BoolArray, Float64Array, Int64Array
from model.row_records import FoundRows
from model.scenario_registry import ScenarioRegistry
from model.serving import ServingModel
from model.snapshot import Manifest
from stream.schema import SchemaConfig

MIN_ITEMS = 3
"""Items of a slate that is worth ranking."""
DEFAULT = "default"
"""Key of the weights of scenarios without an entry of their own."""

Weights = Mapping[str, tuple[float, ...]]
"""Scenario or `default` -> production weight of each task over its scale, in the order of the schema."""
ReadCold = Callable[[Int64Array], FoundRows]
"""Finds the rows that a version knows and its payload does not hold, by distinct, rising keys."""


class ProbeSample:
    """The newest slates of each scenario, at most `size` of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._slates: dict[int, deque[EncodedBatch]] = {}

    def offer(self, batch: EncodedBatch) -> None:
        """Takes the longest slate of each scenario of a batch whose scenarios are resolved."""
        if not self._size:
            return
        num_items_R = np.bincount(batch.request_index_B, minlength=batch.num_requests)
        for scenario in np.unique(batch.scenario_R).tolist():
            request = int(np.argmax(np.where(batch.scenario_R == scenario, num_items_R, -1)))
            if num_items_R[request] >= MIN_ITEMS:
                slates = self._slates.setdefault(scenario, deque(maxlen=self._size))
                slates.append(batch.take(np.flatnonzero(batch.request_index_B == request)))

    def num_slates(self) -> int:
        """Returns how many there are."""
        return sum(map(len, self._slates.values()))

    def batch(self) -> EncodedBatch:
        """Returns them (at least one) as one batch."""
        return EncodedBatch.concat([slate for slates in self._slates.values() for slate in slates])


@dataclass(frozen=True, slots=True)
class ProbeScores:
    """One version's opinion of the probe set."""

    score_BT: npt.NDArray[np.float32]
    utility_RK: Float64Array | None
    """None without weights. Minus infinity where a request has no item."""


class ProbeSet:
    """Slates that stay the same. Immutable."""

    def __init__(self, batch: EncodedBatch, schema: SchemaConfig, config: ModelConfig, weights: Weights) -> None:
        self.batch = batch
        layout = config.input_layout(FeatureEncoder(schema, config.encoding).fields)
        self._keys = np.unique(layout.flat_keys(batch))
        self._weights = weights
        num_items_R = np.bincount(batch.request_index_B)
        self._column_B = np.arange(batch.num_rows) - np.repeat(np.cumsum(num_items_R) - num_items_R, num_items_R)
        self.is_item_RK: BoolArray = np.arange(num_items_R.max()) < num_items_R[:, None]

    def known(self, tensors: Mapping[str, Tensor], read_cold: ReadCold | None, *, is_full: bool) -> dict[str, Tensor]:
        """Returns a payload with only the rows that the probe set looks up: its cost does not grow with the table.

        All of those, wherever they are: a row that leaves memory moves no score that is served.
        """
        is_known_N = np.isin(tensors["rows.keys"].numpy(), self._keys)
        evicted = tensors["rows.evicted"]
        keys, weights = tensors["rows.keys"][is_known_N], tensors["rows.weights"][is_known_N]
        if read_cold is not None:
            left = self._keys if is_full else np.intersect1d(tensors["rows.cooled"].numpy(), self._keys)
            found = read_cold(left := np.setdiff1d(left, keys.numpy()))
            keys = torch.cat([keys, torch.from_numpy(left[found.has_row_N])])
            cold = torch.from_numpy(found.weights_NW[found.has_row_N])
            weights = torch.cat([weights, cold.to(weights.dtype)])
        return {name: tensor for name, tensor in tensors.items() if name != "rows.cooled"} | {
            "rows.keys": keys,
            "rows.weights": weights,
            "rows.evicted": evicted[np.isin(evicted.numpy(), self._keys)],
        }

    def scores(self, model: ServingModel, names: tuple[str, ...]) -> ProbeScores:
        """Returns what a model gives to the set; `names` are its scenarios by index."""
        score_BT = model.score(self.batch)
        if not self._weights:
            return ProbeScores(score_BT, None)
        default = self._weights.get(DEFAULT, (0.0,) * score_BT.shape[1])
        weights_MT = np.array([self._weights.get(name, default) for name in names])
        utility_RK = np.full(self.is_item_RK.shape, -np.inf)
        scenario_B = self.batch.scenario_B
        utility_RK[self.batch.request_index_B, self._column_B] = (weights_MT[scenario_B] * score_BT).sum(axis=1)
        return ProbeScores(score_BT, utility_RK)


class ProbeModel:
    """What a ranker would hold of a version, as far as the probe set needs it."""

    def __init__(self, schema: SchemaConfig, config: ModelConfig, probes: ProbeSet) -> None:
        self._schema, self._config, self._probes = schema, config, probes
        self._base: ServingModel | None = None

    def candidate(
        self, manifest: Manifest, tensors: Mapping[str, Tensor], read_cold: ReadCold | None
    ) -> ServingModel | None:
        """Returns the model of a version; None of a delta whose base was never held.

        Raises:
            ValueError: the tensors make no network.
            StoreError: what `read_cold` raises.
        """
        known = self._probes.known(tensors, read_cold, is_full=manifest.kind == "full")
        if manifest.kind == "full":
            registry = ScenarioRegistry.restored(self._schema, manifest.scenarios, manifest.scenario_parents)
            return ServingModel.from_full(self._schema, self._config, known, registry, manifest.calibration)
        return None if self._base is None else self._base.apply_delta(known, manifest.calibration)

    def hold(self, model: ServingModel | None) -> None:
        """Makes a promoted version the base of the next delta."""
        self._base = model


def by_cell(scenario_B: Int64Array, least: int) -> dict[int, Int64Array]:
    """Returns the rows of each scenario that has at least `least` of them."""
    rows = {scenario: np.flatnonzero(scenario_B == scenario) for scenario in np.unique(scenario_B).tolist()}
    return {scenario: rows_N for scenario, rows_N in rows.items() if len(rows_N) >= least}
