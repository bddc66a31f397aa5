"""Emissions to messages of the topic `examples`: Arrow IPC, one row per emission, item columns as lists.

A message is one Arrow stream with one record batch, at most `batch_items` items and `MAX_MESSAGE_BYTES` long. What each
column holds: `docs/events.md`. The reader is `model.examples`; both sides derive the layout from the schema.

All list columns of a batch have the same lengths per row, so that they share one offsets array, and each column is
handed to Arrow as one flat list.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate, chain
from typing import Any

import numpy as np
import pyarrow as pa

from stream.emission import Emission, LabelColumn
from stream.flatten import Flattener
from stream.join import JoinConfig
from stream.schema import KIND_CODE, SCHEMA_VERSION, FeatureConfig, KindName, SchemaConfig

MAX_MESSAGE_BYTES = 1_000_000
"""Just below the largest message that Kafka accepts by default."""

_Columns = dict[str, pa.Array]


class ExampleEncoder:
    """Turns emissions into messages; the schema decides the columns, the config their policies' metadata."""

    def __init__(self, schema: SchemaConfig, config: JoinConfig) -> None:
        self._schema = schema
        self._batch_items = config.batch_items
        self._metadata = {"schema_version": str(SCHEMA_VERSION), "schema_hash": schema.schema_hash()}
        for name, task in schema.tasks.items():
            policy = {
                "name": task.policy,
                "window_ms": task.window_ms,
                "grace_ms": config.grace_ms,
                "observe_ms": task.observe_ms,
            }
            self._metadata[f"policy.{name}"] = json.dumps(policy)

    def encode(self, emissions: Sequence[Emission]) -> list[bytes]:
        """Returns the messages of the emissions of one partition, in order of what triggered them."""
        messages: list[bytes] = []
        for batch in self._batches(sorted(emissions, key=lambda emission: emission.trigger_ms)):
            messages.extend(self._messages(batch))
        return messages

    def record_batch(self, emissions: Sequence[Emission]) -> pa.RecordBatch:
        """Returns one row per emission, in the order given."""
        arrays = self._row_columns(emissions) | self._item_columns(emissions) | _sequence_columns(emissions)
        fields = [pa.field(name, array.type) for name, array in arrays.items()]
        return pa.RecordBatch.from_arrays(list(arrays.values()), schema=pa.schema(fields, metadata=self._metadata))

    def _batches(self, emissions: Iterable[Emission]) -> Iterator[list[Emission]]:
        """Yields runs of at most `batch_items` items. A longer slate is cut into several rows."""
        batch: list[Emission] = []
        num_items = 0
        for emission in emissions:
            for part in _cut(emission, self._batch_items):
                if batch and num_items + len(part.rows) > self._batch_items:
                    yield batch
                    batch, num_items = [], 0
                batch.append(part)
                num_items += len(part.rows)
        if batch:
            yield batch

    def _messages(self, batch: list[Emission]) -> Iterator[bytes]:
        """Yields the batch as one message, or in halves as long as it is too long and can be halved."""
        sink = pa.BufferOutputStream()
        record_batch = self.record_batch(batch)
        with pa.ipc.new_stream(sink, record_batch.schema) as writer:
            writer.write_batch(record_batch)
        value = sink.getvalue().to_pybytes()
        if len(value) > MAX_MESSAGE_BYTES:
            if len(batch) == 1:
                batch = list(_cut(batch[0], (len(batch[0].rows) + 1) // 2))
            if len(batch) > 1:
                middle = len(batch) // 2
                yield from self._messages(batch[:middle])
                yield from self._messages(batch[middle:])
                return
        yield value

    def _row_columns(self, emissions: Sequence[Emission]) -> _Columns:
        shown = [emission.impression for emission in emissions]
        columns = {
            "request_id": pa.array([i.request_id for i in shown], pa.string()),
            "user_id": pa.array([i.user_id for i in shown], pa.string()),
            "scenario": pa.array([i.scenario for i in shown], pa.string()),
            "ts": pa.array([i.ts for i in shown], pa.int64()),
            "emitted_watermark_ms": pa.array([emission.watermark_ms for emission in emissions], pa.int64()),
            "snapshot": pa.array([0 if i.served is None else i.served.snapshot for i in shown], pa.int64()),
        }
        for name, feature in self._schema.features.user.items():
            columns[f"user.{name}"] = feature_array([i.user.get(name) for i in shown], feature)
        for name, feature in self._schema.features.context.items():
            columns[f"context.{name}"] = feature_array([i.context.get(name) for i in shown], feature)
        return columns

    def _item_columns(self, emissions: Sequence[Emission]) -> _Columns:
        items = [emission.impression.items for emission in emissions]
        rows = [emission.rows for emission in emissions]
        flat = Flattener(rows, [len(shown.id) for shown in items])
        offsets = list_offsets(map(len, rows))

        def lists(values: pa.Array) -> pa.Array:
            return pa.ListArray.from_arrays(offsets, values)

        positions = list(chain.from_iterable(rows))
        columns = {
            "item_id": lists(pa.array(flat([shown.id for shown in items]), pa.string())),
            "position": lists(pa.array(positions, pa.int32())),
        }
        features = [shown.features for shown in items]
        for name, feature in self._schema.features.item.items():
            columns[f"item.{name}"] = lists(feature_array(flat([of.get(name) for of in features]), feature))
        scores = [shown.scores for shown in items]
        for task in self._schema.tasks:
            columns[f"served.{task}"] = lists(pa.array(flat([of.get(task) for of in scores]), pa.float32()))
        columns["propensity"] = lists(pa.array(flat([shown.propensity for shown in items]), pa.float32()))
        ones = pa.array(np.ones(len(positions), np.float32))
        for task in self._schema.tasks:
            for name, values in _label_columns(emissions, task, ones).items():
                columns[f"{name}.{task}"] = lists(values)
        columns["weight"] = lists(ones)
        return columns


def _label_columns(emissions: Sequence[Emission], task: str, ones: pa.Array) -> _Columns:
    """Returns label, kind, delay and ratio of one task for each item of the batch."""
    columns = [emission.columns.get(task) or _no_labels(len(emission.rows)) for emission in emissions]
    kinds = map(KIND_CODE.__getitem__, chain.from_iterable([column.kind for column in columns]))
    ratio = ones
    if any(column.ratio is not None for column in columns):
        ratios = [[1.0] * len(column.label) if column.ratio is None else column.ratio for column in columns]
        ratio = pa.array(list(chain.from_iterable(ratios)), pa.float32())
    return {
        "label": pa.array(list(chain.from_iterable([column.label for column in columns])), pa.int8()),
        "kind": pa.array(list(kinds), pa.int8()),
        "delay_ms": pa.array(list(chain.from_iterable([column.delay_ms for column in columns])), pa.int32()),
        "ratio": ratio,
    }


@cache
def _no_labels(num_rows: int) -> LabelColumn:
    kind: KindName = "none"
    return LabelColumn((kind,) * num_rows, (0,) * num_rows, (-1,) * num_rows)


def _sequence_columns(emissions: Sequence[Emission]) -> _Columns:
    """Returns what serving knew of the users' last actions, newest first; empty where it was not logged."""
    shown = [emission.impression for emission in emissions]
    offsets = list_offsets(0 if i.sequence is None else len(i.sequence.item_id) for i in shown)
    item_ids: list[str] = []
    actions: list[str] = []
    ages_ms: list[int] = []
    for impression in shown:
        if impression.sequence is not None:
            item_ids.extend(impression.sequence.item_id)
            actions.extend(impression.sequence.action)
            ages_ms.extend([impression.ts - at_ms for at_ms in impression.sequence.ts])
    return {
        "sequence.item_id": pa.ListArray.from_arrays(offsets, pa.array(item_ids, pa.string())),
        "sequence.action": pa.ListArray.from_arrays(offsets, pa.array(actions, pa.string())),
        "sequence.age_ms": pa.ListArray.from_arrays(offsets, pa.array(ages_ms, pa.int64())),
    }


def feature_array(values: list[Any], feature: FeatureConfig) -> pa.Array:
    """Returns one feature as an Arrow array. Categories become strings here, so that 3 and "3" are one value."""
    if feature.kind == "numeric":
        return pa.array(values, pa.float64())
    if not feature.many:
        return _strings(values)
    offsets = list_offsets([0 if value is None else len(value) for value in values])
    return pa.ListArray.from_arrays(offsets, _strings(list(chain.from_iterable(filter(None, values)))))


def _strings(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values, pa.string())  # the usual case, without a look at each value
    except (TypeError, pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.array([value if value is None else str(value) for value in values], pa.string())


def list_offsets(lengths: Iterable[int]) -> pa.Array:
    """Returns the offsets array of list columns with these lengths."""
    return pa.array(list(accumulate(lengths, initial=0)), pa.int32())


def _cut(emission: Emission, most_items: int) -> Iterator[Emission]:
    """Yields the emission in parts of at most `most_items` items."""
    if len(emission.rows) <= most_items:
        yield emission
        return
    for start in range(0, len(emission.rows), most_items):
        part = range(start, min(start + most_items, len(emission.rows)))
        columns = {task: column.take(part) for task, column in emission.columns.items()}
        rows = emission.rows[part.start : part.stop]
        yield Emission(emission.impression, rows, columns, emission.trigger_ms, emission.watermark_ms)
