"""Messages of the topic `outcomes` -> explored requests for the blender. The writer's half is `stream.outcomes`.

Shape letters: N requests, C most candidates of one of them, T tasks, A actions, F candidates of all requests.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream.schema import CONTROL_LAW, SCHEMA_VERSION, SchemaConfig
from utility_blender.contexts import Contexts, Floats
from utility_blender.outcomes import ABSENT, NOT_SHOWN, Ints, Outcomes

_OPTIONAL = ("log_density", "tau", "truncate")
"""Columns that may be null: requests to compare with have none of them, and only the lognormal law has the last two."""


def decode_outcomes(value: bytes, schema: SchemaConfig) -> Outcomes:
    """Returns the explored requests of one message, and those to compare them with, in its order; perhaps none.

    The latter have no density (NaN), and of their candidates only the shown ones.

    Rows that no fit and no estimate may use are left out: those that a fallback or a lane on trial has served, for
    their slates hang on more than the draw. Contexts have a column per user and context feature of the schema, by its
    full name (`user.city`), with categories as strings.

    Raises:
        ValueError: the message is damaged, or not of this schema; says what is wrong.
    """
    table = _read(value)
    _check_schema(table, schema)
    try:
        is_usable = pc.and_(pc.equal(table["fallback"], ""), pc.equal(table["lane"], ""))
        return _outcomes(table.filter(is_usable), schema)
    except (KeyError, pa.ArrowException) as error:
        raise ValueError(f"outcomes: cannot be read: {_first_line(error)}") from error


def _read(value: bytes) -> pa.Table:
    try:
        table = pa.ipc.open_stream(pa.py_buffer(value)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"outcomes: cannot be read: {_first_line(error)}") from error
    return table.combine_chunks()


def _check_schema(table: pa.Table, schema: SchemaConfig) -> None:
    metadata = table.schema.metadata or {}
    for name, expected in (("schema_version", str(SCHEMA_VERSION)), ("schema_hash", schema.schema_hash())):
        found = metadata.get(name.encode(), b"").decode(errors="replace")
        if found != expected:
            raise ValueError(f"outcomes: {name}: {found!r} is not allowed; {expected!r}")


def _outcomes(table: pa.Table, schema: SchemaConfig) -> Outcomes:
    num, tasks = table.num_rows, tuple(schema.tasks)
    ids, row_F, start_N, size_N = _lists(table, "item_id")
    place_F = _places(ids, row_F, start_N, size_N)
    width = int(size_N.max(initial=0))
    position_F = _flat(table, "position", size_N).astype(np.int64)
    num_shown_N = _check_positions(position_F, row_F, start_N, size_N)
    position_NC = np.full((num, width), ABSENT, np.int64)
    position_NC[row_F, place_F] = position_F
    scores_NCT = np.zeros((num, width, len(tasks)), np.float32)
    for number, task in enumerate(tasks):
        score_F = _flat(table, f"score.{task}", size_N)
        _check_finite(f"score.{task}", score_F)
        scores_NCT[row_F, place_F, number] = score_F
    actions, value_NCA = _values(table, num_shown_N, start_N, place_F, width)
    names = [f"user.{name}" for name in schema.features.user] + [f"context.{name}" for name in schema.features.context]
    # A missing list travels as an empty one.
    log_density_N, is_drawn_N = _floats(table, "log_density"), np.array(table["law"].to_pylist(), object) != CONTROL_LAW
    if np.isfinite(log_density_N[is_drawn_N]).sum() != is_drawn_N.sum():
        raise ValueError("outcomes: log_density: an explored request has none")
    columns = {name: [None if value == [] else value for value in table[name].to_pylist()] for name in names}
    scale_NT = _by_task(table, "scale", tasks)
    if not (scale_NT > 0).all():
        raise ValueError("outcomes: scale: a number not above 0")
    return Outcomes(
        tasks=tasks,
        actions=actions,
        request_id=table["request_id"].to_pylist(),
        user_id=table["user_id"].to_pylist(),
        contexts=Contexts(scenario=[schema.listed(name) for name in table["scenario"].to_pylist()], columns=columns),
        ts_ms_N=_integers(table, "ts"),
        center_NT=_by_task(table, "center", tasks),
        weights_NT=_by_task(table, "weight", tasks),
        log_density_N=np.where(is_drawn_N, log_density_N, np.nan),
        tau_N=_floats(table, "tau"),
        truncate_N=_floats(table, "truncate"),
        scale_NT=scale_NT,
        snapshot_N=_integers(table, "snapshot"),
        blender_N=_integers(table, "blender"),
        scores_NCT=scores_NCT,
        position_NC=position_NC,
        value_NCA=value_NCA,
    )


def _lists(table: pa.Table, name: str) -> tuple[pa.Array, Ints, Ints, Ints]:
    """Returns the values of a list column, the row of each, where the list of each row starts, how long it is."""
    values, size_N = _list_parts(table, name)
    row_F = np.repeat(np.arange(len(size_N)), size_N)
    return values, row_F, np.cumsum(size_N) - size_N, size_N


def _list_parts(table: pa.Table, name: str) -> tuple[pa.Array, Ints]:
    column = table[name].combine_chunks()
    if not pa.types.is_list(column.type) or column.null_count:
        raise ValueError(f"outcomes: {name}: no lists")
    values = column.flatten()
    if values.null_count:
        raise ValueError(f"outcomes: {name}: a value is missing")
    size_N: Ints = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    return values, size_N


def _flat(table: pa.Table, name: str, size_N: Ints) -> Floats | Ints:
    values, length_N = _list_parts(table, name)
    if not np.array_equal(length_N, size_N):
        raise ValueError(f"outcomes: {name}: lists of the wrong length")
    flat_F: Floats | Ints = values.to_numpy(zero_copy_only=False)
    return flat_F


def _places(ids: pa.Array, row_F: Ints, start_N: Ints, size_N: Ints) -> Ints:
    """Returns where each candidate stands once those of its request are sorted by id, as serving sorts them."""
    names_F = np.array(ids.to_pylist(), dtype=np.str_)
    order_F = np.lexsort((names_F, row_F))
    sorted_F = names_F[order_F]
    if ((sorted_F[1:] == sorted_F[:-1]) & (row_F[1:] == row_F[:-1])).any():
        raise ValueError("outcomes: item_id: a candidate is there twice")
    place_F = np.empty(len(row_F), np.int64)
    place_F[order_F] = np.arange(len(row_F)) - np.repeat(start_N, size_N)
    return place_F


def _check_positions(position_F: Ints, row_F: Ints, start_N: Ints, size_N: Ints) -> Ints:
    """Returns how many candidates of each request were shown: they stand first, in the order shown."""
    num_shown_N: Ints = np.bincount(row_F[position_F != NOT_SHOWN], minlength=len(size_N)).astype(np.int64)
    index_F = np.arange(len(row_F)) - np.repeat(start_N, size_N)
    if not np.array_equal(position_F, np.where(index_F < np.repeat(num_shown_N, size_N), index_F, NOT_SHOWN)):
        raise ValueError("outcomes: position: not 0, 1, ... of the shown candidates and then -1")
    return num_shown_N


def _values(
    table: pa.Table, num_shown_N: Ints, start_N: Ints, place_F: Ints, width: int
) -> tuple[tuple[str, ...], Floats]:
    """Returns the actions met, and the sum of values of each action on each candidate, value_NCA."""
    names, row_E, _, size_N = _lists(table, "action.name")
    position_E, value_E = (_flat(table, name, size_N) for name in ("action.position", "action.value"))
    if ((position_E < 0) | (position_E >= num_shown_N[row_E])).any():
        raise ValueError("outcomes: action.position: no item was shown there")
    _check_finite("action.value", value_E)
    met = names.to_pylist()
    actions = tuple(sorted(set(met)))
    number = {action: index for index, action in enumerate(actions)}
    value_NCA = np.zeros((len(size_N), width, len(actions)))
    place_E = place_F[start_N[row_E] + position_E.astype(np.int64)]
    value_NCA[row_E, place_E, [number[action] for action in met]] = value_E
    return actions, value_NCA


def _by_task(table: pa.Table, name: str, tasks: Sequence[str]) -> Floats:
    return np.stack([_floats(table, f"{name}.{task}") for task in tasks], axis=1)


def _floats(table: pa.Table, name: str) -> Floats:
    column = table[name].combine_chunks()
    if column.null_count and name not in _OPTIONAL:
        raise ValueError(f"outcomes: {name}: a value is missing")
    values_N: Floats = column.to_numpy(zero_copy_only=False).astype(np.float64)
    _check_finite(name, values_N[column.is_valid().to_numpy(zero_copy_only=False)])
    return values_N


def _integers(table: pa.Table, name: str) -> Ints:
    column = table[name].combine_chunks()
    if column.null_count:
        raise ValueError(f"outcomes: {name}: a value is missing")
    values_N: Ints = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return values_N


def _check_finite(name: str, values: Floats | Ints) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"outcomes: {name}: a value is not finite")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
