"""Micro-batches: whole messages, cut only where one alone is too long, in one of two orders."""

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batching import MicroBatcher, Order, Part, RowsAbout
from model.checkpoint import Position
from model.examples import DecodedExamples, ExampleDecoder
from model.features import FeatureEncoder
from tests.model.example_log import MODEL, SCHEMA, encode, slate

DECODER = ExampleDecoder(SCHEMA, FeatureEncoder(SCHEMA, MODEL.encoding))
DECODED: dict[int, DecodedExamples] = {
    num_rows: DECODER.decode(encode([slate(np.random.default_rng(0), 1, num_items=num_rows)]))
    for num_rows in range(1, 13)
}
Taken = list[tuple[int, int, int]]


def message(partition: int, offset: int, num_rows: int, *, order_ms: int = 0, arrived_ms: int = 0) -> Part:
    return Part(
        partition=partition,
        offset=offset,
        order_ms=order_ms,
        watermark_ms=order_ms,
        settle_ms=0,
        arrived_ms=arrived_ms,
        about=RowsAbout(num_rows),
        rows=DECODED[num_rows].rows if num_rows else None,
        after=Position(offset + 1),
    )


def batcher(partitions: int = 1, *, batch_rows: int = 5, order: Order = "arrival") -> MicroBatcher:
    return MicroBatcher(range(partitions), batch_rows=batch_rows, order=order)


def push(to: MicroBatcher, part: Part, *, batch_rows: int = 5, first_row: int = 0) -> None:
    for piece in part.pieces(batch_rows, first_row):
        to.push(piece)


def taken(batch: list[Part] | None) -> Taken:
    """(partition, offset, rows) of each part."""
    return [(part.partition, part.offset, part.num_rows) for part in batch or []]


def all_batches(of: MicroBatcher, finished: tuple[int, ...] = ()) -> list[Taken]:
    batches = []
    while (batch := of.full_batch(finished)) is not None:
        batches.append(taken(batch))
    return batches


def test_messages_are_added_whole_until_there_are_enough_rows() -> None:
    one = batcher()
    for offset, num_rows in enumerate([2, 2, 4, 5, 1]):
        push(one, message(0, offset, num_rows))
    assert all_batches(one) == [[(0, 0, 2), (0, 1, 2), (0, 2, 4)], [(0, 3, 5)]]
    assert taken(one.partial_batch()) == [(0, 4, 1)]
    assert one.partial_batch() is None


def test_a_message_that_is_too_long_is_cut_at_multiples_of_the_batch() -> None:
    one = batcher()
    push(one, message(0, 7, 12))
    first, second = one.full_batch(), one.full_batch()
    assert first is not None
    assert second is not None
    assert [part.after for part in first + second] == [Position(7, 5), Position(7, 10)]
    assert one.full_batch() is None
    rest = one.partial_batch()
    assert rest is not None
    assert (rest[0].num_rows, rest[0].after) == (2, Position(8))


def test_a_resume_inside_a_message_cuts_at_the_same_places() -> None:
    resumed = batcher()
    push(resumed, message(0, 7, 12), first_row=5)
    assert all_batches(resumed) == [[(0, 7, 5)]]
    assert taken(resumed.partial_batch()) == [(0, 7, 2)]


def test_a_message_without_rows_moves_the_position_with_its_neighbours() -> None:
    one = batcher()
    for offset, num_rows in enumerate([3, 0, 3]):
        push(one, message(0, offset, num_rows))
    assert all_batches(one) == [[(0, 0, 3), (0, 1, 0), (0, 2, 3)]]


def test_the_age_is_that_of_the_oldest_part_of_the_unfinished_batch() -> None:
    one = batcher()
    assert one.oldest_ms() is None
    push(one, message(0, 0, 5, arrived_ms=10))
    push(one, message(0, 1, 2, arrived_ms=20))
    push(one, message(0, 2, 1, arrived_ms=30))
    assert all_batches(one) == [[(0, 0, 5)]]
    assert one.oldest_ms() == 20


def test_log_order_merges_by_watermark_then_partition() -> None:
    one = batcher(2, batch_rows=1, order="log")
    push(one, message(1, 0, 1, order_ms=5))
    push(one, message(1, 1, 1, order_ms=9))
    push(one, message(0, 0, 1, order_ms=5))
    push(one, message(0, 1, 1, order_ms=7))
    merged = [part[:2] for batch in all_batches(one, finished=(0, 1)) for part in batch]
    assert merged == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_log_order_waits_for_every_partition_that_is_not_finished() -> None:
    one = batcher(2, batch_rows=1, order="log")
    push(one, message(0, 0, 1, order_ms=5))
    assert one.full_batch() is None
    assert one.full_batch(finished=(0,)) is None
    assert taken(one.full_batch(finished=(1,))) == [(0, 0, 1)]


def test_log_order_ends_with_a_shorter_batch() -> None:
    one = batcher(2, order="log")
    push(one, message(0, 0, 2))
    push(one, message(1, 0, 2))
    assert one.full_batch(finished=(0,)) is None
    assert taken(one.full_batch(finished=(0, 1))) == [(0, 0, 2), (1, 0, 2)]
    assert one.full_batch(finished=(0, 1)) is None


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(0, 3)), max_size=30),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
)
def test_log_order_depends_on_the_log_alone(
    drawn: list[tuple[int, int, int]], batch_rows: int, random: Random, num_pushes: int
) -> None:
    """However the partitions arrive, and however often a batch is asked for in between, the batches are the same."""
    log: dict[int, list[Part]] = {0: [], 1: [], 2: []}
    order_ms = dict.fromkeys(log, 0)
    for partition, num_rows, step_ms in drawn:
        order_ms[partition] += step_ms
        log[partition].append(message(partition, len(log[partition]), num_rows, order_ms=order_ms[partition]))

    at_once = MicroBatcher(log, batch_rows=batch_rows, order="log")
    for messages in log.values():
        for one in messages:
            push(at_once, one, batch_rows=batch_rows)
    expected = all_batches(at_once, finished=(0, 1, 2))

    trickled = MicroBatcher(log, batch_rows=batch_rows, order="log")
    waiting = {partition: list(messages) for partition, messages in log.items()}
    batches: list[Taken] = []
    while any(waiting.values()):
        partition = random.choice([partition for partition, messages in waiting.items() if messages])
        for one in waiting[partition][:num_pushes]:
            push(trickled, one, batch_rows=batch_rows)
        del waiting[partition][:num_pushes]
        batches += all_batches(trickled, tuple(partition for partition, messages in waiting.items() if not messages))
    assert batches + all_batches(trickled, finished=(0, 1, 2)) == expected
    # Each message exactly once, and none spread over two batches unless it alone is too long.
    for partition, messages in log.items():
        for sent in messages:
            places = [n for n, batch in enumerate(expected) for part in batch if part[:2] == (partition, sent.offset)]
            assert sum(p[2] for b in expected for p in b if p[:2] == (partition, sent.offset)) == sent.num_rows
            assert len(places) == max(1, -(-sent.num_rows // batch_rows))
