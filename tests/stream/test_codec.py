"""The codec: what is accepted, and the one line that names the field where it is not."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.codec import EventDecoder, decode_sequence, encode, encode_sequence
from stream.exceptions import DecodeError
from stream.schema import FeatureConfig, FeaturesConfig, Feedback, SchemaConfig, Sequence, TaskConfig

SCHEMA = SchemaConfig(
    scenarios=("home", "search"),
    tasks={"click": TaskConfig(action="click", window_ms=1_000)},
    features=FeaturesConfig(
        user={"age": FeatureConfig(kind="categorical"), "likes": FeatureConfig(kind="categorical", many=True)},
        item={
            "price": FeatureConfig(kind="numeric"),
            "brand": FeatureConfig(kind="categorical"),
            "tags": FeatureConfig(kind="categorical", many=True),
        },
        context={"hour": FeatureConfig(kind="numeric")},
    ),
)
IMPRESSION: dict[str, Any] = {
    "v": 1,
    "request_id": "r",
    "user_id": "u",
    "scenario": "home",
    "ts": 1_000,
    "items": {
        "id": ["a", "b"],
        "features": {"price": [1, None], "brand": ["x", 3], "tags": [["new", 1], []]},
        "scores": {"click": [0.25, 0.5]},
        "utility": [1.0, 0.5],
        "propensity": [1.0, 1.0],
    },
    "user": {"age": 3, "likes": ["x"]},
    "context": {"hour": 7},
    "served": {"snapshot": 12, "blender": 7, "weights": {"click": 1.0}, "explore": True, "log_density": -0.5},
    "sequence": {"item_id": ["i"], "action": ["click"], "ts": [900]},
    "candidates": {"id": ["c"], "scores": {"click": [0.125]}},
}
FEEDBACK: dict[str, Any] = {
    "request_id": "r",
    "user_id": "u",
    "item_id": "a",
    "action": "click",
    "ts": 1_500,
    "event_id": "e",
}


def changed(event: dict[str, Any], path: str, value: Any) -> bytes:
    """Returns the event as JSON with one field set, or removed if the value is `...`."""
    event = copy.deepcopy(event)
    *above, last = path.split(".")
    target = event
    for name in above:
        target = target[name]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return msgspec.json.encode(event)


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("request_id", ..., "request_id: required, but missing"),
        ("request_id", "", "request_id: expected str of length >= 1"),
        ("request_id", True, "request_id: expected str, got bool"),
        ("user_id", None, "user_id: expected str, got null"),
        ("scenario", "deals", "scenario: 'deals' is not one of home, search"),
        ("ts", -1, "ts: expected int >= 0"),
        ("ts", 2**53, "ts: expected int <= 9007199254740991"),
        ("ts", 1.5, "ts: expected int, got float"),
        ("ts", "1000", "ts: expected int, got str"),
        ("v", 2, "v: expected int <= 1"),
        ("items", ..., "items: required, but missing"),
        ("items.id", ..., "items.id: required, but missing"),
        ("items.id", [], "items.id: expected array of length >= 1"),
        ("items.id", ["a", ""], "items.id[1]: expected str of length >= 1"),
        ("items.id", ["a", "a"], "items.id: 'a' stands there twice; each item once"),
        ("items.features.price", [1.0], "items.features.price: 1 values for 2 items; one each"),
        ("items.features.price", [1.0, "2"], "items.features.price[1]: expected float | null, got str"),
        ("items.features.brand", ["x", True], "items.features.brand[1]: expected int | str | null, got bool"),
        ("items.features.brand", ["x", 0.5], "items.features.brand[1]: expected int | str | null, got float"),
        ("items.features.tags", ["x", "y"], "items.features.tags[0]: expected array | null, got str"),
        ("items.scores.click", [0.1], "items.scores.click: 1 values for 2 items; one each"),
        ("items.scores.click", [0.1, 1e300], "items.scores[...][1]: expected float <= 3.4e+38"),
        ("items.utility", [], "items.utility: 0 values for 2 items; one each"),
        ("items.propensity", [1.0] * 3, "items.propensity: 3 values for 2 items; one each"),
        ("user.age", 1.5, "user.age: expected int | str | null, got float"),
        ("context.hour", "7", "context.hour: expected float | null, got str"),
        ("served.snapshot", -1, "served.snapshot: expected int >= 0"),
        ("sequence.ts", [], "sequence.ts: 0 values for 1 in sequence.item_id; one each"),
        ("candidates.scores.click", [], "candidates.scores.click: 0 values for 1 in candidates.id; one each"),
    ],
)
def test_a_malformed_impression_is_refused_by_field(path: str, value: Any, error: str) -> None:
    with pytest.raises(DecodeError) as raised:
        EventDecoder(SCHEMA).impression(changed(IMPRESSION, path, value))
    assert str(raised.value) == error


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "not JSON: Input data was truncated"),
        (b"[]", "message: expected object, got array"),
        (b"\xff", "not JSON: "),
        (b'{"request_id": "\xff"}', "not JSON: "),
        (b'{"request_id": "\\ud800"}', "not JSON: "),
        (b"[" * 100_000, "not JSON: "),
        (b'{"request_id":"r","user_id":"u","item_id":"a","action":"c","ts":1,"value":NaN}', "not JSON: "),
        (
            b'{"request_id":"r","user_id":"u","item_id":"a","action":"c","ts":1,"value":1e999}',
            "value: number out of range",
        ),
        (b'{"request_id":"r","user_id":"u","item_id":"a","action":"","ts":1}', "action: expected str of length >= 1"),
        (b'{"request_id":"r","user_id":"u","item_id":"a","action":"c"}', "ts: required, but missing"),
    ],
)
def test_malformed_feedback_is_refused_by_field(data: bytes, error: str) -> None:
    with pytest.raises(DecodeError) as raised:
        EventDecoder(SCHEMA).feedback(data)
    assert str(raised.value).startswith(error)
    assert "\n" not in str(raised.value)


def test_what_is_encoded_is_decoded() -> None:
    decoder = EventDecoder(SCHEMA)
    impression = decoder.impression(msgspec.json.encode(IMPRESSION))
    assert impression.items.features == {"price": [1.0, None], "brand": ["x", 3], "tags": [["new", 1], []]}
    assert decoder.impression(encode(impression)) == impression
    feedback = decoder.feedback(msgspec.json.encode(FEEDBACK))
    assert decoder.feedback(encode(feedback)) == feedback
    assert decoder.unknown_fields == {}


def test_only_the_required_fields_are_required() -> None:
    names = ("request_id", "user_id", "scenario", "ts")
    bare = {name: IMPRESSION[name] for name in names} | {"items": {"id": ["a"]}}
    impression = EventDecoder(SCHEMA).impression(msgspec.json.encode(bare))
    assert (impression.user, impression.context, impression.items.features) == ({}, {}, {})
    assert (impression.served, impression.sequence, impression.candidates) == (None, None, None)


def test_null_features_are_missing_features() -> None:
    impression = EventDecoder(SCHEMA).impression(changed(IMPRESSION, "user", {"age": None, "likes": None}))
    assert impression.user == {}


@pytest.mark.parametrize("path", ["request_id", "user_id"])
def test_integer_ids_become_strings(path: str) -> None:
    assert getattr(EventDecoder(SCHEMA).impression(changed(IMPRESSION, path, 42)), path) == "42"


def test_integer_item_ids_become_strings_everywhere() -> None:
    decoder = EventDecoder(SCHEMA)
    assert decoder.impression(changed(IMPRESSION, "items.id", [1, "b"])).items.id == ["1", "b"]
    sequence = decoder.impression(changed(IMPRESSION, "sequence.item_id", [7])).sequence
    assert sequence is not None
    assert sequence.item_id == ["7"]
    assert decoder.feedback(changed(FEEDBACK, "item_id", 9)).item_id == "9"


def test_unknown_fields_are_ignored_and_counted_by_path() -> None:
    decoder = EventDecoder(SCHEMA)
    for path in ("colour", "user.shoe_size", "user.shoe_size", "items.features.brnad", "served.host"):
        impression = decoder.impression(changed(IMPRESSION, path, ["x", {"nested": 1}]))
        assert impression == decoder.impression(msgspec.json.encode(IMPRESSION))
    decoder.feedback(changed(FEEDBACK, "page", 3))
    assert decoder.unknown_fields == {
        "colour": 1,
        "user.shoe_size": 2,
        "items.features.brnad": 1,
        "served.host": 1,
        "page": 1,
    }


def test_an_unlisted_scenario_becomes_the_first_one_if_the_schema_says_so() -> None:
    lenient = SchemaConfig(scenarios=("home", "search"), tasks=SCHEMA.tasks, unknown_scenario="default")
    data = msgspec.json.encode(
        {name: IMPRESSION[name] for name in ("request_id", "user_id", "ts")}
        | {"scenario": "deals", "items": {"id": ["a"]}}
    )
    assert EventDecoder(lenient).impression(data).scenario == "home"


def scenario_in(schema: SchemaConfig, scenario: str) -> str:
    return EventDecoder(schema).impression(changed(IMPRESSION, "scenario", scenario)).scenario


def test_the_default_scenario_may_be_another_than_the_first() -> None:
    lenient = dataclasses.replace(SCHEMA, unknown_scenario="default", default_scenario="search")
    assert scenario_in(lenient, "deals") == "search" and scenario_in(lenient, "home") == "home"
    with pytest.raises(ValueError, match="default_scenario: 'moon' is not allowed; one of home, search"):
        dataclasses.replace(SCHEMA, default_scenario="moon")


@pytest.mark.parametrize("name", ["d", "deals", "Deals_2026", "shop.de:top-10", "x" * 64])
def test_a_growing_schema_lets_names_through(name: str) -> None:
    growing = dataclasses.replace(SCHEMA, unknown_scenario="add")
    assert scenario_in(growing, name) == name
    assert growing.schema_hash() == SCHEMA.schema_hash()


@pytest.mark.parametrize("name", ["x" * 65, "a b", "-x", "déals", "a/b", "a\n", "all", "default"])
def test_a_growing_schema_refuses_what_is_no_name(name: str) -> None:
    growing = dataclasses.replace(SCHEMA, unknown_scenario="add")
    with pytest.raises(DecodeError, match=r"^scenario: .* is not allowed; 1 to 64 letters") as refused:
        scenario_in(growing, name)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250


def test_an_absent_event_id_is_a_hash_of_the_other_fields() -> None:
    decoder = EventDecoder(SCHEMA)
    one, same, other = (
        decoder.feedback(changed(FEEDBACK, "event_id", "")),
        decoder.feedback(changed(FEEDBACK, "event_id", ...)),
        decoder.feedback(msgspec.json.encode({**FEEDBACK, "event_id": "", "ts": 1_501})),
    )
    assert one.event_id == same.event_id != other.event_id
    assert len(one.event_id) == 24


def test_an_action_that_no_task_knows_is_legal() -> None:
    assert EventDecoder(SCHEMA).feedback(changed(FEEDBACK, "action", "share")).action == "share"


@given(st.binary(max_size=60))
def test_bytes_from_outside_are_refused_in_one_line_or_decoded(data: bytes) -> None:
    decoder = EventDecoder(SCHEMA)
    for decode in (decoder.impression, decoder.feedback, decode_sequence):
        assert_refused_or_decoded(decode, data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    st.sampled_from(
        [
            "request_id",
            "ts",
            "items",
            "items.id",
            "items.features",
            "user",
            "user.age",
            "sequence",
            "served",
            "items.features.tags",
            "items.scores",
            "candidates",
            "context",
        ]
    ),
)
def test_any_json_in_any_field_is_refused_in_one_line_or_decoded(value: Any, path: str) -> None:
    assert_refused_or_decoded(EventDecoder(SCHEMA).impression, changed(IMPRESSION, path, value))


def assert_refused_or_decoded(decode: Callable[[bytes], Any], data: bytes) -> None:
    try:
        event = decode(data)
    except DecodeError as error:
        assert str(error)
        assert "\n" not in str(error).replace("\\n", "")
        return
    assert isinstance(encode(event) if not isinstance(event, Sequence) else encode_sequence(event), bytes)


def test_sequences_come_back_as_they_were_written() -> None:
    sequence = Sequence(["b", "a"], ["click", "order"], [2_000, 1_000])
    assert decode_sequence(encode_sequence(sequence)) == sequence
    assert decode_sequence(encode_sequence(Sequence())) == Sequence()


def test_a_torn_sequence_is_refused() -> None:
    with pytest.raises(DecodeError, match="action: 0 values for 1 in item_id"):
        decode_sequence(b'{"item_id":["a"],"ts":[1]}')


def test_feedback_is_a_plain_feedback() -> None:
    assert type(EventDecoder(SCHEMA).feedback(msgspec.json.encode(FEEDBACK))) is Feedback
