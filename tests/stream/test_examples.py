"""Emissions as Arrow: layout, nulls, categories as strings, order, and the two limits of a message."""

import json
from typing import Any

import pyarrow as pa
import pytest

from stream.emission import Emission, LabelColumn
from stream.examples import MAX_MESSAGE_BYTES, ExampleEncoder
from stream.join import JoinConfig, JoinCore
from stream.schema import (
    KIND_CODE,
    FeatureConfig,
    FeaturesConfig,
    Impression,
    Items,
    SchemaConfig,
    Sequence,
    Served,
    TaskConfig,
)
from tests.stream.build import did

SCHEMA = SchemaConfig(
    scenarios=("home",),
    tasks={
        "click": TaskConfig(action="click", window_ms=60_000, policy="eager"),
        "order": TaskConfig(action="order", window_ms=90_000, policy="wait"),
    },
    features=FeaturesConfig(
        user={"age": FeatureConfig(kind="categorical"), "likes": FeatureConfig(kind="categorical", many=True)},
        item={
            "brand": FeatureConfig(kind="categorical"),
            "price": FeatureConfig(kind="numeric"),
            "tags": FeatureConfig(kind="categorical", many=True),
        },
        context={"hour": FeatureConfig(kind="numeric")},
    ),
)
FULL = Impression(
    "r1",
    "u1",
    "home",
    1_000,
    Items(
        ["a", "b", "c"],
        {"brand": ["x", 3, None], "price": [1.5, None, 2.0], "tags": [["new", 7], [], None]},
        {"click": [0.5, 0.25, 0.125]},
        propensity=[1.0, 0.5, 0.25],
    ),
    {"hour": 7},
    {"age": 30, "likes": ["x", 1]},
    Served(snapshot=12),
    Sequence(["i", "j"], ["click", "order"], [900, 400]),
)
BARE = Impression("r2", "u2", "home", 2_000, Items(["d"]))


def emissions() -> list[Emission]:
    core = JoinCore(SCHEMA, JoinConfig(grace_ms=0))
    found = core.observe_impression(FULL, 0) + core.observe_impression(BARE, 1)
    found += core.observe_feedback(did("click", "b", at=1_700, on="r1"), 0)
    found += core.observe_feedback(did("order", "a", at=5_000, on="r1"), 1)
    return found + core.advance(200_000)


def decode(*messages: bytes) -> list[dict[str, Any]]:
    return [row for message in messages for row in pa.ipc.open_stream(message).read_all().to_pylist()]


def test_rows_hold_what_the_layout_promises() -> None:
    positive, click, *_ = decode(*ExampleEncoder(SCHEMA, JoinConfig()).encode(emissions()))
    assert positive == {
        "request_id": "r1",
        "user_id": "u1",
        "scenario": "home",
        "ts": 1_000,
        "emitted_watermark_ms": -1,
        "snapshot": 12,
        "user.age": "30",
        "user.likes": ["x", "1"],
        "context.hour": 7.0,
        "item_id": ["b"],
        "position": [1],
        "item.brand": ["3"],
        "item.price": [None],
        "item.tags": [[]],
        "served.click": [0.25],
        "served.order": [None],
        "propensity": [0.5],
        "label.click": [1],
        "kind.click": [KIND_CODE["final"]],
        "delay_ms.click": [700],
        "ratio.click": [1.0],
        "label.order": [0],
        "kind.order": [KIND_CODE["none"]],
        "delay_ms.order": [-1],
        "ratio.order": [1.0],
        "weight": [1.0],
        "sequence.item_id": ["i", "j"],
        "sequence.action": ["click", "order"],
        "sequence.age_ms": [100, 600],
    }
    assert (click["item_id"], click["position"], click["label.click"]) == (["a", "c"], [0, 2], [0, 0])
    assert (click["item.tags"], click["item.price"]) == ([["new", "7"], []], [1.5, 2.0])
    assert click["emitted_watermark_ms"] == 200_000


