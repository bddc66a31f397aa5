"""Emissions to messages of the topic `examples`: Arrow IPC, one row per emission, item columns as lists.

A message is one Arrow stream with one record batch, at most `batch_items` items and `MAX_MESSAGE_BYTES` long. What each
column holds: `docs/events.md`. The reader is `model.examples`; both sides derive the layout from the schema.

All list columns of a batch have the same lengths per row, so that they share one offsets array, and each column is
handed to Arrow as one flat list.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stream.emission import Emission
from stream.join import JoinConfig
from stream.schema import KIND_CODE, SCHEMA_VERSION, FeatureConfig, SchemaConfig

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
            columns[f"user.{name}"] = _feature_array([i.user.get(name) for i in shown], feature)
        for name, feature in self._schema.features.context.items():
            columns[f"context.{name}"] = _feature_array([i.context.get(name) for i in shown], feature)
        return columns

    def _item_columns(self, emissions: Sequence[Emission]) -> _Columns:
        shown = [emission.impression for emission in emissions]
        num_items = sum(len(emission.rows) for emission in emissions)
        offsets = _offsets(len(emission.rows) for emission in emissions)

        def lists(values: pa.Array) -> pa.Array:
            return pa.ListArray.from_arrays(offsets, values)

        positions = [row for emission in emissions for row in emission.rows]
        columns = {
            "item_id": lists(pa.array(_flat((i.items.id for i in shown), emissions), pa.string())),
            "position": lists(pa.array(positions, pa.int32())),
        }
        for name, feature in self._schema.features.item.items():
            values = _flat((i.items.features.get(name) for i in shown), emissions)
            columns[f"item.{name}"] = lists(_feature_array(values, feature))
        for task in self._schema.tasks:
            served = _flat((i.items.scores.get(task) for i in shown), emissions)
            columns[f"served.{task}"] = lists(pa.array(served, pa.float32()))
        columns["propensity"] = lists(pa.array(_flat((i.items.propensity for i in shown), emissions), pa.float32()))
        ones = pa.array(np.ones(num_items, np.float32))
        for task in self._schema.tasks:
            label, kind, delay_ms = _label_values(emissions, task)
            columns[f"label.{task}"] = lists(pa.array(label, pa.int8()))
            columns[f"kind.{task}"] = lists(pa.array(kind, pa.int8()))
            columns[f"delay_ms.{task}"] = lists(pa.array(delay_ms, pa.int32()))
            columns[f"ratio.{task}"] = lists(_ratios(emissions, task, ones))
        columns["weight"] = lists(ones)
        return columns


def _flat(columns: Iterable[Sequence[Any] | None], emissions: Sequence[Emission]) -> list[Any]:
    """Returns one value per item of the batch, picked from one column per emission; None where a slate has none."""
    values: list[Any] = []
    for column, emission in zip(columns, emissions, strict=True):
        rows = emission.rows
        if column is None:
            values.extend([None] * len(rows))
        elif len(rows) == len(column):
            values.extend(column)
        else:
            values.extend([column[row] for row in rows])
    return values


def _label_values(emissions: Sequence[Emission], task: str) -> tuple[list[int], list[int], list[int]]:
    """Returns label, kind code and delay of one task for each item of the batch."""
    labels: list[int] = []
    kinds: list[int] = []
    delays_ms: list[int] = []
    for emission in emissions:
        column = emission.columns.get(task)
        if column is None:
            num_rows = len(emission.rows)
            labels.extend([0] * num_rows)
            kinds.extend([KIND_CODE["none"]] * num_rows)
            delays_ms.extend([-1] * num_rows)
        else:
            labels.extend(column.label)
            kinds.extend([KIND_CODE[kind] for kind in column.kind])
            delays_ms.extend(column.delay_ms)
    return labels, kinds, delays_ms


def _ratios(emissions: Sequence[Emission], task: str, ones: pa.Array) -> pa.Array:
    """Returns the traffic ratio of each item of the batch; `ones` where none is stamped."""
    stamped = [(emission.columns.get(task), len(emission.rows)) for emission in emissions]
    if not any(column is not None and column.ratio is not None for column, _ in stamped):
        return ones
    ratios: list[float] = []
    for column, num_rows in stamped:
        ratios.extend([1.0] * num_rows if column is None or column.ratio is None else column.ratio)
    return pa.array(ratios, pa.float32())


def _sequence_columns(emissions: Sequence[Emission]) -> _Columns:
    """Returns what serving knew of the users' last actions, newest first; empty where it was not logged."""
    shown = [emission.impression for emission in emissions]
    offsets = _offsets(0 if i.sequence is None else len(i.sequence.item_id) for i in shown)
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


def _feature_array(values: list[Any], feature: FeatureConfig) -> pa.Array:
    """Returns one feature as an Arrow array. Categories become strings here, so that 3 and "3" are one value."""
    if feature.kind == "numeric":
        return pa.array(values, pa.float64())
    if not feature.many:
        return pa.array([v if type(v) is str or v is None else str(v) for v in values], pa.string())
    offsets = _offsets(0 if value is None else len(value) for value in values)
    return pa.ListArray.from_arrays(offsets, pa.array([str(v) for value in values for v in value or ()], pa.string()))


def _offsets(lengths: Iterable[int]) -> pa.Array:
    """Returns the offsets array of list columns with these lengths."""
    return pa.array(np.cumsum([0, *lengths], dtype=np.int32))


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
