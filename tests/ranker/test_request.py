"""Requests at the door: what is taken, what is put up with, and what is refused with which line."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.exceptions import RequestError
from ranker.request import MAX_UNKNOWN_NAMES, RequestDecoder, RequestLimits
from ranker.stats import RankerStats
from stream.schema import SchemaConfig
from tests.ranker.given import SCHEMA, body

LIMITS = RequestLimits(max_candidates=20, max_feedback=3, max_id_chars=8)
ACTION = {"request_id": "r", "user_id": "u", "item_id": "i", "action": "click"}


def decoder(schema: SchemaConfig = SCHEMA) -> tuple[RequestDecoder, RankerStats]:
    stats = RankerStats()
    return RequestDecoder(schema, LIMITS, stats), stats


def changed(path: str, value: Any) -> bytes:
    """Returns a good request with one place changed; `...` removes it."""
    request = body()
    *way, last = path.split(".")
    place = request
    for name in way:
        place[name] = dict(place[name])
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(request).encode()


def test_a_good_request_becomes_columns() -> None:
    checked = decoder()[0].rank(json.dumps(body(user_id=42)).encode())
    assert (checked.user_id, checked.scenario, checked.size) == ("42", "home", 5)
    assert checked.item_features["price"][:4] == [0.0, 1.5, 3.0, None]
    assert checked.item_features["tags"][1] == ["red", 7]
    assert checked.user_features == {"city": "lyon", "spend": 12.5}
    assert checked.context_features == {"device": "ios"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("user_id", ..., "user_id: required, but missing"),
        ("user_id", "", "user_id: 0 characters are not allowed; 1 to 8"),
        ("user_id", "x" * 9, "user_id: 9 characters are not allowed; 1 to 8"),
        ("user_id", 1.5, "user_id: expected int | str, got float"),
        ("user_id", True, "user_id: expected int | str, got bool"),
        ("user_id", 2**63, "user_id: expected int <= 9223372036854775807"),
        ("scenario", "shop", "scenario: 'shop' is not one of home, search"),
        ("scenario", 3, "scenario: expected str, got int"),
        ("size", 0, "size: 0 is not allowed; at least 1"),
        ("size", "5", "size: expected int, got str"),
        ("candidates", ..., "candidates: required, but missing"),
        ("candidates.id", ..., "candidates.id: required, but missing"),
        ("candidates.id", [], "candidates.id: 0 candidates are not allowed; 1 to 20"),
        ("candidates.id", [f"x{n}" for n in range(21)], "candidates.id: 21 candidates are not allowed; 1 to 20"),
        ("candidates.id", ["a", 3, "3"], "candidates.id: '3' is there twice; each item once"),
        ("candidates.id", ["a", ""], "candidates.id: 0 characters are not allowed; 1 to 8"),
        ("candidates.id", ["a", None], "candidates.id[1]: expected int | str, got null"),
        ("candidates.features.price", [1.0], "candidates.features.price: 1 values for 12 candidates; one each"),
        ("candidates.features.price", ["1"] * 12, "candidates.features.price[0]: expected float | null, got str"),
        (
            "candidates.features.category",
            [True] * 12,
            "candidates.features.category[0]: expected int | str | null, got",
        ),
        ("candidates.features.category", [1.5] * 12, "candidates.features.category[0]: expected int | str | null, got"),
        ("candidates.features.tags", ["red"] * 12, "candidates.features.tags[0]: expected array | null, got str"),
        ("candidates.features.tags", [[None]] * 12, "candidates.features.tags[0][0]: expected int | str, got null"),
        ("user.spend", "much", "user.spend: expected float | null, got str"),
        ("context.device", ["ios"], "context.device: expected int | str | null, got array"),
        ("user", [], "user: expected object, got array"),
    ],
)
def test_a_bad_request_is_refused_with_one_line_that_names_the_field(path: str, value: Any, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as refusal:
        decoder()[0].rank(changed(path, value))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "body: not JSON"),
        (b"{", "body: not JSON"),
        (b"[]", "body: expected object, got array"),
        (b"\xff", "body: not JSON"),
        (b'{"user_id": "\xff"}', "body: not JSON"),
        (b'{"user": {"city": ' + b"[" * 100_000, "body: nested too deeply"),
        (b'{"size": NaN}', "body: not JSON"),
    ],
)
def test_bytes_that_are_no_request_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        decoder()[0].rank(data)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_not_finite_do_not_get_in(number: str) -> None:
    data = json.dumps(body()).replace("12.5", number).encode()
    with pytest.raises(RequestError, match="user.spend|body"):
        decoder()[0].rank(data)


def test_a_size_beyond_the_candidates_shows_them_all() -> None:
    assert decoder()[0].rank(json.dumps(body(size=10**9)).encode()).size == 12


def test_absent_and_null_features_are_missing() -> None:
    request = body(user={"city": None}, context={})
    request["candidates"] = {"id": ["a", "b"], "features": {"price": None, "category": [None, "x"]}}
    checked = decoder()[0].rank(json.dumps(request).encode())
    assert checked.item_features == {"category": [None, "x"]}
    assert checked.user_features == {"city": None}


def test_unknown_features_are_ignored_and_counted_by_name() -> None:
    doorkeeper, stats = decoder()
    request = body(user={"shoe": 42}, context={"shoe": 1, "moon": "full"})
    request["candidates"]["features"]["colour"] = ["anything", {}]
    assert "colour" not in doorkeeper.rank(json.dumps(request).encode()).item_features
    assert stats.unknown_features == {"shoe": 2, "moon": 1, "colour": 1}


def test_unknown_names_without_end_do_not_fill_the_memory() -> None:
    doorkeeper, stats = decoder()
    doorkeeper.rank(json.dumps(body(user={f"n{n}": 1 for n in range(500)})).encode())
    assert len(stats.unknown_features) == MAX_UNKNOWN_NAMES + 1
    assert stats.unknown_features["other"] == 500 - MAX_UNKNOWN_NAMES


def test_an_unknown_scenario_is_the_first_one_where_the_config_says_so_and_is_counted() -> None:
    tolerant = SchemaConfig(
        scenarios=SCHEMA.scenarios, tasks=SCHEMA.tasks, features=SCHEMA.features, unknown_scenario="default"
    )
    doorkeeper, stats = decoder(tolerant)
    assert doorkeeper.rank(json.dumps(body(scenario="shop")).encode()).scenario == "home"
    assert doorkeeper.rank(json.dumps(body(scenario="search")).encode()).scenario == "search"
    assert stats.unknown_scenario == 1


def test_feedback_may_be_one_action_or_a_list_and_gets_the_time_it_lacks() -> None:
    doorkeeper, _ = decoder()
    (one,) = doorkeeper.feedback(json.dumps(ACTION).encode(), now_ms=77)
    assert (one.ts, one.value, one.event_id) == (77, 1.0, "")
    two = doorkeeper.feedback(
        json.dumps([ACTION | {"ts": 5, "event_id": 9}, ACTION | {"value": 30}]).encode(), now_ms=77
    )
    assert [(f.ts, f.event_id, f.value) for f in two] == [(5, "9", 1.0), (77, "", 30.0)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ACTION | {"action": ""}, "action: must not be empty"),
        (ACTION | {"ts": -1}, "ts: expected int >= 0"),
        (ACTION | {"ts": 2**60}, "ts: expected int <= 9007199254740991"),
        (ACTION | {"ts": 1.5}, "ts: expected int | null, got float"),
        (ACTION | {"value": "x"}, "value: expected float, got str"),
        ([ACTION, ACTION | {"item_id": ""}], "[1].item_id: 0 characters are not allowed; 1 to 8"),
        ([ACTION, {"request_id": "r"}], "[1].user_id: required, but missing"),
        ([], "body: 0 actions are not allowed; 1 to 3"),
        ([ACTION] * 4, "body: 4 actions are not allowed; 1 to 3"),
        ("click", "body: expected object | array, got str"),
    ],
)
def test_bad_feedback_is_refused_with_the_place_of_the_fault(data: Any, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        decoder()[0].feedback(json.dumps(data).encode(), now_ms=0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
PLACES = st.sampled_from(
    ["user_id", "scenario", "size", "user", "context", "candidates", "candidates.id", "candidates.features"]
    + ["candidates.features.price", "candidates.features.tags", "user.city", "context.device"]
)


@settings(max_examples=200, deadline=None)
@given(place=PLACES, value=JSON)
def test_whatever_stands_in_a_field_it_is_taken_or_refused_in_one_line(place: str, value: Any) -> None:
    doorkeeper, _ = decoder()
    try:
        checked = doorkeeper.rank(changed(place, value))
    except RequestError as refusal:
        assert str(refusal).isprintable()
    else:
        assert all(len(column) == len(checked.item_ids) for column in checked.item_features.values())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_bytes_come_they_are_refused_in_one_line(data: bytes) -> None:
    doorkeeper, _ = decoder()
    with pytest.raises(RequestError):
        doorkeeper.rank(data)
    with pytest.raises(RequestError):
        doorkeeper.feedback(data, now_ms=0)


@pytest.mark.parametrize("name", ["max_candidates", "max_feedback", "max_body_bytes", "max_id_chars"])
def test_limits_that_allow_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: 0 is not allowed; at least"):
        RequestLimits(**{name: 0})