def test_a_log_from_elsewhere_has_nulls_where_ours_has_values() -> None:
    bare = next(r for r in decode(*ExampleEncoder(SCHEMA, JoinConfig()).encode(emissions())) if r["request_id"] == "r2")
    assert (bare["user.age"], bare["user.likes"], bare["context.hour"]) == (None, [], None)
    assert (bare["item.brand"], bare["item.price"], bare["item.tags"]) == ([None], [None], [[]])
    assert (bare["served.click"], bare["propensity"], bare["snapshot"]) == ([None], [None], 0)
    assert (bare["sequence.item_id"], bare["sequence.age_ms"]) == ([], [])


def test_a_closing_window_gives_one_row_with_all_its_items() -> None:
    rows = decode(*ExampleEncoder(SCHEMA, JoinConfig()).encode(emissions()))
    order = next(r for r in rows if r["request_id"] == "r1" and KIND_CODE["final"] in r["kind.order"])
    assert (order["label.order"], order["delay_ms.order"]) == ([1, 0, 0], [4_000, -1, -1])
    assert order["kind.click"] == [KIND_CODE["none"]] * 3


def test_types_and_metadata_are_those_of_the_layout() -> None:
    (message,) = ExampleEncoder(SCHEMA, JoinConfig(grace_ms=5)).encode(emissions())
    schema = pa.ipc.open_stream(message).schema
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert types["user.age"] == types["request_id"] == "string"
    assert types["ts"] == types["snapshot"] == types["emitted_watermark_ms"] == "int64"
    item_types = {name: type_.replace("item: ", "") for name, type_ in types.items()}
    assert item_types["label.click"] == item_types["kind.click"] == "list<int8>"
    assert item_types["delay_ms.click"] == item_types["position"] == "list<int32>"
    assert item_types["served.order"] == item_types["propensity"] == item_types["weight"] == "list<float>"
    assert (item_types["item.price"], item_types["item.tags"]) == ("list<double>", "list<list<string>>")
    assert schema.metadata[b"schema_hash"].decode() == SCHEMA.schema_hash()
    policy = json.loads(schema.metadata[b"policy.order"])
    assert policy == {"name": "wait", "window_ms": 90_000, "grace_ms": 5, "observe_ms": None}


def test_rows_are_in_order_of_their_triggers() -> None:
    backwards = sorted(emissions(), key=lambda emission: -emission.trigger_ms)
    messages = ExampleEncoder(SCHEMA, JoinConfig()).encode(backwards)
    assert decode(*messages) == decode(*ExampleEncoder(SCHEMA, JoinConfig()).encode(emissions()))


def slate(num_items: int, user: dict[str, Any] | None = None) -> Emission:
    ids = [f"i{number}" for number in range(num_items)]
    labels = LabelColumn(["final"] * num_items, [number % 2 for number in range(num_items)], [-1] * num_items)
    impression = Impression("r", "u", "home", 0, Items(ids), {}, user or {})
    return Emission(impression, list(range(num_items)), {"click": labels}, 0, 0)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([3, 1], [[3, 1]]),  # exactly full
        ([3, 2], [[3], [2]]),  # one item too many
        ([4, 4], [[4], [4]]),
        ([9], [[4], [4], [1]]),  # a slate longer than a message is cut
        ([], []),
    ],
)
def test_a_message_holds_at_most_batch_items(sizes: list[int], expected: list[list[int]]) -> None:
    messages = ExampleEncoder(SCHEMA, JoinConfig(batch_items=4)).encode([slate(size) for size in sizes])
    assert [[len(row["item_id"]) for row in decode(message)] for message in messages] == expected


def test_a_cut_slate_keeps_items_and_labels_together() -> None:
    rows = decode(*ExampleEncoder(SCHEMA, JoinConfig(batch_items=4)).encode([slate(9)]))
    cells = [
        (i, p, y) for row in rows for i, p, y in zip(row["item_id"], row["position"], row["label.click"], strict=True)
    ]
    assert cells == [(f"i{number}", number, number % 2) for number in range(9)]


def test_a_message_stays_below_a_megabyte_by_halving() -> None:
    big = {"age": "x" * 300_000}
    messages = ExampleEncoder(SCHEMA, JoinConfig()).encode([slate(2, big) for _ in range(7)])
    assert max(map(len, messages)) <= MAX_MESSAGE_BYTES
    assert sum(len(decode(message)) for message in messages) == 7
