"""Bytes to events and back: JSON on the wire, every field checked, one line per error.

The usual message goes through one C call that decodes and checks types in one pass. Only a message it refuses is looked
at again, slowly: to turn integer ids into strings, to count and drop fields that nobody knows, or to say what is wrong.
"""

import hashlib
import re
from collections import Counter
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec.structs import asdict, astuple

from stream.exceptions import DecodeError
from stream.schema import (
    SCHEMA_VERSION,
    Candidates,
    FeatureConfig,
    Feedback,
    Impression,
    Items,
    SchemaConfig,
    Sequence,
    Served,
)

MAX_TIME_MS = 2**53 - 1
"""Largest event time that every JSON reader can represent exactly."""

_Id = Annotated[str, Meta(min_length=1)]
_TimeMs = Annotated[int, Meta(ge=0, le=MAX_TIME_MS)]
_Version = Annotated[int, Meta(ge=1, le=SCHEMA_VERSION)]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Float32 = Annotated[float, Meta(ge=-3.4e38, le=3.4e38)]
_Category = str | int | None

_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises on bytes from outside: malformed, not UTF-8, nested too deeply."""


class _WireServed(msgspec.Struct, forbid_unknown_fields=True):
    snapshot: _Count = 0
    blender: _Count = 0
    weights: dict[str, float] = {}
    explore: bool = False
    log_density: float | None = None
    model_age_ms: int | None = None
    center: dict[str, float] = {}
    law: str = ""
    tau: float | None = None
    truncate: float | None = None
    scale: dict[str, float] = {}
    fallback: str = ""
    lane: str = ""


class _WireSequence(msgspec.Struct, forbid_unknown_fields=True):
    item_id: list[_Id] = []
    action: list[_Id] = []
    ts: list[_TimeMs] = []


class _StoredSequence(_WireSequence, forbid_unknown_fields=False):
    """As the agents store it: with columns of their own (`stream.sequences`), which nobody else needs."""


class _WireCandidates(msgspec.Struct, forbid_unknown_fields=True):
    id: list[_Id] = []
    scores: dict[str, list[_Float32]] = {}


class _WireFeedback(msgspec.Struct, forbid_unknown_fields=True):
    request_id: _Id
    user_id: _Id
    item_id: _Id
    action: _Id
    ts: _TimeMs
    value: float = 1.0
    event_id: str = ""
    v: _Version = SCHEMA_VERSION


class _WireForm:
    """A struct type with its decoder, and what the slow path must know: nested structs and where ids stand."""

    def __init__(self, wire: Any, ids: tuple[str, ...], nested: "dict[str, _WireForm] | None" = None) -> None:
        self.type = wire
        self.decoder = msgspec.json.Decoder(wire)
        self.names = set(wire.__struct_fields__)
        self.ids = ids
        self.nested = nested or {}


class EventDecoder:
    """Decodes the messages of `impressions` and `feedback` against one schema."""

    def __init__(self, schema: SchemaConfig) -> None:
        self._schema = schema
        self._scenarios = frozenset(schema.scenarios)
        features = schema.features
        item_features = _feature_form("features", features.item, is_column=True)
        items = _define(
            "items",
            {
                "id": Annotated[list[_Id], Meta(min_length=1)],
                "features": (item_features.type, msgspec.field(default_factory=item_features.type)),
                "scores": (dict[str, list[_Float32]], msgspec.field(default_factory=dict)),
                "utility": (list[_Float32] | None, None),
                "propensity": (list[_Float32] | None, None),
            },
            ids=("id",),
            nested={"features": item_features},
        )
        user = _feature_form("user", features.user)
        context = _feature_form("context", features.context)
        self._impression = _define(
            "impression",
            {
                "request_id": _Id,
                "user_id": _Id,
                "scenario": _Id,
                "ts": _TimeMs,
                "items": items.type,
                "context": (context.type, msgspec.field(default_factory=context.type)),
                "user": (user.type, msgspec.field(default_factory=user.type)),
                "served": (_WireServed | None, None),
                "sequence": (_WireSequence | None, None),
                "candidates": (_WireCandidates | None, None),
                "v": (_Version, SCHEMA_VERSION),
            },
            ids=("request_id", "user_id"),
            nested={
                "items": items,
                "context": context,
                "user": user,
                "served": _WireForm(_WireServed, ids=()),
                "sequence": _WireForm(_WireSequence, ids=("item_id",)),
                "candidates": _WireForm(_WireCandidates, ids=("id",)),
            },
        )
        self._feedback = _WireForm(_WireFeedback, ids=("request_id", "user_id", "item_id", "event_id"))
        self.unknown_fields: Counter[str] = Counter()
        """How often each field that the schema does not know was met and ignored, by its path (`user.shoe_size`)."""

    def impression(self, data: bytes) -> Impression:
        """Returns the slate in `data`; under `unknown_scenario: default` an unlisted scenario becomes the default one.

        Raises:
            DecodeError: names the field, and what is allowed there.
        """
        wire = self._decode(data, self._impression)
        items = wire.items
        num_items = len(items.id)
        if len(set(items.id)) != num_items:
            twice = next(item for item, count in Counter(items.id).items() if count > 1)
            raise DecodeError(f"items.id: {twice!r} stands there twice; each item once")
        columns = _present(items.features)
        for name, column in columns.items():
            if len(column) != num_items:
                raise _unequal(f"items.features.{name}", len(column), num_items)
        for name, scores in items.scores.items():
            if len(scores) != num_items:
                raise _unequal(f"items.scores.{name}", len(scores), num_items)
        if items.utility is not None and len(items.utility) != num_items:
            raise _unequal("items.utility", len(items.utility), num_items)
        if items.propensity is not None and len(items.propensity) != num_items:
            raise _unequal("items.propensity", len(items.propensity), num_items)
        scenario = wire.scenario
        if scenario not in self._scenarios:
            try:
                scenario = self._schema.admitted(scenario)
            except ValueError as error:
                raise DecodeError(str(error)) from error
        return Impression(
            wire.request_id,
            wire.user_id,
            scenario,
            wire.ts,
            Items(items.id, columns, items.scores, items.utility, items.propensity),
            _present(wire.context),
            _present(wire.user),
            None if wire.served is None else Served(*astuple(wire.served)),
            None if wire.sequence is None else _sequence(wire.sequence, "sequence."),
            None if wire.candidates is None else _candidates(wire.candidates),
            wire.v,
        )

    def feedback(self, data: bytes) -> Feedback:
        """Returns the action in `data`; an absent `event_id` is filled in.

        Raises:
            DecodeError: names the field, and what is allowed there.
        """
        feedback = Feedback(*astuple(self._decode(data, self._feedback)))
        if not feedback.event_id:
            feedback.event_id = feedback_event_id(feedback)
        return feedback

    def _decode(self, data: bytes, form: _WireForm) -> Any:
        try:
            return form.decoder.decode(data)
        except _UNDECODABLE as error:
            refusal = error
        try:
            raw = msgspec.json.decode(data)
        except _UNDECODABLE as error:
            # Not JSON, or a number beyond all floats: of the latter only the typed decoder says where.
            raise _decode_error(refusal if "out of range" in str(refusal) else error) from error
        self._repair(raw, form, "")
        try:
            return msgspec.convert(raw, form.type)
        except msgspec.ValidationError as error:
            raise _decode_error(error) from error

    def _repair(self, raw: Any, form: _WireForm, path: str) -> None:
        """Makes integer ids strings, and counts and drops unknown fields. What else is wrong `convert` will find."""
        if not isinstance(raw, dict):
            return
        for name in raw.keys() - form.names:
            self.unknown_fields[path + name] += 1
            del raw[name]
        for name in raw.keys() & set(form.ids):
            raw[name] = [_as_id(i) for i in raw[name]] if isinstance(raw[name], list) else _as_id(raw[name])
        for name, nested in form.nested.items():
            self._repair(raw.get(name), nested, f"{path}{name}.")


def encode(event: Impression | Feedback) -> bytes:
    """Returns the event as it goes over the wire."""
    return msgspec.json.encode(event)


def feedback_event_id(feedback: Feedback) -> str:
    """Returns what stands for an absent `event_id`: a hash of the other fields."""
    fields = (feedback.request_id, feedback.user_id, feedback.item_id, feedback.action, feedback.ts, feedback.value)
    return hashlib.blake2b(msgspec.json.encode(fields), digest_size=12).hexdigest()


_SEQUENCE_DECODER = msgspec.json.Decoder(_StoredSequence)


def encode_sequence(sequence: Sequence) -> bytes:
    """Returns a user's last actions as they stand in Redis."""
    return msgspec.json.encode(sequence)


