"""Explored slates with what came of them, as messages of the topic `outcomes`: Arrow IPC, one row per slate.

A message is one Arrow stream with one record batch of at most `MAX_MESSAGE_BYTES`. A row goes out when the slate's
reward window closes, once. The reader is `freshrank.outcome_rows`. Columns:

    request_id, user_id, scenario           utf8
    ts, close_ms, emitted_watermark_ms      int64          slate; slate + window + grace; when it went out
    snapshot, blender                       int64          versions that served
    law, fallback, lane                     utf8           as in `Served`; fallback, lane: empty where all was well
    tau, truncate                           float64        of a `lognormal` draw, else null
    log_density                             float64
    weight.<task>, center.<task>, scale.<task>   float64
    user.<f>, context.<f>                   as in `examples`
    item_id, position, score.<task>         lists of utf8, int32, float32   over all candidates: first those shown, in
                                            the order shown; then the others, as logged, with position -1
    action.position, action.name, action.value, action.first_ts   lists of int32, utf8, float64, int64
                                            one entry per item and action that was done, by position, then name

`law` is `none` for a slate that nothing was drawn for: it has no density and only the shown candidates, and is there to
compare explored slates, and weights on trial, with it.

An action counts if its event time is in [ts, ts + outcome_window_ms] and it was read before the close; of those with
one `event_id` the first read counts. `action.value` is the sum of the values, `action.first_ts` the earliest event
time. What was read later is counted by the joiner (`outcome_late`) and changes nothing. Schema metadata:
`schema_version`, `schema_hash`, `outcome_window_ms`, `grace_ms`.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from stream.emission import Outcome
from stream.examples import MAX_MESSAGE_BYTES, feature_array, list_offsets
from stream.schema import SCHEMA_VERSION, Candidates, SchemaConfig, Served

NOT_SHOWN = -1
"""Position of a candidate that was not shown."""
_BATCH_ROWS = 256

_Columns = dict[str, pa.Array]


class OutcomeEncoder:
    """Turns outcomes into messages; the schema decides the columns."""

    def __init__(self, schema: SchemaConfig, *, outcome_window_ms: int, grace_ms: int) -> None:
        self._schema = schema
        self._metadata = {
            "schema_version": str(SCHEMA_VERSION),
            "schema_hash": schema.schema_hash(),
            "outcome_window_ms": str(outcome_window_ms),
            "grace_ms": str(grace_ms),
        }

    def encode(self, outcomes: Sequence[Outcome]) -> list[bytes]:
        """Returns the messages of the outcomes of one partition, in order of their closes."""
        ordered = sorted(outcomes, key=lambda outcome: outcome.close_ms)
        messages: list[bytes] = []
        for start in range(0, len(ordered), _BATCH_ROWS):
            messages.extend(self._messages(ordered[start : start + _BATCH_ROWS]))
        return messages

    def record_batch(self, outcomes: Sequence[Outcome]) -> pa.RecordBatch:
        """Returns one row per outcome, in the order given."""
        arrays = self._row_columns(outcomes) | self._candidate_columns(outcomes) | _action_columns(outcomes)
        fields = [pa.field(name, array.type) for name, array in arrays.items()]
        return pa.RecordBatch.from_arrays(list(arrays.values()), schema=pa.schema(fields, metadata=self._metadata))

    def _messages(self, outcomes: Sequence[Outcome]) -> Iterator[bytes]:
        """Yields the outcomes as one message, or in halves as long as it is too long. A row is never cut.

        One row is shorter than the impression it is made of, which fitted into a message, but for its actions.
        """
        sink = pa.BufferOutputStream()
        batch = self.record_batch(outcomes)
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        value = sink.getvalue().to_pybytes()
        if len(value) > MAX_MESSAGE_BYTES and len(outcomes) > 1:
            middle = len(outcomes) // 2
            yield from self._messages(outcomes[:middle])
            yield from self._messages(outcomes[middle:])
        else:
            yield value

    def _row_columns(self, outcomes: Sequence[Outcome]) -> _Columns:
        shown = [outcome.impression for outcome in outcomes]
        served = [impression.served or Served() for impression in shown]
        columns = {
            "request_id": pa.array([i.request_id for i in shown], pa.string()),
            "user_id": pa.array([i.user_id for i in shown], pa.string()),
            "scenario": pa.array([i.scenario for i in shown], pa.string()),
            "ts": pa.array([i.ts for i in shown], pa.int64()),
            "close_ms": pa.array([outcome.close_ms for outcome in outcomes], pa.int64()),
            "emitted_watermark_ms": pa.array([outcome.watermark_ms for outcome in outcomes], pa.int64()),
            "snapshot": pa.array([s.snapshot for s in served], pa.int64()),
            "blender": pa.array([s.blender for s in served], pa.int64()),
            "law": pa.array([s.law for s in served], pa.string()),
            "fallback": pa.array([s.fallback for s in served], pa.string()),
            "lane": pa.array([s.lane for s in served], pa.string()),
            "tau": pa.array([s.tau for s in served], pa.float64()),
            "truncate": pa.array([s.truncate for s in served], pa.float64()),
            "log_density": pa.array([s.log_density for s in served], pa.float64()),
        }
        for task in self._schema.tasks:
            columns[f"weight.{task}"] = pa.array([s.weights[task] for s in served], pa.float64())
            columns[f"center.{task}"] = pa.array([s.center[task] for s in served], pa.float64())
            columns[f"scale.{task}"] = pa.array([s.scale[task] for s in served], pa.float64())
        for name, feature in self._schema.features.user.items():
            columns[f"user.{name}"] = feature_array([i.user.get(name) for i in shown], feature)
        for name, feature in self._schema.features.context.items():
            columns[f"context.{name}"] = feature_array([i.context.get(name) for i in shown], feature)
        return columns

    def _candidate_columns(self, outcomes: Sequence[Outcome]) -> _Columns:
        items = [outcome.impression.items for outcome in outcomes]
        nobody = Candidates(scores={task: [] for task in self._schema.tasks})
        others = [outcome.impression.candidates or nobody for outcome in outcomes]
        offsets = list_offsets(len(i.id) + len(o.id) for i, o in zip(items, others, strict=True))
        positions = ([*range(len(i.id)), *[NOT_SHOWN] * len(o.id)] for i, o in zip(items, others, strict=True))

        def lists(columns: Iterator[Sequence[Any]], kind: pa.DataType) -> pa.Array:
            return pa.ListArray.from_arrays(offsets, pa.array(list(chain.from_iterable(columns)), kind))

        arrays = {
            "item_id": lists(([*i.id, *o.id] for i, o in zip(items, others, strict=True)), pa.string()),
            "position": lists(positions, pa.int32()),
        }
        for task in self._schema.tasks:
            scores = ([*i.scores[task], *o.scores[task]] for i, o in zip(items, others, strict=True))
            arrays[f"score.{task}"] = lists(scores, pa.float32())
        return arrays


def _action_columns(outcomes: Sequence[Outcome]) -> _Columns:
    entries = [
        sorted((row, action, *total) for action, rows in outcome.totals.items() for row, total in rows.items())
        for outcome in outcomes
    ]
    offsets = list_offsets(map(len, entries))
    kinds: Mapping[str, pa.DataType] = {
        "action.position": pa.int32(),
        "action.name": pa.string(),
        "action.value": pa.float64(),
        "action.first_ts": pa.int64(),
    }
    flat = list(chain.from_iterable(entries))
    return {
        name: pa.ListArray.from_arrays(offsets, pa.array([entry[index] for entry in flat], kind))
        for index, (name, kind) in enumerate(kinds.items())
    }
