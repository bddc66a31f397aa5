"""`examples` messages (Arrow IPC, one record batch) -> rows to train on. The writer's half is `stream.examples`.

Letters: R requests (rows of the message), B rows to train on (their items), T tasks.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.delayed_labels import FINAL_POLICIES, POLICY_CODE, DelayedLabels
from model.exceptions import ExampleError
from model.features import Column, EncodedBatch, FeatureEncoder, RowColumns, SequenceColumns
from model.hashing import value_key
from model.label_policy import POLICY_KINDS
from model.metrics import BoolArray, Int64Array
from stream.schema import (
    KIND_CODE,
    KINDS,
    OBSERVING_POLICIES,
    SCHEMA_VERSION,
    SETTLED_KINDS,
    UNTRAINED_KINDS,
    FeatureConfig,
    KindName,
    SchemaConfig,
)

REPEATED_KINDS: tuple[KindName, ...] = ("late_positive", "early_positive_repeat", "real_negative_repeat", "matured")
"""Kinds that are not the first emission of their item and task; they do not count for admission."""

Float32Array = npt.NDArray[np.float32]


class LabelPolicy(msgspec.Struct, frozen=True):
    """What a message says about one task's labels."""

    name: str
    window_ms: int
    grace_ms: int = 0
    observe_ms: int | None = None

    def __post_init__(self) -> None:
        if self.name in OBSERVING_POLICIES and not 0 < (self.observe_ms or 0) < self.window_ms:
            raise ValueError(
                f"observe_ms {self.observe_ms} is not allowed; policy {self.name} needs 1 to below window_ms"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRows:
    """Rows of one or more messages, ready for `Learner.learn` and the metrics."""

    batch: EncodedBatch
    label_BT: Float32Array
    mask_BT: BoolArray
    """Whether the label is part of the loss."""
    weight_BT: Float32Array
    """Sampling weight times traffic ratio."""
    sampling_B: Float32Array
    """Sampling weight alone."""
    first_BT: BoolArray
    """Whether this is the first emission of the item and task."""
    settled_BT: BoolArray
    """Whether the label is the truth of a closed window: those, and only those, are scored."""
    served_BT: Float32Array
    """Probability logged with the impression; NaN where none was."""
    version_B: Int64Array
    """The snapshot that served the impression; 0 for none."""
    impression_ms_B: Int64Array
    feedback_ms_BT: Int64Array
    """Event time of the feedback that made the label positive; -1 for none."""
    delayed: DelayedLabels | None = None
    """What the policies need whose labels are corrected later; None: every policy here sends final labels only."""

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.label_BT)

    def take(self, rows: slice) -> "TrainRows":
        """Returns some of the rows."""
        return TrainRows(**{field.name: _taken(getattr(self, field.name), rows) for field in fields(self)})

    @staticmethod
    def concat(parts: Sequence["TrainRows"]) -> "TrainRows":
        """Returns the rows of all `parts` (at least one), in order."""
        if len(parts) == 1:
            return parts[0]
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(TrainRows)}
        batch = EncodedBatch.concat(columns.pop("batch"))
        delayed = None
        if any(part is not None for part in columns.pop("delayed")):
            delayed = DelayedLabels.concat([part.delayed or part.as_final() for part in parts])
        joined = {name: np.concatenate(arrays) for name, arrays in columns.items()}
        return TrainRows(batch=batch, delayed=delayed, **joined)

    def as_final(self) -> DelayedLabels:
        """Returns rows without delayed labels in the form of those that have some."""
        kind_BT = np.where(self.mask_BT, KIND_CODE["final"], KIND_CODE["none"]).astype(np.int8)
        return DelayedLabels.of_final(kind_BT, self.impression_ms_B)


