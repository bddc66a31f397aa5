"""Decoding of `examples` messages: what the joiner wrote arrives; what it did not write is named and refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.examples import DecodedExamples, ExampleDecoder, TrainRows
from model.exceptions import ExampleError
from model.features import FeatureEncoder
from stream.emission import Emission, LabelColumn
from stream.schema import KIND_CODE
from tests.model.example_log import MODEL, SCHEMA, encode, slate

DECODER = ExampleDecoder(SCHEMA, FeatureEncoder(SCHEMA, MODEL.encoding))
Table = Any


def decode(slates: list[Emission]) -> DecodedExamples:
    return DECODER.decode(encode(slates))


def two_slates() -> list[Emission]:
    rng = np.random.default_rng(0)
    return [slate(rng, 1, num_items=3), slate(rng, 2, num_items=2, with_scores=False)]


def table_of(message: bytes) -> Table:
    with pa.ipc.open_stream(pa.py_buffer(message)) as reader:
        return reader.read_all()


def message_of(table: Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def with_column(name: str, array: Any) -> Callable[[Table], Table]:
    return lambda table: table.set_column(table.schema.get_field_index(name), name, array)


def with_list(name: str, values: list[Any], kind: Any) -> Callable[[Table], Table]:
    return with_column(name, pa.array(values, pa.list_(kind)))


def with_metadata(name: str, value: str) -> Callable[[Table], Table]:
    return lambda table: table.replace_schema_metadata({**table.schema.metadata, name.encode(): value.encode()})


def policy(**changes: Any) -> str:
    return json.dumps({"name": "eager", "window_ms": 60_000, "grace_ms": 2_000, "observe_ms": None} | changes)


def test_rows_carry_labels_masks_scores_and_times() -> None:
    slates = two_slates()
    rows = decode(slates).rows
    assert rows.num_rows == 5
    assert rows.batch.request_index_B.tolist() == [0, 0, 0, 1, 1]
    assert rows.batch.position_B.tolist() == [0, 1, 2, 0, 1]
    assert rows.impression_ms_B.tolist() == [1_000] * 3 + [2_000] * 2
    clicked = slates[0].columns["click"].label + slates[1].columns["click"].label
    assert rows.label_BT[:, 0].tolist() == clicked
    assert rows.mask_BT.tolist() == rows.settled_BT.tolist() == rows.first_BT.tolist()
    assert rows.mask_BT[:, 0].all()
    assert rows.mask_BT[:, 1].tolist() == [True] * 3 + [False] * 2
    assert (rows.weight_BT == 1.0).all()
    np.testing.assert_allclose(rows.served_BT[:3, 0], slates[0].impression.items.scores["click"], rtol=1e-6)
    assert np.isnan(rows.served_BT[3:, 0]).all()
    assert np.isnan(rows.served_BT[:, 1]).all()


def test_feedback_times_are_those_of_positives() -> None:
    slates = two_slates()
    slates[0].columns["click"] = LabelColumn(["final"] * 3, [1, 0, 1], [0, -1, 250])
    rows = decode(slates[:1]).rows
    assert rows.feedback_ms_BT[:, 0].tolist() == [1_000, -1, 1_250]
    assert rows.feedback_ms_BT[:, 1].tolist() == [-1, -1, -1]


def test_raw_columns_are_those_of_the_impressions() -> None:
    slates = two_slates()
    columns = decode(slates).columns
    assert columns.scenario == [emission.impression.scenario for emission in slates]
    assert columns.item_id == slates[0].impression.items.id + slates[1].impression.items.id
    assert columns.user["city"] == ["lyon", "lyon"]
    np.testing.assert_array_equal(columns.user["age"], [33.0, np.nan])
    assert columns.context["topics"] == [["a"], ["a", "b"]]
    assert columns.item["category"] == [None, "red", "red", None, "red"]
    assert columns.item["tags"] == [[], [], ["x", "y"], [], []]
    np.testing.assert_array_equal(np.isnan(columns.item["price"]), [True, False, False, True, False])
    assert columns.sequence is not None
    assert columns.sequence.age_ms == [[999, 1_000], [1_998, 2_000]]


def test_order_and_watermark_are_those_of_the_first_and_last_request() -> None:
    decoded = decode(two_slates())
    assert (decoded.order_ms, decoded.watermark_ms, decoded.settle_ms) == (63_000, 64_000, 62_000)


def test_a_message_without_rows_is_allowed() -> None:
    empty = DECODER.decode(message_of(table_of(encode(two_slates())).slice(0, 0)))
    assert empty.rows.num_rows == 0
    assert empty.order_ms == -1


def test_weight_is_sampling_weight_times_the_ratio_of_positives() -> None:
    slates = two_slates()[:1]
    slates[0].columns["click"] = LabelColumn(["final"] * 3, [1, 1, 0], [5, 5, -1])
    table = table_of(encode(slates))
    table = with_list("weight", [[2.0, 1.0, 4.0]], pa.float32())(table)
    table = with_list("ratio.click", [[0.5, 0.0, 9.0]], pa.float32())(table)
    rows = DECODER.decode(message_of(table)).rows
    assert rows.weight_BT[:, 0].tolist() == [1.0, 0.0, 4.0]
    assert rows.feedback_ms_BT[:, 0].tolist() == [1_005, -1, -1], "what has no weight is not learned"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (with_metadata("schema_version", "9"), "schema_version: '9' is not allowed; 1"),
        (with_metadata("schema_hash", "beef"), "schema_hash: 'beef' is not this run's"),
        (with_metadata("policy.click", policy(name="guess")), "policy.click: 'guess' is not one of wait, eager"),
        (with_metadata("policy.click", "{"), "policy.click: "),
        (
            with_metadata("policy.click", policy(name="es_dfm")),
            "policy.click: observe_ms None is not allowed; policy es_dfm needs 1 to below window_ms",
        ),
        (with_metadata("policy.click", policy(name="defer", observe_ms=60_000)), "observe_ms 60000 is not allowed"),
        (with_metadata("policy.click", policy(window_ms="long")), "policy.click: Expected `int`"),
        (lambda table: table.drop_columns(["label.click"]), "label.click: the column is missing"),
        (with_list("label.click", [[0, 1, 2]], pa.int8()), "label: only 0 and 1 are allowed"),
        (with_list("label.click", [[0, 1]], pa.int8()), "label.click: lists of another length than item_id"),
        (with_list("label.click", [[0, 1, None]], pa.int8()), "label.click: a value is missing"),
        (
            with_list("label.click", [[0, 1, 0]], pa.int64()),
            "label.click: type list<.*int64> is not allowed; a list of",
        ),
        (
            with_list("kind.click", [[KIND_CODE["late_positive"]] * 3], pa.int8()),
            "kind.click: code 5 is not one that policy 'eager' sends",
        ),
        (with_list("kind.click", [[99] * 3], pa.int8()), "kind.click: code 99"),
        (with_list("weight", [[1.0, float("nan"), 1.0]], pa.float32()), "weight: only finite numbers are allowed"),
        (with_list("weight", [[1.0, None, 1.0]], pa.float32()), "weight: only finite numbers of at least 0"),
        (with_list("weight", [[1.0, -1.0, 1.0]], pa.float32()), "weight: only finite numbers of at least 0"),
        (with_list("ratio.click", [[float("inf")] * 3], pa.float32()), "ratio.click: only finite numbers"),
        (with_list("served.click", [[0.1, 1.5, 0.1]], pa.float32()), "served: only probabilities are allowed"),
        (with_list("served.click", [[0.1, float("nan"), 0.1]], pa.float32()), "served.click: only finite numbers"),
        (with_list("item.price", [[1.0, float("inf"), 2.0]], pa.float64()), "item.price: only finite numbers"),
        (with_list("item.price", [["a", "b", "c"]], pa.string()), "item.price: type list<.*string> is not allowed"),
        (with_column("user.age", pa.array([float("nan")], pa.float64())), "user.age: only finite numbers"),
        (with_column("scenario", pa.array(["nowhere"])), "scenario: 'nowhere' is not one of home, search"),
        (with_column("scenario", pa.array([None], pa.string())), "scenario: a value is missing"),
        (with_column("ts", pa.array(["late"])), "ts: type string is not allowed; int64"),
        (with_column("item_id", pa.array(["i1"])), "item_id: type string is not allowed; a list of string"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[Table], Table], sentence: str) -> None:
    message = encode(two_slates()[:1])
    with pytest.raises(ExampleError, match=sentence):
        DECODER.decode(message_of(change(table_of(message))))
    assert DECODER.decode(message).rows.num_rows == 3, "the unchanged message is fine, so the change is what is refused"


def test_a_missing_list_of_scores_is_no_score() -> None:
    table = with_list("served.click", [None, [0.5, 0.25]], pa.float32())(table_of(encode(two_slates())))
    served = DECODER.decode(message_of(table)).rows.served_BT[:, 0]
    np.testing.assert_array_equal(served, [np.nan, np.nan, np.nan, 0.5, 0.25])


def test_examples_of_another_schema_are_refused() -> None:
    other = replace(SCHEMA, scenarios=("home",))
    with pytest.raises(ExampleError, match="schema_hash"):
        ExampleDecoder(other, FeatureEncoder(other, MODEL.encoding)).decode(encode(two_slates()))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_bytes_raise_anything_but_the_one_error(data: st.DataObject) -> None:
    message = bytearray(encode(two_slates()))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    torn = bytes(message[: data.draw(st.integers(0, len(message)))])
    try:
        DECODER.decode(torn)
    except ExampleError as error:
        assert str(error)


def test_rows_of_several_messages_are_one_batch() -> None:
    slates = two_slates()
    together = decode(slates).rows
    apart = TrainRows.concat([decode([one]).rows for one in slates])
    assert apart.num_rows == together.num_rows
    for name in ("label_BT", "mask_BT", "weight_BT", "served_BT", "impression_ms_B", "feedback_ms_BT"):
        np.testing.assert_array_equal(getattr(apart, name), getattr(together, name))
    np.testing.assert_array_equal(apart.batch.item_keys_FB, together.batch.item_keys_FB)
    cut = together.take(slice(2, 4))
    assert cut.batch.request_index_B.tolist() == [0, 1]
    np.testing.assert_array_equal(cut.label_BT, together.label_BT[2:4])
