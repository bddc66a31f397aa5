"""Feature encoding: a request's columns become keys, one block per field, hashed once per distinct value.

Letters: R requests, B rows (one row = one item of a request), F fields of a block, N values of a list field.

User, context and history columns are given once per request; `request_index_B` says whose each row is. Training
(many requests) and serving (one request with its candidates) go through the same door.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from model.crosses import CROSS_SIGN, cross_keys
from model.hashing import MISSING_KEY, Int64Array, ValueKeys
from model.key_lists import KeyLists
from model.sequence_inputs import UNKNOWN_AGE_MS
from stream.schema import FeatureKind, SchemaConfig

Side = Literal["request", "item"]
Column = Sequence[Any] | npt.NDArray[Any]
"""One value per request or row: categorical `str | int | None`, numeric `float | None` (or float64 with NaN as
missing), `many` a list of categorical values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingConfig:
    """Which fields there are besides the schema's features, and how numbers become buckets."""

    user_id: bool = True
    """Whether the user's id is a field."""
    item_id: bool = True
    """Whether the item's id is a field."""
    scenario: bool = False
    """Whether the scenario is also a field; HiNet takes it in the scenario-aware attention only. A scenario that is not
    listed has the default one's value there."""
    history_length: int = 50
    """Newest actions of the user that are pooled into the fields `history_item` and `history_action`, and read one by
    one by networks that do so (`closeup` as published: 100); 0: no history."""
    history_interaction: bool = True
    """Whether the product of the pooled history and the item's embedding is a block of its own."""
    numeric_resolution: float = 0.01
    """Numbers below it in size share the innermost buckets; above it buckets grow with the number; greater than 0."""
    numeric_steps: int = 6
    """Buckets per factor of e; at least 1."""
    admission_ids: int = 3
    """Examples of a user or item before it gets its own row; at least 1."""
    admission: int = 1
    """Examples of any other value before it gets its own row; at least 1."""
    crosses: tuple[tuple[str, str], ...] = ()
    """Pairs of fields, one of the request and one of the item (`[[user_id, item.tags]]`): each pair is a further field
    of the item, `user_id&item.tags`, whose values are the pairs of their values, such as this user with this tag. What
    single values cannot tell, such as a user's own taste, is then learned by heart. Learns best with a new row at the
    first example and a fast `row_lr`."""
    crosses_admission: int = 1
    """Examples of a pair of values before it gets its own row; at least 1."""
    without: tuple[str, ...] = ()
    """Fields that the model must not see (`[context.mood]`): features of the schema that only the blender uses."""
    cached_values: int = 200_000
    """Values per field whose key is remembered; at least 1."""

    def __post_init__(self) -> None:
        for name in ("numeric_steps", "admission_ids", "admission", "crosses_admission", "cached_values"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
        if self.history_length < 0:
            raise ValueError(f"history_length: {self.history_length} is not allowed; at least 0")
        if not self.numeric_resolution > 0:
            raise ValueError(f"numeric_resolution: {self.numeric_resolution} is not allowed; greater than 0")
        for place, pair in enumerate(self.crosses):
            if pair in self.crosses[:place]:
                raise ValueError(f"crosses: {list(pair)} twice is not allowed; each pair once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One block of the network's input: where its values come from and whose ids they are."""

    name: str
    """As in the examples: `user_id`, `user.city`, `item.price`, `history_item`, ..."""
    side: Side
    """`request`: one value per request; `item`: one per row."""
    kind: FeatureKind = "categorical"
    many: bool = False
    """A list of values, mean pooled."""
    ids_of: str
    """The field whose ids the values are: its own name, but `item_id` for `history_item`."""
    admission: int
    """Examples before a value gets a row; 0: this field admits none."""
    cross: tuple[str, str] | None = None
    """The fields whose pairs of values this one has, the request's first; None: its values are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceColumns:
    """The users' last actions as serving saw them, newest first: per request three lists of equal length."""

    item_id: Sequence[Sequence[str]]
    action: Sequence[Sequence[str]]
    age_ms: Sequence[Sequence[int]] | None = None
    """Request time minus the action's event time, in ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowColumns:
    """Raw columns of B rows of R requests. A feature without a column is missing everywhere."""

    scenario: Sequence[str]
    """Name, one per request."""
    user_id: Sequence[str]
    """One per request."""
    item_id: Sequence[str]
    """One per row."""
    request_index_B: Int64Array
    """The request of each row, in [0, R)."""
    position_B: Int64Array | None = None
    """Position shown; None before anything is shown (serving)."""
    user: Mapping[str, Column] = field(default_factory=dict)
    """User features by name, one value per request."""
    context: Mapping[str, Column] = field(default_factory=dict)
    """Context features by name, one value per request."""
    item: Mapping[str, Column] = field(default_factory=dict)
    """Item features by name, one value per row."""
    sequence: SequenceColumns | None = None
    """Histories, one per request; None: all empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBatch:
    """Keys of B rows of R requests; a block's fields are in the order of `FeatureEncoder.fields`."""

    scenario_R: Int64Array
    """Index of each request's scenario; -1 - n for the n-th of `unknown_scenarios`, until they are `resolved`."""
    request_index_B: Int64Array
    position_B: Int64Array
    """-1 where nothing was shown."""
    request_keys_FR: Int64Array
    """Single-valued fields of the request."""
    item_keys_FB: Int64Array
    """Single-valued fields of the item."""
    request_lists: tuple[KeyLists, ...]
    """List fields of the request, R entries each."""
    item_lists: tuple[KeyLists, ...]
    """List fields of the item, B entries each."""
    history_age_ms: KeyLists | None = None
    """Ages of the actions, in lists as long as those of `history_item`, R entries: `UNKNOWN_AGE_MS` where not given, at
    most 0 where there is no action or it was not before the request. None: this model has no history."""
    unknown_scenarios: tuple[str, ...] = ()
    """Names of scenarios that are not listed."""

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.request_index_B)

    @property
    def num_requests(self) -> int:
        """R."""
        return len(self.scenario_R)

    @property
    def scenario_B(self) -> Int64Array:
        """Index of each row's scenario."""
        return self.scenario_R[self.request_index_B]

    def resolved(self, index_of: Callable[[str], int]) -> "EncodedBatch":
        """Returns the batch with an index for each of its unknown scenarios."""
        if not self.unknown_scenarios:
            return self
        scenario_R, is_unknown_R = self.scenario_R.copy(), self.scenario_R < 0
        index_U = np.array([index_of(name) for name in self.unknown_scenarios], np.int64)
        scenario_R[is_unknown_R] = index_U[-1 - scenario_R[is_unknown_R]]
        return replace(self, scenario_R=scenario_R, unknown_scenarios=())

    def rows_of_unknown(self, counts_B: npt.NDArray[np.bool_]) -> dict[str, int]:
        """Returns how many of the rows with `counts_B` each unknown scenario has."""
        scenario_N = self.scenario_B[counts_B]
        rows_U = np.bincount(-1 - scenario_N[scenario_N < 0], minlength=len(self.unknown_scenarios))
        return {name: num for name, num in zip(self.unknown_scenarios, rows_U.tolist(), strict=True) if num}

    def take(self, rows: slice | Int64Array) -> "EncodedBatch":
        """Returns some of the rows, in the given order, with only the requests they need."""
        rows_B = np.arange(self.num_rows)[rows]
        requests_R, request_index_B = np.unique(self.request_index_B[rows_B], return_inverse=True)
        return EncodedBatch(
            scenario_R=self.scenario_R[requests_R],
            request_index_B=request_index_B.astype(np.int64),
            position_B=self.position_B[rows_B],
            request_keys_FR=self.request_keys_FR[:, requests_R],
            item_keys_FB=self.item_keys_FB[:, rows_B],
            request_lists=tuple(lists.take(requests_R) for lists in self.request_lists),
            item_lists=tuple(lists.take(rows_B) for lists in self.item_lists),
            unknown_scenarios=self.unknown_scenarios,
            history_age_ms=None if self.history_age_ms is None else self.history_age_ms.take(requests_R),
        )

    def by_scenario(self, num_scenarios: int) -> tuple["EncodedBatch", Int64Array, list[int]]:
        """Returns the rows sorted by scenario (stable), their former places, and where each scenario starts.

        No scenario may be unknown any more.
        """
        scenario_B = self.scenario_B
        order_B = np.argsort(scenario_B, kind="stable")
        ends = np.cumsum(np.bincount(scenario_B, minlength=num_scenarios))
        batch = replace(
            self,
            request_index_B=self.request_index_B[order_B],
            position_B=self.position_B[order_B],
            item_keys_FB=self.item_keys_FB[:, order_B],
            item_lists=tuple(lists.take(order_B) for lists in self.item_lists),
        )
        return batch, order_B, [0, *ends.tolist()]

    @staticmethod
    def concat(batches: Sequence["EncodedBatch"]) -> "EncodedBatch":
        """Returns the rows of all `batches` (at least one), in order."""
        first_request = np.cumsum([0] + [batch.num_requests for batch in batches[:-1]])
        ages = [batch.history_age_ms for batch in batches if batch.history_age_ms is not None]
        unknown = tuple(dict.fromkeys(itertools.chain.from_iterable(b.unknown_scenarios for b in batches)))
        code_of = {name: -1 - n for n, name in enumerate(unknown)}
        return EncodedBatch(
            scenario_R=np.concatenate([b.resolved(code_of.__getitem__).scenario_R for b in batches]),
            unknown_scenarios=unknown,
            request_index_B=np.concatenate(
                [b.request_index_B + r for b, r in zip(batches, first_request, strict=True)]
            ),
            position_B=np.concatenate([b.position_B for b in batches]),
            request_keys_FR=np.concatenate([b.request_keys_FR for b in batches], axis=1),
            item_keys_FB=np.concatenate([b.item_keys_FB for b in batches], axis=1),
            request_lists=tuple(map(KeyLists.concat, zip(*(b.request_lists for b in batches), strict=True))),
            item_lists=tuple(map(KeyLists.concat, zip(*(b.item_lists for b in batches), strict=True))),
            history_age_ms=KeyLists.concat(ages) if ages else None,
        )


def model_fields(schema: SchemaConfig, config: EncodingConfig) -> tuple[Field, ...]:
    """Returns the fields of a model: request side before item side, single values before lists, crosses last.

    Raises:
        ValueError: a cross of a field that is not there, or of two fields that are not one of each side; a field to be
            left out that is no feature.
    """

    def id_field(name: str, side: Side) -> Field:
        return Field(name=name, side=side, ids_of=name, admission=config.admission_ids)

    fields = [id_field("user_id", "request")] if config.user_id else []
    fields += [id_field("item_id", "item")] if config.item_id else []
    if config.scenario:
        fields.append(Field(name="scenario", side="request", ids_of="scenario", admission=1))
    sides: tuple[tuple[Literal["user", "context", "item"], Side], ...] = (
        ("user", "request"),
        ("context", "request"),
        ("item", "item"),
    )
    features = {f"{source}.{name}" for source, _ in sides for name in getattr(schema.features, source)}
    if unknown := [name for name in config.without if name not in features]:
        raise ValueError(f"encoding.without: {unknown[0]} is not allowed; one of {', '.join(sorted(features))}")
    for source, side in sides:
        for name, feature in getattr(schema.features, source).items():
            full = f"{source}.{name}"
            if full in config.without:
                continue
            admission = 1 if feature.kind == "numeric" else config.admission
            fields.append(
                Field(name=full, side=side, kind=feature.kind, many=feature.many, ids_of=full, admission=admission)
            )
    if config.history_length:
        ids_of = "item_id" if config.item_id else "history_item"
        admission = 0 if config.item_id else config.admission_ids
        fields.append(Field(name="history_item", side="request", many=True, ids_of=ids_of, admission=admission))
        fields.append(Field(name="history_action", side="request", many=True, ids_of="history_action", admission=1))
    fields.sort(key=lambda f: (f.side == "item", f.many))
    return tuple(fields + [_cross_field(pair, fields, config.crosses_admission) for pair in config.crosses])


def _cross_field(pair: tuple[str, str], fields: Sequence[Field], admission: int) -> Field:
    names = {side: [one.name for one in fields if one.side == side] for side in get_args(Side)}
    if pair[0] not in names["request"] or pair[1] not in names["item"]:
        request, item = (", ".join(names[side]) for side in get_args(Side))
        raise ValueError(f"encoding.crosses: {list(pair)} is not allowed; first one of {request}; then one of {item}")
    name = CROSS_SIGN.join(pair)
    return Field(name=name, side="item", many=True, ids_of=name, admission=admission, cross=pair)


class FeatureEncoder:
    """Turns columns into keys. Safe to share between threads.

    Numbers become the buckets of a signed logarithm, `floor(steps * asinh(x / resolution))`, whose value is then a
    categorical one (HiNet, ICDE 2023, bucketises before it embeds); NaN is missing, infinities fall in the outermost
    buckets.

    Raises:
        ValueError: no field at all, or a cross of fields that are not there.
    """

    _NUM_BUCKETS_EACH_SIGN = 1024

    def __init__(self, schema: SchemaConfig, config: EncodingConfig) -> None:
        self.fields = model_fields(schema, config)
        if not self.fields:
            raise ValueError(
                "features: none is configured and user_id, item_id and history are off; at least one field"
            )
        self._schema = schema
        self._config = config
        self._values = {f.ids_of: ValueKeys(f.ids_of, max_values=config.cached_values) for f in self.fields}
        half = self._NUM_BUCKETS_EACH_SIGN
        self._bucket_keys = {
            f.name: self._values[f.ids_of].of(range(-half, half)) for f in self.fields if f.kind == "numeric"
        }

    def encode_columns(self, columns: RowColumns) -> EncodedBatch:
        """Returns the keys of all rows.

        Raises:
            ValueError: columns of unequal length, a scenario or value that is not allowed; names the column.
        """
        num_requests, num_rows = len(columns.user_id), len(columns.item_id)
        if len(columns.scenario) != num_requests or len(columns.request_index_B) != num_rows:
            raise ValueError(
                f"scenario, request_index_B: {len(columns.scenario)}, {len(columns.request_index_B)} entries"
                f" for {num_requests} requests and {num_rows} rows"
            )
        singles: dict[Side, list[Int64Array]] = {"request": [], "item": []}
        lists: dict[Side, list[KeyLists]] = {"request": [], "item": []}
        keys: dict[str, Int64Array | KeyLists] = {}
        request_index_B = np.asarray(columns.request_index_B, np.int64)
        for one in self.fields:
            if one.cross is not None:
                request, item = (KeyLists.of(keys[name]) for name in one.cross)
                lists["item"].append(cross_keys(one.name, request, item, request_index_B))
                continue
            num_entries = num_requests if one.side == "request" else num_rows
            column = self._column(one, columns)
            if column is not None and len(column) != num_entries:
                raise ValueError(f"{one.name}: {len(column)} values for {num_entries} {one.side}s")
            if one.many:
                keys[one.name] = values = self._list_keys(one, column, num_entries)
                lists[one.side].append(values)
            else:
                keys[one.name] = key_E = self._keys(one, column, num_entries)
                singles[one.side].append(key_E)
        position_B = np.full(num_rows, -1, np.int64) if columns.position_B is None else columns.position_B
        scenario_R, unknown_scenarios = self._scenarios(columns.scenario)
        return EncodedBatch(
            scenario_R=scenario_R,
            unknown_scenarios=unknown_scenarios,
            request_index_B=request_index_B,
            position_B=np.asarray(position_B, np.int64),
            request_keys_FR=_stacked(singles["request"], num_requests),
            item_keys_FB=_stacked(singles["item"], num_rows),
            request_lists=tuple(lists["request"]),
            item_lists=tuple(lists["item"]),
            history_age_ms=self._ages(columns.sequence, num_requests) if self._config.history_length else None,
        )

    def _ages(self, sequence: SequenceColumns | None, num_requests: int) -> KeyLists:
        """Returns the ages of the actions; one that is not older than its request was not known to it."""
        if sequence is None:
            return KeyLists(np.zeros(num_requests, np.int64), np.arange(num_requests + 1))
        length_R = [len(history) for history in sequence.item_id]
        ages = sequence.age_ms
        if ages is None:
            ages = [[UNKNOWN_AGE_MS] * length for length in length_R]
        for name, lists in (("action", sequence.action), ("age_ms", ages)):
            if [len(history) for history in lists] != length_R:
                raise ValueError(f"sequence.{name}: lists of another length than sequence.item_id")
        filled = [history[: self._config.history_length] or (0,) for history in ages]
        offsets = np.concatenate([[0], np.cumsum([len(history) for history in filled])]).astype(np.int64)
        return KeyLists(np.fromiter(itertools.chain.from_iterable(filled), np.int64, int(offsets[-1])), offsets)

    def _scenarios(self, names: Sequence[str]) -> tuple[Int64Array, tuple[str, ...]]:
        """Returns the scenarios as `EncodedBatch` has them: indices and codes, and what the codes stand for."""
        admitted = {name: self._schema.admitted(name) for name in dict.fromkeys(names)}
        listed = {name: index for index, name in enumerate(self._schema.scenarios)}
        unknown = tuple(name for name in admitted.values() if name not in listed)
        code_of = listed | {name: -1 - n for n, name in enumerate(unknown)}
        return np.array([code_of[admitted[name]] for name in names], np.int64), unknown

    def _column(self, one: Field, columns: RowColumns) -> Column | None:
        if one.name == "scenario":
            return [self._schema.listed(name) for name in columns.scenario]
        if one.name in ("user_id", "item_id"):
            column: Column = getattr(columns, one.name)
            return column
        if one.name in ("history_item", "history_action"):
            if columns.sequence is None:
                return None
            histories = columns.sequence.item_id if one.name == "history_item" else columns.sequence.action
            return [history[: self._config.history_length] for history in histories]
        source, _, name = one.name.partition(".")
        by_name: Mapping[str, Column] = getattr(columns, source)
        return by_name.get(name)

    def _keys(self, one: Field, column: Column | None, num_entries: int) -> Int64Array:
        if column is None:
            return np.full(num_entries, MISSING_KEY, np.int64)
        if one.kind == "categorical":
            return self._values[one.ids_of].of(column)
        try:
            numbers = np.asarray(column, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{one.name}: {error}; finite numbers, null where missing") from error
        return self._number_keys(one, numbers)

    def _number_keys(self, one: Field, numbers: npt.NDArray[np.float64]) -> Int64Array:
        half = self._NUM_BUCKETS_EACH_SIGN
        missing = np.isnan(numbers)
        with np.errstate(over="ignore"):
            scaled = np.arcsinh(numbers / self._config.numeric_resolution) * self._config.numeric_steps
        bucket = np.floor(np.clip(np.where(missing, 0.0, scaled), -half, half - 1)).astype(np.int64)
        return np.where(missing, MISSING_KEY, self._bucket_keys[one.name][bucket + half])

    def _list_keys(self, one: Field, column: Column | None, num_entries: int) -> KeyLists:
        if column is None:
            return KeyLists(np.full(num_entries, MISSING_KEY, np.int64), np.arange(num_entries + 1))
        filled = [values if values is not None and len(values) else (None,) for values in column]
        offsets = np.zeros(num_entries + 1, np.int64)
        np.cumsum(np.fromiter(map(len, filled), np.int64, num_entries), out=offsets[1:])
        return KeyLists(self._values[one.ids_of].of(itertools.chain.from_iterable(filled)), offsets)


def _stacked(columns: list[Int64Array], num_entries: int) -> Int64Array:
    return np.stack(columns) if columns else np.empty((0, num_entries), np.int64)
