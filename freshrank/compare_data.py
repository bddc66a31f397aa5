"""What `freshrank compare` learns from: a source, encoded once into micro-batches that every model gets.

    ml-1m        ratings in time order, every label known at once
    recorded log events by event time -> join core -> messages of `examples` -> rows, as the trainer gets them
    ranklens     converted to a recorded log first

In a recorded log every task is joined by the policy `wait`: labels are learned when their window has closed, so that
each is trained and judged once, and models are compared, not label policies. Letters: B rows, T tasks.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from freshrank.movielens import FILES as ML_1M_FILES
from freshrank.movielens import read_ml_1m
from freshrank.ranklens import convert_ranklens
from model.examples import ExampleDecoder, TrainRows
from model.features import EncodedBatch, FeatureEncoder, Field, RowColumns
from model.hashing import value_key
from model.labels import LabelBatch
from stream.emission import Emission
from stream.examples import ExampleEncoder
from stream.join import JoinConfig, JoinCore
from stream.recorded import RecordedLog
from stream.schema import Impression, SchemaConfig, TaskConfig

CHUNK_ROWS = 4096
"""Rows encoded at once, at least: faster than one batch after the other."""
SourceKind = Literal["ml-1m", "ranklens", "log"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareBatch:
    """One micro-batch as every model gets it."""

    encoded: EncodedBatch
    labels: LabelBatch
    judged_BT: npt.NDArray[np.bool_]
    """Whether the label is the final truth: those, and only those, are judged."""
    user_B: npt.NDArray[np.int64]
    """Key of each row's user."""

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.user_B)

    def take(self, rows: slice) -> "CompareBatch":
        """Returns some of the rows."""
        return CompareBatch(
            encoded=self.encoded.take(rows),
            labels=self.labels.take(np.arange(self.num_rows)[rows]),
            judged_BT=self.judged_BT[rows],
            user_B=self.user_B[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareData:
    """A source in memory. `batches` may be iterated any number of times and must not be changed."""

    schema: SchemaConfig
    fields: tuple[Field, ...]
    batches: list[CompareBatch]

    @property
    def num_rows(self) -> int:
        """Examples in all batches."""
        return sum(batch.num_rows for batch in self.batches)


def kind_of(path: Path) -> SourceKind:
    """Returns what a path holds; a folder of neither data set is taken for a recorded log."""
    if path.is_file() or all((path / name).is_file() for name in ML_1M_FILES):
        return "ml-1m"
    return "ranklens" if (path / "impressions.csv.gz").is_file() else "log"


def load(
    kind: SourceKind,
    path: Path,
    *,
    schema: SchemaConfig,
    join: JoinConfig,
    encoder: FeatureEncoder,
    batch_rows: int,
    limit: int | None = None,
) -> CompareData:
    """Reads and encodes a source.

    Batches have `batch_rows` rows of ml-1m; of a log at least as many, because the labels of a slate that became known
    together are never spread over two batches. With `limit` it ends with the batch that reaches so many rows.

    Raises:
        ValueError: nothing there that can be read, or no example in it.
    """
    if kind == "ml-1m":
        batches = _ml_1m_batches(path, schema, encoder, batch_rows)
    elif kind == "ranklens":
        batches = _ranklens_batches(path, schema, join, encoder, batch_rows)
    else:
        batches = _log_batches(path, schema, join, encoder, batch_rows)
    kept, num_rows = [], 0
    for batch in batches:
        kept.append(batch)
        num_rows += batch.num_rows
        if limit is not None and num_rows >= limit:
            break
    if not kept:
        raise ValueError(f"{path}: there is no example in it")
    return CompareData(schema=schema, fields=encoder.fields, batches=kept)


def _ml_1m_batches(
    path: Path, schema: SchemaConfig, encoder: FeatureEncoder, batch_rows: int
) -> Iterator[CompareBatch]:
    for chunk in read_ml_1m(path, schema, chunk_rows=batch_rows * math.ceil(CHUNK_ROWS / batch_rows)):
        is_known_BT = np.ones(chunk.label_BT.shape, np.bool_)
        labels = LabelBatch(
            label_BT=chunk.label_BT,
            mask_BT=is_known_BT,
            weight_BT=np.ones(chunk.label_BT.shape, np.float32),
            first_BT=is_known_BT,
        )
        encoded = encoder.encode_columns(chunk.columns)
        whole = CompareBatch(encoded=encoded, labels=labels, judged_BT=is_known_BT, user_B=_users(chunk.columns))
        yield from (whole.take(slice(start, start + batch_rows)) for start in range(0, whole.num_rows, batch_rows))


def _ranklens_batches(
    path: Path, schema: SchemaConfig, join: JoinConfig, encoder: FeatureEncoder, batch_rows: int
) -> Iterator[CompareBatch]:
    with tempfile.TemporaryDirectory() as folder:
        convert_ranklens(path, Path(folder))
        yield from _log_batches(Path(folder), schema, join, encoder, batch_rows)


def _log_batches(
    path: Path, schema: SchemaConfig, join: JoinConfig, encoder: FeatureEncoder, batch_rows: int
) -> Iterator[CompareBatch]:
    schema = replace(schema, tasks={name: _waiting(task) for name, task in schema.tasks.items()})
    examples, decoder = ExampleEncoder(schema, join), ExampleDecoder(schema, encoder)
    batches: list[list[Emission]] = []  # decoded many at a time, which is faster
    for batch in _emission_batches(_emissions(path, schema, join), batch_rows):
        batches.append(batch)
        if len(batches) * batch_rows >= CHUNK_ROWS:
            yield from _decoded(examples, decoder, batches)
            batches = []
    if batches:
        yield from _decoded(examples, decoder, batches)


def _emission_batches(emissions: Iterable[Emission], batch_rows: int) -> Iterator[list[Emission]]:
    batch: list[Emission] = []
    num_rows = 0
    for emission in emissions:
        batch.append(emission)
        num_rows += len(emission.rows)
        if num_rows >= batch_rows:
            yield batch
            batch, num_rows = [], 0
    if batch:
        yield batch


def _emissions(path: Path, schema: SchemaConfig, join: JoinConfig) -> Iterator[Emission]:
    """Yields what becomes known, in the order of its triggers. Events come by event time: no watermark lags behind."""
    core = JoinCore(schema, join)
    num_impressions = num_feedback = clock_ms = 0
    with tempfile.TemporaryDirectory() as folder:
        with RecordedLog(path, schema, dead_letter=Path(folder) / "dead-letter.jsonl") as log:
            for event, clock_ms in log:
                yield from core.advance(clock_ms - 1)
                if isinstance(event, Impression):
                    yield from core.observe_impression(event, num_impressions)
                    num_impressions += 1
                else:
                    yield from core.observe_feedback(event, num_feedback)
                    num_feedback += 1
            if log.counters.malformed:
                num = log.counters.malformed
                raise ValueError(f"{path}: {num} lines cannot be read; `freshrank replay` names them")
    yield from core.advance(clock_ms + schema.max_window_ms + join.grace_ms + 1)


def _waiting(task: TaskConfig) -> TaskConfig:
    return replace(task, policy="wait", observe_ms=None, traffic_ratio=None)


def _decoded(
    examples: ExampleEncoder, decoder: ExampleDecoder, batches: list[list[Emission]]
) -> Iterator[CompareBatch]:
    emissions = [emission for batch in batches for emission in batch]
    decoded = [decoder.decode(message) for message in examples.encode(emissions)]
    rows = TrainRows.concat([one.rows for one in decoded])
    whole = CompareBatch(
        encoded=rows.batch,
        labels=LabelBatch(
            label_BT=rows.label_BT, mask_BT=rows.mask_BT, weight_BT=rows.weight_BT, first_BT=rows.first_BT
        ),
        judged_BT=rows.settled_BT & rows.mask_BT,
        user_B=np.concatenate([_users(one.columns) for one in decoded]),
    )
    stop = 0
    for batch in batches:
        start, stop = stop, stop + sum(len(emission.rows) for emission in batch)
        yield whole.take(slice(start, stop))


def _users(columns: RowColumns) -> npt.NDArray[np.int64]:
    keys_R = np.array([value_key("user_id", user_id) for user_id in columns.user_id], np.int64)
    return keys_R[columns.request_index_B]
