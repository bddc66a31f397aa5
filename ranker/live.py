"""The model that serves, and how it grows from one snapshot to the next."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig
from model.exceptions import SnapshotFiniteError, SnapshotFormatError, SnapshotGapError
from model.features import RowColumns
from model.payload_view import Payload
from model.scenario_registry import ScenarioRegistry
from model.serving import ServingModel
from model.snapshot import Manifest, open_snapshot
from stream.schema import SchemaConfig

DELTA_WARM_UP_ROWS = 64
"""Rows of a request that are scored for nobody after a delta."""


@dataclass(frozen=True, slots=True)
class LiveModel:
    """One version, never changed once built: a request that holds it is scored by it to the end."""

    manifest: Manifest
    model: ServingModel

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
            return LiveModel(manifest, ServingModel.from_full(schema, config, tensors, registry, manifest.calibration))
        if held is None or held.manifest.version != manifest.base_version:
            raise SnapshotGapError(f"delta {manifest.version} is built on version {manifest.base_version}")
        return LiveModel(manifest, held.model.apply_delta(tensors, manifest.calibration))
    except ValueError as error:  # msgspec's ValidationError is one
        raise SnapshotFormatError(f"tensors make no network: version={manifest.version} error={error}") from error


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
