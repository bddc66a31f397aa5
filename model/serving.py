"""The model as a ranker holds it: immutable for readers; a delta makes a new one.

Letters: B rows, T tasks, N values of a batch, C rows from elsewhere, W embedding width.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.assembly import InputLayout
from model.calibrator import Pairs, pairs_array
from model.config import ModelConfig
from model.features import EncodedBatch, FeatureEncoder, RowColumns
from model.growth import grow
from model.hashing import MISSING_KEY, Int64Array
from model.label_policy import served_probability
from model.metrics import logit_of
from model.network import Network
from model.precision import Precision, products_in
from model.scenario_registry import ScenarioRegistry
from model.serving_network import with_weights
from model.serving_rows import ServingRows
from stream.schema import PolicyName, SchemaConfig


class LookedUp(NamedTuple):
    """A batch sorted by scenario, and the row in memory of each of its values."""

    batch: EncodedBatch
    order_B: Int64Array
    row_offsets: Sequence[int]
    keys_N: Int64Array
    rows_N: Int64Array


class RowsBeside(NamedTuple):
    """Rows that a model knows and does not hold in memory."""

    keys_C: Int64Array
    """Distinct and rising; at least one."""
    weights_CW: npt.NDArray[np.float32]


class ServingModel:
    """Scores rows. Safe to share between threads: nothing changes after construction."""

    def __init__(
        self,
        encoder: FeatureEncoder,
        layout: InputLayout,
        net: Network,
        rows: ServingRows,
        policies: tuple[PolicyName, ...],
        registry: ScenarioRegistry,
        precision: Precision,
        calibration: Pairs,
    ) -> None:
        self.encoder = encoder
        self._layout = layout
        self._net = net
        self._rows = rows
        self._policies = policies
        self._registry = registry
        self._precision = precision
        self._calibration = calibration
        self._pairs_MT2 = pairs_array(calibration, registry.names, net.shape.tasks)

    @classmethod
    def from_full(
        cls,
        schema: SchemaConfig,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        registry: ScenarioRegistry | None = None,
        calibration: Pairs | None = None,
    ) -> "ServingModel":
        """Returns the model of a full export (`TrainedModel.serving_full`); without `registry` none was added to it.

        `calibration` is that of its manifest; without it the network's own scores are served.

        Raises:
            ValueError: names or shapes are not those of this schema and configuration.
        """
        encoder = FeatureEncoder(schema, config.encoding)
        layout = config.input_layout(encoder.fields)
        net = config.build_network(layout.network_shape(schema), seed=None).for_serving()
        registry = registry or ScenarioRegistry.of(schema)
        grow(net, registry)
        empty = cls(
            encoder,
            layout,
            net,
            ServingRows.empty(
                num_reserved=layout.num_reserved, width=config.embedding.width, dtype=config.embedding.torch_dtype
            ),
            tuple(task.policy for task in schema.tasks.values()),
            registry,
            config.precision,
            {},
        )
        return empty.apply_delta(tensors, calibration)

    def scored_as(self, scenario: str) -> str:
        """Returns the scenario whose part of the model scores the rows of a scenario: its own, or the default one."""
        return self._registry.scored_as(scenario)

    @property
    def row_width(self) -> int:
        """Floats per row."""
        return self._layout.width

    @property
    def num_rows(self) -> int:
        """Values that have a row of their own."""
        return len(self._rows)

    def apply_delta(self, tensors: Mapping[str, Tensor], calibration: Pairs | None = None) -> "ServingModel":
        """Returns the model after a delta (`Learner.serving_delta`); this one goes on as it is.

        `calibration` is that of the delta's manifest, in place of the one before.

        Raises:
            ValueError: names or shapes are not this model's.
        """
        dense = {name.removeprefix("dense."): tensor for name, tensor in tensors.items() if name.startswith("dense.")}
        return ServingModel(
            self.encoder,
            self._layout,
            with_weights(self._net, dense),
            self._rows.after(tensors),
            self._policies,
            self._registry,
            self._precision,
            calibration or {},
        )

    def tensors(self) -> dict[str, Tensor]:
        """Returns what this model is made of, as a full export: equal models have equal rows by key."""
        dense = {f"dense.{name}": tensor for name, tensor in self._net.state_dict().items()}
        return dense | self._rows.tensors()

    def encode(self, columns: RowColumns) -> EncodedBatch:
        """Returns the columns as keys."""
        return self.encoder.encode_columns(columns)

    def score(self, batch: EncodedBatch) -> npt.NDArray[np.float32]:
        """Returns the probabilities, [B, T] float32. A value without a row takes its field's default row.

        A task whose label policy settles elsewhere than at P(y=1) (`fnc`) is mapped back to it first; then all are
        calibrated.
        """
        return self.score_rows(self.look_up(batch))

    def look_up(self, batch: EncodedBatch) -> LookedUp:
        """Returns the batch with its rows, for `score_rows` of this model."""
        batch, order_B, row_offsets = batch.resolved(self._registry.index).by_scenario(self._net.num_scenarios)
        keys_N = self._layout.flat_keys(batch)
        return LookedUp(batch, order_B, row_offsets, keys_N, self._layout.rows(batch, keys_N, self._rows.ids))

    def keys_without_row(self, looked: LookedUp) -> Int64Array:
        """Returns the keys of the values that have no row in memory, as often as they stand in the batch."""
        is_without_N = (looked.rows_N < self._layout.num_reserved) & (looked.keys_N != MISSING_KEY)
        keys: Int64Array = looked.keys_N[is_without_N]
        return keys

    def score_rows(self, looked: LookedUp, beside: RowsBeside | None = None) -> npt.NDArray[np.float32]:
        """Returns what `score` does, with rows from elsewhere for values that have none in memory."""
        batch, order_B, row_offsets, keys_N, rows_N = looked
        with torch.inference_mode(), products_in(self._precision):
            source_UW, index_N = self._rows.read(rows_N)
            if beside is not None:
                source_UW, index_N = self._with_rows(source_UW[index_N], looked, beside), torch.arange(len(keys_N))
            inputs = self._layout.network_inputs(
                source_UW, index_N, batch, row_offsets, with_sequence=self._net.uses_sequence
            )
            probability_BT = self._net(inputs).float().sigmoid()
        return self._served(probability_BT, batch, order_B)

    def _with_rows(self, source_NW: Tensor, looked: LookedUp, beside: RowsBeside) -> Tensor:
        """Writes the rows from elsewhere into those of all values."""
        places = np.flatnonzero(looked.rows_N < self._layout.num_reserved)
        found = np.searchsorted(beside.keys_C, looked.keys_N[places]).clip(max=len(beside.keys_C) - 1)
        is_beside = beside.keys_C[found] == looked.keys_N[places]
        source_NW[torch.from_numpy(places[is_beside])] = torch.from_numpy(beside.weights_CW[found[is_beside]])
        return source_NW

    def _served(self, probability_BT: Tensor, batch: EncodedBatch, order_B: Int64Array) -> npt.NDArray[np.float32]:
        result_BT = np.empty(tuple(probability_BT.shape), np.float32)
        result_BT[order_B] = probability_BT.numpy()
        for task, policy in enumerate(self._policies):
            if policy == "fnc":
                result_BT[:, task] = served_probability(policy, result_BT[:, task])
        if self._calibration:
            slope_BT, offset_BT = np.moveaxis(self._pairs_MT2[batch.scenario_B[np.argsort(order_B)]], 2, 0)
            logit_BT = slope_BT * logit_of(result_BT) + offset_BT
            result_BT = (1 / (1 + np.exp(-logit_BT))).astype(np.float32)
        return result_BT