def _taken(value: Any, rows: slice) -> Any:
    if value is None:
        return None
    return value.take(rows) if isinstance(value, EncodedBatch | DelayedLabels) else value[rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedExamples:
    """One message."""

    columns: RowColumns
    rows: TrainRows
    order_ms: int
    """`emitted_watermark_ms` of the first request: the message's place in the order of the log."""
    watermark_ms: int
    """`emitted_watermark_ms` of the last request: labels up to here are in this or an earlier message."""
    settle_ms: int
    """Longest label window + grace of its tasks: how long after an impression all its labels are out."""


class ExampleDecoder:
    """Decodes and checks messages of one schema.

    Raises:
        ValueError: the schema's features do not make a single field.
    """

    def __init__(self, schema: SchemaConfig, encoder: FeatureEncoder) -> None:
        self._schema = schema
        self._hash = schema.schema_hash()
        self._encoder = encoder
        self._tasks = tuple(schema.tasks)

    def decode(self, message: bytes) -> DecodedExamples:
        """Returns the rows of a message; none at all is allowed.

        Raises:
            ExampleError: not Arrow, another schema, an unknown policy, a kind outside the policy's set, a column that
                is missing or of another type or length, a number that is not finite; the text names it.
        """
        try:
            with pa.ipc.open_stream(pa.py_buffer(message)) as reader:
                table = reader.read_all()
            table.validate(full=True)
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            raise ExampleError(f"message of {len(message)} bytes is not an Arrow stream: {error}") from error
        policies = self._policies(table.schema.metadata or {})
        reader_of = _Columns(table.combine_chunks())
        columns = self._columns(reader_of)
        try:
            batch = self._encoder.encode_columns(columns)
        except ValueError as error:
            raise ExampleError(str(error)) from error
        watermark_R = reader_of.integers("emitted_watermark_ms")
        return DecodedExamples(
            columns=columns,
            rows=self._rows(reader_of, batch, policies),
            order_ms=int(watermark_R[0]) if len(watermark_R) else -1,
            watermark_ms=int(watermark_R[-1]) if len(watermark_R) else -1,
            settle_ms=max(policy.window_ms + policy.grace_ms for policy in policies),
        )

    def _policies(self, metadata: dict[bytes, bytes]) -> list[LabelPolicy]:
        version = metadata.get(b"schema_version", b"").decode(errors="replace")
        if version != str(SCHEMA_VERSION):
            raise ExampleError(f"schema_version: {version!r} is not allowed; {SCHEMA_VERSION}")
        schema_hash = metadata.get(b"schema_hash", b"").decode(errors="replace")
        if schema_hash != self._hash:
            raise ExampleError(f"schema_hash: {schema_hash!r} is not this run's, {self._hash}")
        return [self._policy(task, metadata.get(f"policy.{task}".encode(), b"")) for task in self._tasks]

    @staticmethod
    def _policy(task: str, data: bytes) -> LabelPolicy:
        try:
            policy = msgspec.json.decode(data, type=LabelPolicy)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ExampleError(f"policy.{task}: {error}") from error
        if policy.name not in POLICY_KINDS:
            raise ExampleError(f"policy.{task}: {policy.name!r} is not one of {', '.join(POLICY_KINDS)}")
        return policy

    def _columns(self, read: "_Columns") -> RowColumns:
        features = self._schema.features
        return RowColumns(
            scenario=read.strings("scenario"),
            user_id=read.strings("user_id"),
            item_id=read.item_strings("item_id"),
            request_index_B=read.request_index_B,
            position_B=read.item_integers("position"),
            user={name: read.feature(f"user.{name}", config) for name, config in features.user.items()},
            context={name: read.feature(f"context.{name}", config) for name, config in features.context.items()},
            item={name: read.item_feature(f"item.{name}", config) for name, config in features.item.items()},
            sequence=SequenceColumns(
                item_id=read.lists("sequence.item_id", pa.string()),
                action=read.lists("sequence.action", pa.string()),
                age_ms=read.lists("sequence.age_ms", pa.int64()),
            ),
        )

    def _rows(self, read: "_Columns", batch: EncodedBatch, policies: list[LabelPolicy]) -> TrainRows:
        label_BT = self._per_task(read.item_integers, "label")
        kind_BT = self._per_task(read.item_integers, "kind")
        delay_ms_BT = self._per_task(read.item_integers, "delay_ms")
        for index, (task, policy) in enumerate(zip(self._tasks, policies, strict=True)):
            kind_B = kind_BT[:, index]
            is_strange_B = (kind_B < 0) | (kind_B >= len(KINDS)) | ~_KINDS_OF[policy.name][kind_B % len(KINDS)]
            if is_strange_B.any():
                code = kind_B[is_strange_B].min()
                raise ExampleError(f"kind.{task}: code {code} is not one that policy {policy.name!r} sends")
        present_BT = kind_BT != KIND_CODE["none"]
        if ((label_BT != 0) & (label_BT != 1) & present_BT).any():
            raise ExampleError("label: only 0 and 1 are allowed")
        impression_ms_B = read.integers("ts")[read.request_index_B]
        mask_BT = ~_UNTRAINED[kind_BT]
        positive_BT = mask_BT & (label_BT == 1)
        ratio_BT = self._per_task(read.item_weights, "ratio")
        # `eager` alone stamps a ratio, on its positives; everywhere else it is 1.
        sampling_B = read.item_weights("weight")
        weight_BT = sampling_B[:, None] * np.where(positive_BT, ratio_BT, 1.0)
        learned_BT = positive_BT & (delay_ms_BT >= 0) & (weight_BT > 0)
        delayed = None
        if any(policy.name not in FINAL_POLICIES for policy in policies):
            delayed = self._delayed(read, policies, kind_BT, delay_ms_BT)
        served_BT = self._per_task(read.item_floats, "served")
        if ((served_BT < 0) | (served_BT > 1)).any():
            raise ExampleError("served: only probabilities are allowed")
        return TrainRows(
            batch=batch,
            label_BT=label_BT.astype(np.float32),
            mask_BT=mask_BT,
            weight_BT=weight_BT.astype(np.float32),
            sampling_B=sampling_B.astype(np.float32),
            first_BT=present_BT & ~_REPEATED[kind_BT],
            settled_BT=_SETTLED[kind_BT],
            served_BT=served_BT.astype(np.float32),
            version_B=read.integers("snapshot")[read.request_index_B],
            impression_ms_B=impression_ms_B,
            feedback_ms_BT=np.where(learned_BT, impression_ms_B[:, None] + delay_ms_BT, -1),
            delayed=delayed,
        )

    def _delayed(
        self, read: "_Columns", policies: list[LabelPolicy], kind_BT: Int64Array, delay_ms_BT: Int64Array
    ) -> DelayedLabels:
        """Returns what policies need whose labels are corrected later."""
        request_R = np.fromiter((value_key("request_id", value) for value in read.strings("request_id")), np.int64)
        # An odd factor keeps different positions of one slate apart; positions may repeat between slates.
        key_B = request_R[read.request_index_B] + read.item_integers("position") * _POSITION_FACTOR

        def per_task(values: Sequence[int], kind: type[np.integer[Any]]) -> npt.NDArray[Any]:
            return np.tile(np.array(values, kind), (len(kind_BT), 1))

        return DelayedLabels(
            key_B=key_B,
            impression_ms_B=read.integers("ts")[read.request_index_B],
            policy_BT=per_task([POLICY_CODE[policy.name] for policy in policies], np.int8),
            kind_BT=kind_BT.astype(np.int8),
            delay_ms_BT=delay_ms_BT,
            observe_ms_BT=per_task([policy.observe_ms or -1 for policy in policies], np.int64),
            window_ms_BT=per_task([policy.window_ms for policy in policies], np.int64),
        )

    def nothing(self) -> TrainRows:
        """Returns no rows at all, in the shape of some."""
        columns = RowColumns(scenario=[], user_id=[], item_id=[], request_index_B=np.empty(0, np.int64))
        no_numbers_BT, no_times_BT = (np.empty((0, len(self._tasks)), kind) for kind in (np.float32, np.int64))
        no_marks_BT = np.empty((0, len(self._tasks)), np.bool_)
        return TrainRows(
            batch=self._encoder.encode_columns(columns),
            label_BT=no_numbers_BT,
            mask_BT=no_marks_BT,
            weight_BT=no_numbers_BT,
            sampling_B=np.empty(0, np.float32),
            first_BT=no_marks_BT,
            settled_BT=no_marks_BT,
            served_BT=no_numbers_BT,
            version_B=np.empty(0, np.int64),
            impression_ms_B=np.empty(0, np.int64),
            feedback_ms_BT=no_times_BT,
        )

    def _per_task(self, read: Callable[[str], npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
        """Returns a column that exists once per task, [B, T]."""
        return np.stack([read(f"{name}.{task}") for task in self._tasks], axis=1)


def _is_in(kinds: Iterable[KindName]) -> BoolArray:
    """Returns a table over the codes of all kinds, on for `kinds`."""
    return np.isin(np.arange(len(KINDS)), [KIND_CODE[kind] for kind in kinds])


_UNTRAINED, _REPEATED, _SETTLED = _is_in(UNTRAINED_KINDS), _is_in(REPEATED_KINDS), _is_in(SETTLED_KINDS)
_KINDS_OF: dict[str, BoolArray] = {policy: _is_in(("none", *kinds)) for policy, kinds in POLICY_KINDS.items()}
_POSITION_FACTOR = np.int64(0x1E3779B97F4A7C15)


class _Columns:
    """Typed access to the columns of one message; every error names the column."""

    def __init__(self, table: Any) -> None:
        self._table = table
        items = self._list_array("item_id", pa.string())
        self._offsets = None if items.null_count else items.offsets
        self._lengths_R = _lengths(items)
        self.request_index_B: Int64Array = np.repeat(np.arange(len(items), dtype=np.int64), self._lengths_R)

    def _array(self, name: str) -> Any:
        index = self._table.schema.get_field_index(name)
        if index < 0:
            raise ExampleError(f"{name}: the column is missing")
        column = self._table.column(index)
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    def _typed(self, name: str, kind: Any) -> Any:
        array = self._array(name)
        if array.type != kind:
            raise ExampleError(f"{name}: type {array.type} is not allowed; {kind}")
        return array

    def _list_array(self, name: str, kind: Any) -> Any:
        array = self._array(name)
        if not pa.types.is_list(array.type) or array.type.value_type != kind:
            raise ExampleError(f"{name}: type {array.type} is not allowed; a list of {kind}")
        return array

    def _item_array(self, name: str, kind: Any) -> Any:
        """Returns the values of a list column, one per item; no list may be missing or of another length."""
        array = self._list_array(name, kind)
        is_like_items = self._offsets is not None and not array.null_count and array.offsets.equals(self._offsets)
        if not is_like_items and not np.array_equal(_lengths(array), self._lengths_R):
            raise ExampleError(f"{name}: lists of another length than item_id")
        return array.flatten()

    def strings(self, name: str) -> list[str]:
        """Returns one string per request; none may be missing."""
        return _complete(name, self._typed(name, pa.string())).to_pylist()  # type: ignore[no-any-return]  # untyped Arrow

    def integers(self, name: str) -> Int64Array:
        """Returns one integer per request; none may be missing."""
        return _integers(name, self._typed(name, pa.int64()))

    def item_strings(self, name: str) -> list[str]:
        """Returns one string per item; none may be missing."""
        return _complete(name, self._item_array(name, pa.string())).to_pylist()  # type: ignore[no-any-return]  # untyped Arrow

    def item_integers(self, name: str) -> Int64Array:
        """Returns one integer per item; none may be missing."""
        kind = pa.int32() if name.startswith(("position", "delay_ms")) else pa.int8()
        return _integers(name, self._item_array(name, kind))

    def item_weights(self, name: str) -> npt.NDArray[np.float64]:
        """Returns one finite number, at least 0, per item; none may be missing."""
        weights = _floats(name, self._item_array(name, pa.float32()))
        if not (weights >= 0).all():
            raise ExampleError(f"{name}: only finite numbers of at least 0 are allowed")
        return weights

    def item_floats(self, name: str) -> npt.NDArray[np.float64]:
        """Returns one number per item, NaN where it, or the request's whole list, is missing."""
        array = self._list_array(name, pa.float32())
        lengths_R = _lengths(array)
        present_R = np.asarray(array.is_valid())
        if not np.array_equal(lengths_R[present_R], self._lengths_R[present_R]):
            raise ExampleError(f"{name}: lists of another length than item_id")
        values = np.full(len(self.request_index_B), np.nan)
        values[present_R[self.request_index_B]] = _floats(name, array.flatten())
        return values

    def feature(self, name: str, config: FeatureConfig) -> Column:
        """Returns a feature with one value per request."""
        if config.kind == "numeric":
            return _floats(name, self._typed(name, pa.float64()))
        if config.many:
            return self.lists(name, pa.string())
        return self._typed(name, pa.string()).to_pylist()  # type: ignore[no-any-return]  # untyped Arrow

    def item_feature(self, name: str, config: FeatureConfig) -> Column:
        """Returns a feature with one value per item."""
        if config.kind == "numeric":
            return _floats(name, self._item_array(name, pa.float64()))
        values = self._item_array(name, pa.list_(pa.string()) if config.many else pa.string())
        return values.to_pylist()  # type: ignore[no-any-return]  # untyped Arrow

    def lists(self, name: str, kind: Any) -> list[list[Any]]:
        """Returns one list per request, empty where it is missing."""
        array = self._list_array(name, kind)
        values = array.flatten().to_pylist()  # lists of lists are several times as slow
        ends = np.cumsum(_lengths(array)).tolist()
        return [values[start:end] for start, end in itertools.pairwise([0, *ends])]


def _lengths(array: Any) -> Int64Array:
    """Returns the length of each list; 0 for a missing one."""
    lengths: Int64Array = np.diff(array.offsets.to_numpy()).astype(np.int64)
    return lengths * np.asarray(array.is_valid()) if array.null_count else lengths


def _complete(name: str, array: Any) -> Any:
    if array.null_count:
        raise ExampleError(f"{name}: a value is missing")
    return array


def _integers(name: str, array: Any) -> Int64Array:
    return _complete(name, array).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]  # untyped Arrow


def _floats(name: str, array: Any) -> npt.NDArray[np.float64]:
    """Returns float64 with NaN where the value is missing, and only there."""
    values: npt.NDArray[np.float64] = array.to_numpy(zero_copy_only=False).astype(np.float64)
    if np.count_nonzero(~np.isfinite(values)) != array.null_count:
        raise ExampleError(f"{name}: only finite numbers are allowed")
    return values
