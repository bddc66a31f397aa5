"""A ranker inside a replay: scores the slates of a log with the snapshot that is live when they are shown."""

import itertools

import numpy as np

from model.config import ModelConfig
from model.features import RowColumns, SequenceColumns
from model.scenario_registry import ScenarioRegistry
from model.serving import ServingModel
from model.snapshot import Manifest, open_snapshot
from model.store import SnapshotStore
from stream.schema import Impression, SchemaConfig, Sequence, Served

_NO_SEQUENCE = Sequence()


class SlateScorer:
    """Fills in the served scores that a log lacks; a slate that has some keeps them.

    Slates wait and are scored together: until the live snapshot changes, later makes no difference.
    """

    def __init__(self, schema: SchemaConfig, config: ModelConfig, store: SnapshotStore) -> None:
        self._schema = schema
        self._config = config
        self._store = store
        self._model: ServingModel | None = None
        self._version = 0
        self._waiting: list[Impression] = []

    def show(self, impression: Impression) -> None:
        """Takes a slate that is shown now."""
        if self._model is not None and not impression.items.scores:
            self._waiting.append(impression)

    def score_waiting(self) -> None:
        """Writes the scores into the slates shown since the last call."""
        if self._model is None or not self._waiting:
            return
        shown, self._waiting = self._waiting, []
        score_BT = self._model.score(self._model.encode(slate_columns(shown, self._schema)))
        ends = np.cumsum([len(impression.items.id) for impression in shown])
        for impression, score_NT in zip(shown, np.split(score_BT, ends[:-1]), strict=True):
            columns = zip(self._schema.tasks, score_NT.T.tolist(), strict=True)
            impression.items.scores = dict(columns)
            impression.served = Served(snapshot=self._version)

    def go_live(self, manifest: Manifest) -> None:
        """Swaps to a snapshot that was just promoted; what waits must have been scored before."""
        payload = self._store.payload(manifest)
        tensors = open_snapshot(manifest, payload, schema_hash=self._schema.schema_hash())
        if manifest.kind == "full" or self._model is None:
            registry = ScenarioRegistry.restored(self._schema, manifest.scenarios, manifest.scenario_parents)
            self._model = ServingModel.from_full(self._schema, self._config, tensors, registry, manifest.calibration)
        else:
            self._model = self._model.apply_delta(tensors, manifest.calibration)
        self._version = manifest.version


def slate_columns(shown: list[Impression], schema: SchemaConfig) -> RowColumns:
    """Returns the slates as rows for the model's encoder, one per item."""
    sequences = [impression.sequence or _NO_SEQUENCE for impression in shown]
    lengths = [len(impression.items.id) for impression in shown]
    features = schema.features
    item = {}
    for name in features.item:
        columns = [impression.items.features.get(name) for impression in shown]
        parts = ([None] * n if column is None else column for column, n in zip(columns, lengths, strict=True))
        item[name] = list(itertools.chain.from_iterable(parts))
    return RowColumns(
        scenario=[impression.scenario for impression in shown],
        user_id=[impression.user_id for impression in shown],
        item_id=list(itertools.chain.from_iterable(impression.items.id for impression in shown)),
        request_index_B=np.repeat(np.arange(len(shown)), lengths),
        position_B=np.concatenate([np.arange(n) for n in lengths]),
        user={name: [impression.user.get(name) for impression in shown] for name in features.user},
        context={name: [impression.context.get(name) for impression in shown] for name in features.context},
        item=item,
        sequence=SequenceColumns(
            item_id=[sequence.item_id for sequence in sequences],
            action=[sequence.action for sequence in sequences],
            age_ms=[
                [impression.ts - ts for ts in sequence.ts]
                for impression, sequence in zip(shown, sequences, strict=True)
            ],
        ),
    )