def decode_sequence(data: bytes) -> Sequence:
    """Returns the sequence written by `encode_sequence`.

    Raises:
        DecodeError: names the field, and what is allowed there.
    """
    try:
        return _sequence(_SEQUENCE_DECODER.decode(data), "")
    except _UNDECODABLE as error:
        raise _decode_error(error) from error


def _define(name: str, fields: dict[str, Any], ids: tuple[str, ...], nested: dict[str, _WireForm]) -> _WireForm:
    """Returns the form of a struct that depends on the schema. A field is its type, or (type, default)."""
    specs = [(key, *spec) if isinstance(spec, tuple) else (key, spec) for key, spec in fields.items()]
    return _WireForm(msgspec.defstruct(name, specs, forbid_unknown_fields=True, gc=False), ids, nested)


def _feature_form(name: str, features: dict[str, FeatureConfig], *, is_column: bool = False) -> _WireForm:
    """Returns the form of one side's features: each may be absent; of items, each is a column."""
    specs: dict[str, Any] = {}
    for feature, config in features.items():
        value: Any = float | None if config.kind == "numeric" else _Category
        if config.many:
            value = list[str | int] | None
        specs[feature] = ((list[value] if is_column else value) | None, None)
    return _define(name, specs, ids=(), nested={})


def _present(features: msgspec.Struct) -> dict[str, Any]:
    return {name: value for name, value in asdict(features).items() if value is not None}


