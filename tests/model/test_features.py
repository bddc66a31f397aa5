"""Encoding: keys, missing values, buckets, histories, and the shapes a batch can take."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from model.assembly import InputLayout
from model.features import EncodedBatch, EncodingConfig, FeatureEncoder, RowColumns, SequenceColumns
from model.hashing import MISSING_KEY, REMOVED_KEY, ValueKeys, value_key
from model.sequence_inputs import UNKNOWN_AGE_MS
from stream.schema import FeatureConfig, FeaturesConfig, SchemaConfig, TaskConfig
from tests.model.worlds import SCHEMA, columns


def encoder(**changes: object) -> FeatureEncoder:
    return FeatureEncoder(SCHEMA, EncodingConfig(**changes))


def one_row(**changes: object) -> RowColumns:
    given = {"scenario": ["home"], "user_id": ["u1"], "item_id": ["i1"], "request_index_B": np.array([0])}
    return RowColumns(**given | changes)


def price_key(value: float | None) -> int:
    return int(encoder().encode_columns(one_row(item={"price": [value]})).item_keys_FB[2, 0])


def same(a: EncodedBatch, b: EncodedBatch) -> bool:
    arrays = [[x.scenario_B, x.position_B, x.request_keys_FR[:, x.request_index_B], x.item_keys_FB] for x in (a, b)]
    lists = [[one.take(x.request_index_B) for one in x.request_lists] + list(x.item_lists) for x in (a, b)]
    return all(np.array_equal(p, q) for p, q in zip(*arrays, strict=True)) and all(
        np.array_equal(p.keys_N, q.keys_N) and np.array_equal(p.offsets, q.offsets) for p, q in zip(*lists, strict=True)
    )


def test_keys_are_the_same_in_another_process() -> None:
    code = "from model.hashing import value_key; print(value_key('city', 'lyon'), value_key('home', 'lyon'))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(value_key("city", "lyon")), str(value_key("home", "lyon"))]
    assert value_key("city", "lyon") == 7_248_995_076_693_340_405


def test_many_keys_are_distinct_and_not_reserved() -> None:
    keys = np.fromiter((value_key("item_id", str(n)) for n in range(200_000)), np.int64)
    assert len(np.unique(keys)) == 200_000 and not np.isin(keys, [MISSING_KEY, REMOVED_KEY]).any()


def test_the_cache_of_keys_stays_bounded_and_right() -> None:
    cache = ValueKeys("f", max_values=10)
    cache.clear()  # as another thread does when it is full, before it puts the missing value back
    assert cache.of([None]).tolist() == [MISSING_KEY]
    expected = [value_key("f", str(n)) for n in range(100)]
    assert cache.of([str(n) for n in range(100)]).tolist() == expected and len(cache) <= 10
    assert cache.of([None, "3", 3]).tolist() == [MISSING_KEY, expected[3], expected[3]]


def test_fields_in_order() -> None:
    assert [one.name for one in encoder().fields] == [
        *("user_id", "user.city", "context.device"),
        *("user.interests", "history_item", "history_action"),
        *("item_id", "item.category", "item.price"),
        *("item.tags",),
    ]
    bare = encoder(user_id=False, item_id=False, history_length=0, scenario=True)
    assert {"user_id", "item_id", "history_item"}.isdisjoint(one.name for one in bare.fields)
    assert "scenario" in [one.name for one in bare.fields]


def test_history_shares_the_items_keys_and_is_cut_to_its_newest() -> None:
    sequence = SequenceColumns(item_id=[["i1", "i2", "i3"]], action=[["click", "hide", "click"]])
    batch = encoder(history_length=2).encode_columns(one_row(sequence=sequence))
    assert batch.request_lists[1].keys_N.tolist() == [value_key("item_id", "i1"), value_key("item_id", "i2")]
    assert batch.request_lists[1].keys_N[0] == batch.item_keys_FB[0, 0]
    assert batch.request_lists[2].keys_N.tolist() == [value_key("history_action", a) for a in ("click", "hide")]


def test_missing_columns_nulls_nans_and_empty_lists_are_missing() -> None:
    item = {"category": [None], "price": [None], "tags": [[]]}
    for batch in (
        encoder().encode_columns(one_row()),
        encoder().encode_columns(
            one_row(item=item, user={"interests": [None]}, sequence=SequenceColumns(item_id=[[]], action=[[]]))
        ),
    ):
        assert batch.item_keys_FB[1:].tolist() == [[MISSING_KEY], [MISSING_KEY]]
        for lists in (*batch.request_lists, *batch.item_lists):
            assert lists.keys_N.tolist() == [MISSING_KEY] and lists.offsets.tolist() == [0, 1]
    assert price_key(float("nan")) == price_key(None) == MISSING_KEY


def test_buckets_follow_a_signed_logarithm() -> None:
    prices = [-1e9, -50.0, -1.0, -0.001, 0.0, 0.1, 1.0, 1.3, 100.0, 130.0, 1e9]
    keys = [price_key(price) for price in prices]
    assert len(set(keys)) == len(keys)
    assert price_key(100.0) == price_key(101.0) and price_key(0.0) == price_key(0.0001) != MISSING_KEY
    assert price_key(float("inf")) == price_key(1.7e308) and price_key(float("-inf")) == price_key(-1.7e308)


def test_an_integer_is_its_decimal_text() -> None:
    as_text, as_int = (encoder().encode_columns(one_row(user={"city": [value]})) for value in ("3", 3))
    assert same(as_text, as_int)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario": ["moon"]}, "scenario: 'moon' is not one of home, search, deals"),
        ({"user": {"city": ["a", "b"]}}, "user.city: 2 values for 1 requests"),
        ({"item": {"category": [2.5]}}, "item.category: 2.5 is not allowed; a string or an integer"),
        ({"item": {"category": [True]}}, "item.category: True is not allowed; a string or an integer"),
        ({"item": {"price": ["cheap"]}}, "item.price: could not convert"),
        ({"request_index_B": np.array([0, 0])}, "scenario, request_index_B: 1, 2 entries"),
    ],
)
def test_bad_columns_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder().encode_columns(one_row(**changes))


def test_an_unknown_scenario_may_take_the_default() -> None:
    schema = dataclasses.replace(SCHEMA, unknown_scenario="default")
    batch = FeatureEncoder(schema, EncodingConfig()).encode_columns(one_row(scenario=["moon"]))
    assert batch.scenario_R.tolist() == [0]


def test_unknown_scenarios_are_named_until_they_are_resolved() -> None:
    growing = FeatureEncoder(dataclasses.replace(SCHEMA, unknown_scenario="add"), EncodingConfig(scenario=True))
    names = [["moon", "home", "moon"], ["search"], ["sun", "moon"]]
    batches = [
        growing.encode_columns(
            RowColumns(
                scenario=part,
                user_id=["u"] * len(part),
                item_id=["i"] * 2 * len(part),
                request_index_B=np.repeat(np.arange(len(part)), 2),
            )
        )
        for part in names
    ]
    assert [batch.unknown_scenarios for batch in batches] == [("moon",), (), ("sun", "moon")]
    batch = EncodedBatch.concat(batches)
    assert batch.unknown_scenarios == ("moon", "sun")
    assert batch.scenario_R.tolist() == [-1, 0, -1, 1, -2, -1]
    assert batch.rows_of_unknown(np.ones(12, np.bool_)) == {"moon": 6, "sun": 2}
    assert batch.take(slice(0, 5)).rows_of_unknown(np.array([True, False, True, True, True])) == {"moon": 2}
    resolved = batch.resolved({"moon": 7, "sun": 8}.__getitem__)
    assert resolved.scenario_R.tolist() == [7, 0, 7, 1, 8, 7] and not resolved.unknown_scenarios
    assert resolved.resolved({}.__getitem__) is resolved
    scenario = [field.name for field in growing.fields if field.side == "request" and not field.many].index("scenario")
    keys_R = batch.request_keys_FR[scenario].tolist()
    assert [key == keys_R[1] for key in keys_R] == [True, True, True, False, True, True]  # the default one's value


def test_no_field_at_all_is_refused() -> None:
    schema = SchemaConfig(scenarios=("home",), tasks={"click": TaskConfig(action="click", window_ms=1)})
    with pytest.raises(ValueError, match="at least one field"):
        FeatureEncoder(schema, EncodingConfig(user_id=False, item_id=False, history_length=0))


def test_taking_and_joining_rows_keeps_every_value() -> None:
    batch = encoder().encode_columns(columns(np.random.default_rng(0), 5, 17))
    parts = [batch.take(slice(0, 4)), batch.take(slice(4, 4)), batch.take(slice(4, 17))]
    assert [part.num_rows for part in parts] == [4, 0, 13] and parts[0].num_requests < 5
    assert same(EncodedBatch.concat(parts), batch)
    order = np.random.default_rng(1).permutation(17)
    assert same(batch.take(order).take(np.argsort(order)), batch)


def test_sorting_by_scenario_is_stable_and_says_where_each_starts() -> None:
    batch = encoder().encode_columns(columns(np.random.default_rng(0), 8, 30))
    by_scenario, order_B, offsets = batch.by_scenario(3)
    assert same(by_scenario, batch.take(order_B))
    assert order_B.tolist() == sorted(range(30), key=lambda b: (batch.scenario_B[b], b))
    assert [by_scenario.scenario_B[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)] == [
        [i] * int((batch.scenario_B == i).sum()) for i in range(3)
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [("numeric_steps", 0), ("history_length", -1), ("numeric_resolution", 0.0), ("cached_values", 0)],
)
def test_bad_settings_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}: {value} is not allowed; "):
        EncodingConfig(**{field: value})


def test_a_field_list_on_the_item_side_only() -> None:
    features = FeaturesConfig(item={"tags": FeatureConfig(kind="categorical", many=True)})
    schema = SchemaConfig(scenarios=("home",), tasks=SCHEMA.tasks, features=features)
    config = EncodingConfig(user_id=False, item_id=False, history_length=0)
    batch = FeatureEncoder(schema, config).encode_columns(one_row(item={"tags": [["a", "a"]]}))
    assert batch.request_keys_FR.shape == (0, 1) and batch.item_keys_FB.shape == (0, 1)
    assert batch.item_lists[0].keys_N.tolist() == [value_key("item.tags", "a")] * 2


def history_columns() -> RowColumns:
    """Three requests: two actions, none, and four of which one is as young as the request and one younger."""
    sequence = SequenceColumns(
        item_id=[["i1", "i2"], [], ["i3", "i1", "i4", "i5"]],
        action=[["click", "order"], [], ["hide", "click", "click", "order"]],
        age_ms=[[5, 900], [], [-3, 0, 7, 8]],
    )
    return RowColumns(
        scenario=["home"] * 3,
        user_id=["u1", "u2", "u3"],
        item_id=["i1", "i9", "i2", "i3"],
        request_index_B=np.array([0, 2, 2, 0]),
        sequence=sequence,
    )


def test_ages_stand_beside_the_history_they_belong_to() -> None:
    batch = encoder(history_length=3).encode_columns(history_columns())
    ages, items = batch.history_age_ms, batch.request_lists[1]
    assert ages is not None and np.array_equal(ages.offsets, items.offsets)
    assert ages.keys_N.tolist() == [5, 900, 0, -3, 0, 7]
    taken = batch.take(np.array([1]))
    assert taken.history_age_ms is not None and taken.history_age_ms.keys_N.tolist() == [-3, 0, 7]
    joined = EncodedBatch.concat([batch, taken])
    assert joined.history_age_ms is not None and joined.history_age_ms.keys_N.tolist() == [
        5,
        900,
        0,
        -3,
        0,
        7,
        -3,
        0,
        7,
    ]
    unknown = encoder().encode_columns(one_row(sequence=SequenceColumns(item_id=[["i1"]], action=[["click"]])))
    assert unknown.history_age_ms is not None and unknown.history_age_ms.keys_N.tolist() == [UNKNOWN_AGE_MS]
    assert encoder(history_length=0).encode_columns(history_columns()).history_age_ms is None


@pytest.mark.parametrize(
    ("action", "age_ms", "message"),
    [
        ([["click"]], [[1, 2]], "sequence.action: lists of another length than sequence.item_id"),
        ([["click", "hide"]], [[1]], "sequence.age_ms: lists of another length than sequence.item_id"),
    ],
)
def test_a_history_of_unequal_lists_is_refused(action: list[list[str]], age_ms: list[list[int]], message: str) -> None:
    sequence = SequenceColumns(item_id=[["i1", "i2"]], action=action, age_ms=age_ms)
    with pytest.raises(ValueError, match=message):
        encoder().encode_columns(one_row(sequence=sequence))


@pytest.mark.parametrize("has_user", [True, False])
def test_a_sequence_holds_each_actions_embedding_once_per_request(has_user: bool) -> None:
    one = encoder(user_id=has_user)
    batch = one.encode_columns(history_columns())
    layout = InputLayout(one.fields, width=2, interaction=True)
    keys = layout.flat_keys(batch)
    distinct, index_N = np.unique(keys, return_inverse=True)
    source_UW = torch.randn(len(distinct), 2, generator=torch.Generator().manual_seed(0))
    sequence = layout.sequence(source_UW, torch.from_numpy(index_N), batch)

    def row(field: str, value: str) -> list[float]:
        found: list[float] = source_UW[int(np.searchsorted(distinct, value_key(field, value)))].tolist()
        return found

    assert sequence.is_real_RL.tolist() == [[True, True, False, False], [False] * 4, [False, False, True, True]]
    expected = {(0, 0): ("i1", "click"), (0, 1): ("i2", "order"), (2, 2): ("i4", "click"), (2, 3): ("i5", "order")}
    for (r, place), (item, action) in expected.items():
        assert sequence.item_RLW[r, place].tolist() == row("item_id", item)
        assert sequence.action_RLW[r, place].tolist() == row("history_action", action)
    assert sequence.age_ms_RL[2, 2:].tolist() == [7, 8]
    assert sequence.candidate_BW.tolist() == [row("item_id", item) for item in ("i1", "i9", "i2", "i3")]
    assert sequence.request_index_B.tolist() == [0, 2, 2, 0]
    users = [row("user_id", user) for user in ("u1", "u2", "u3")] if has_user else [[0.0, 0.0]] * 3
    assert sequence.user_RW.tolist() == users
