"""The columns that go to the lead: what one rank would have had, in its order."""

from dataclasses import fields

import numpy as np
import pytest

from model.delayed_labels import DelayedLabels
from model.examples import ExampleDecoder, TrainRows
from model.features import FeatureEncoder
from model.step_columns import StepColumns, in_order
from tests.model import delayed_log
from tests.model.example_log import MODEL, SCHEMA, partition_log

ES_DFM = delayed_log.schema_of(order="es_dfm")


def parts_of(*, is_delayed: bool) -> list[TrainRows]:
    """The rows of a few messages."""
    if is_delayed:
        decoder = ExampleDecoder(ES_DFM, FeatureEncoder(ES_DFM, delayed_log.MODEL.encoding))
        return [decoder.decode(value).rows for value in delayed_log.messages(delayed_log.slates(1, 60), ES_DFM)][:4]
    decoder = ExampleDecoder(SCHEMA, FeatureEncoder(SCHEMA, MODEL.encoding))
    return [decoder.decode(value).rows for value in partition_log(seed=1, num_messages=4)]


def columns_of(rows: TrainRows) -> StepColumns:
    """With scores that say whose row it is."""
    logit_BT = np.stack([rows.impression_ms_B / 1_000] * rows.label_BT.shape[1], axis=1).astype(np.float32)
    return StepColumns.of(rows, rows.batch.scenario_B, logit_BT)


@pytest.mark.parametrize("is_delayed", [False, True])
def test_rows_of_two_ranks_come_out_as_those_of_one(is_delayed: bool) -> None:
    parts, rank_of_part = parts_of(is_delayed=is_delayed), [1, 0, 0, 1]
    sent = []
    for rank in range(2):
        here = [part for part, at in zip(parts, rank_of_part, strict=True) if at == rank]
        sent.append(columns_of(TrainRows.concat(here)).records())
    found = StepColumns.from_records(in_order(sent, rank_of_part, [part.num_rows for part in parts]))
    expected = columns_of(TrainRows.concat(parts))
    for owner, ours, theirs in ((StepColumns, found, expected), (DelayedLabels, found.delayed, expected.delayed)):
        assert (ours is None) == (theirs is None)
        for one in fields(owner):
            if theirs is not None and one.name != "delayed":
                left, right = getattr(ours, one.name), getattr(theirs, one.name)
                assert left.dtype == right.dtype and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


def test_a_rank_without_rows_sends_none_of_the_same_form() -> None:
    some = parts_of(is_delayed=False)[0]
    nothing = ExampleDecoder(SCHEMA, FeatureEncoder(SCHEMA, MODEL.encoding)).nothing()
    assert columns_of(nothing).records().dtype == columns_of(some).records().dtype
    assert len(columns_of(nothing).records()) == 0
    together = TrainRows.concat([nothing, some])
    assert np.array_equal(together.batch.scenario_B, some.batch.scenario_B) and together.num_rows == some.num_rows
