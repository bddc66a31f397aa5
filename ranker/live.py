"""The model that serves, and how it grows from one snapshot to the next."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.config import ModelConfig
from model.exceptions import SnapshotFiniteError, SnapshotFormatError, SnapshotGapError
from model.features import RowColumns
from model.hashing import Int64Array
from model.payload_view import Payload
from model.row_store import RowsAt
from model.scenario_registry import ScenarioRegistry
from model.serving import ServingModel
from model.snapshot import Manifest, open_snapshot
from stream.schema import SchemaConfig

DELTA_WARM_UP_ROWS = 64
"""Rows of a request that are scored for nobody after a delta."""
MAX_CHANGES = 16
"""Versions back for which a live model knows which rows have become others in the row store."""


class RowChanges(NamedTuple):
    """Which rows have become others in the row store with a version."""

    at: RowsAt
    keys: Int64Array

    @classmethod
    def of(cls, at: RowsAt, tensors: Mapping[str, Tensor]) -> "RowChanges":
        """Returns what a payload says. Rows in it are in memory, so nobody asks the store for them until they cool."""
        told = (tensors[name].numpy() for name in ("rows.cooled", "rows.evicted") if name in tensors)
        return cls(at, np.concatenate([np.empty(0, np.int64), *told]))


@dataclass(frozen=True, slots=True)
class LiveModel:
    """One version, never changed once built: a request that holds it is scored by it to the end."""

    manifest: Manifest
    model: ServingModel
    changes: tuple[RowChanges, ...] = ()
    """Of the last versions up to this one, oldest first, where rows may be elsewhere than in memory."""

    def changed_since(self, before: RowsAt) -> Int64Array | None:
        """Returns the keys of the rows that are others in the store than they were as of `before`; None: not known."""
        at = self.manifest.cold_rows
        if at is None or (before.generation, before.num_buckets) != (at.generation, at.num_buckets):
            return None
        later = [change for change in self.changes if change.at.version > before.version]
        known = [before.version, *(change.at.version for change in later)]
        if known[-1] != at.version or any(change.at.since > up_to for change, up_to in zip(later, known, strict=False)):
            return None
        return np.unique(np.concatenate([np.empty(0, np.int64), *(change.keys for change in later)]))

    def scored_as(self, scenario: str) -> str:
        """Returns the scenario whose part of the model scores a request: its own, or the default one."""
        return self.model.scored_as(scenario)

    def score(self, columns: RowColumns) -> NDArray[np.float32]:
        """Returns the probability of each task for each row, scores_NT."""
        return self.model.score(self.model.encode(columns))


def next_live(
    schema: SchemaConfig,
    held: LiveModel | None,
    manifest: Manifest,
    payload: Payload,
    give_way: Callable[[], None] = lambda: None,
) -> LiveModel:
    """Returns the version of `manifest`, built beside `held`, which goes on serving.

    A full snapshot brings its own network configuration along, and the scenarios that were added to it, so a ranker
    need not be restarted for new ones. `give_way` is called between verifying and building.

    Raises:
        SnapshotError: the payload is not what the manifest promises, belongs to another schema, is a delta on another
            version than `held`, or its tensors do not make a network.
    """
    tensors = open_snapshot(manifest, payload, schema_hash=schema.schema_hash())
    give_way()
    try:
        if manifest.kind == "full":
            config = msgspec.convert(manifest.model_config, ModelConfig)
            registry = ScenarioRegistry.restored(schema, manifest.scenarios, manifest.scenario_parents)
            model = ServingModel.from_full(schema, config, tensors, registry, manifest.calibration)
            return LiveModel(manifest, model, _changes(held, manifest, tensors))
        if held is None or held.manifest.version != manifest.base_version:
            raise SnapshotGapError(f"delta {manifest.version} is built on version {manifest.base_version}")
        model = held.model.apply_delta(tensors, manifest.calibration)
        return LiveModel(manifest, model, _changes(held, manifest, tensors))
    except ValueError as error:  # msgspec's ValidationError is one
        raise SnapshotFormatError(f"tensors make no network: version={manifest.version} error={error}") from error


def _changes(held: LiveModel | None, manifest: Manifest, tensors: Mapping[str, Tensor]) -> tuple[RowChanges, ...]:
    if manifest.cold_rows is None:
        return ()
    before = held.changes[1 - MAX_CHANGES :] if held is not None else ()
    return (*before, RowChanges.of(manifest.cold_rows, tensors))


def warm_up(live: LiveModel, columns: RowColumns) -> None:
    """Scores a request for nobody: its scores must be fit to be served, and the first real one pays for no first calls.

    After a delta some rows do: all that is new are numbers.

    Raises:
        SnapshotFiniteError: the scores are not finite.
    """
    batch = live.model.encode(columns)
    if live.manifest.kind == "delta":
        batch = batch.take(slice(0, DELTA_WARM_UP_ROWS))
    if not np.isfinite(live.model.score(batch)).all():
        raise SnapshotFiniteError(f"scores are not finite: version={live.manifest.version}")