def _sequence(wire: _WireSequence, path: str) -> Sequence:
    for name in ("action", "ts"):
        if len(getattr(wire, name)) != len(wire.item_id):
            raise DecodeError(
                f"{path}{name}: {len(getattr(wire, name))} values for {len(wire.item_id)} in {path}item_id; one each"
            )
    return Sequence(wire.item_id, wire.action, wire.ts)


def _candidates(wire: _WireCandidates) -> Candidates:
    for name, scores in wire.scores.items():
        if len(scores) != len(wire.id):
            raise DecodeError(
                f"candidates.scores.{name}: {len(scores)} values for {len(wire.id)} in candidates.id; one each"
            )
    return Candidates(wire.id, wire.scores)


def _unequal(path: str, num_values: int, num_items: int) -> DecodeError:
    return DecodeError(f"{path}: {num_values} values for {num_items} items; one each")


def _as_id(value: Any) -> Any:
    return str(value) if type(value) is int else value


_PLACE = re.compile(r" - at `\$\.?(.*?)`$")
_MISSING = re.compile(r"missing required field `(.*?)`")


def _decode_error(error: Exception) -> DecodeError:
    """Returns what msgspec found as `field: what is wrong`.

    >>> str(_decode_error(msgspec.ValidationError("Expected `int`, got `str` - at `$.sequence.ts[0]`")))
    'sequence.ts[0]: expected int, got str'
    >>> str(_decode_error(msgspec.ValidationError("Object missing required field `id` - at `$.items`")))
    'items.id: required, but missing'
    """
    if not isinstance(error, msgspec.ValidationError):
        return DecodeError(f"not JSON: {error}")
    text = str(error)
    place = _PLACE.search(text)
    path = place[1] if place and place[1] != "[...]" else ""
    missing = _MISSING.search(text)
    if missing:
        return DecodeError(f"{path}.{missing[1]}: required, but missing".lstrip("."))
    what = _PLACE.sub("", text).replace("`", "")
    return DecodeError(f"{path or 'message'}: {what[0].lower()}{what[1:]}")
