"""The models of a churn report: from a checkpoint, from the snapshot store, or trained to see what chance changes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from freshrank.config import RunConfig
from freshrank.gates import find_checkpoint, restored_learner
from freshrank.one_pass import read_source
from model.exceptions import SnapshotMissingError
from model.learner import Learner
from model.serving import ServingModel
from model.store import SnapshotStore, chain_to
from stream.schema import SchemaConfig

if TYPE_CHECKING:
    from ranker.live import LiveModel

SHUFFLED_BATCHES = 50
"""Batches whose order is drawn anew for a floor: about as many as between two publishes."""


def model_of(run: RunConfig, name: str, store: SnapshotStore) -> tuple[str, ServingModel]:
    """Returns what a name means, in words, and the model: a version of the snapshot store, or a checkpoint.

    Raises:
        ValueError: neither, or no whole checkpoint in the folder.
        ModelError: the checkpoint or version is broken, gone, or of another configuration.
    """
    if name.isdecimal():
        return f"version {name}", version_of(run.schema, int(name), store)
    path = Path(name)
    if not path.is_dir():
        raise ValueError(f"{name}: neither the number of a version nor a folder with a checkpoint")
    found, checkpoint = find_checkpoint(path)
    return f"{found} (step {checkpoint.manifest.step})", served(
        run, restored_learner(run.schema, run.model, checkpoint)
    )


def version_of(schema: SchemaConfig, version: int, store: SnapshotStore) -> ServingModel:
    """Returns a version of the store, from the full one before it and the deltas since.

    Raises:
        SnapshotMissingError: the store does not have it.
    """
    from ranker.live import next_live

    target = store.manifest(version)
    if target is None:
        raise SnapshotMissingError(f"version {version} is not in the store; `freshrank snapshot list` shows which are")
    live: LiveModel | None = None
    for manifest in chain_to(store, target):
        live = next_live(schema, live, manifest, store.payload(manifest))
    assert live is not None, "a chain ends at its target"
    return live.model


def served(run: RunConfig, learner: Learner) -> ServingModel:
    """Returns a learner's model as a ranker would hold it."""
    return ServingModel.from_full(run.schema, run.model, learner.trained.serving_full(), learner.trained.registry)


def floor_models(run: RunConfig, folder: Path) -> tuple[ServingModel, ServingModel]:
    """Returns two models that learned a recorded log once, from first weights of two seeds, in two orders of batches.

    Raises:
        ValueError: the log holds no example.
    """
    data = read_source(run, folder, run.model.encoding, None)
    models = []
    for seed in (run.trainer.seed, run.trainer.seed + 1):
        learner = Learner(data.schema, run.model, seed)
        rng = np.random.default_rng(seed)
        for start in range(0, len(data.batches), SHUFFLED_BATCHES):
            for place in rng.permutation(min(SHUFFLED_BATCHES, len(data.batches) - start)).tolist():
                batch = data.batches[start + place]
                learner.learn(batch.encoded, batch.labels)
        models.append(served(run, learner))
    return models[0], models[1]
