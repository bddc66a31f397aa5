"""Merging feedback into sequences: the same value whatever the batches, the order and the repetitions."""

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.codec import decode_sequence
from stream.exceptions import DecodeError
from stream.schema import Feedback
from stream.sequences import StoredSequence, decode, encode, merge


def act(event: str, ts: int, item: str = "i1", action: str = "click") -> Feedback:
    return Feedback("r1", "u1", item, action, ts, event_id=event)


def test_newest_comes_first_and_the_oldest_go() -> None:
    merged = merge(StoredSequence(), [act(f"e{ts}", ts, item=f"i{ts}") for ts in (3, 1, 4, 2, 5)], length=3)
    assert merged.ts == [5, 4, 3]
    assert merged.item_id == ["i5", "i4", "i3"]


def test_an_event_id_counts_once_even_with_another_time() -> None:
    merged = merge(merge(StoredSequence(), [act("a", 10)], length=9), [act("a", 12)], length=9)
    assert merged.ts == [10]


def test_two_events_at_the_same_time_on_the_same_item_both_count() -> None:
    assert len(merge(StoredSequence(), [act("a", 10), act("b", 10)], length=9).ts) == 2


def test_what_was_too_old_before_does_not_come_back() -> None:
    full = merge(StoredSequence(), [act(f"e{ts}", ts) for ts in range(10)], length=5)
    assert merge(full, [act("e0", 0)], length=5) == full


def test_the_rankers_decoder_reads_the_value() -> None:
    value = encode(merge(StoredSequence(), [act("a", 1, "i7"), act("b", 2, "i8", "order")], length=9))
    read = decode_sequence(value)
    assert (read.item_id, read.action, read.ts) == (["i8", "i7"], ["order", "click"], [2, 1])


@pytest.mark.parametrize("value", [b"", b"[]", b'{"ts":[1]}', b'{"ts":["x"]}', b"\xff"])
def test_a_value_that_is_no_sequence_is_refused(value: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(value)


EVENTS = [act(f"e{n}", ts=n // 2, item=f"i{n % 3}") for n in range(12)]


@settings(max_examples=200, deadline=None)
@given(log=st.lists(st.sampled_from(EVENTS), max_size=40), length=st.integers(1, 8))
def test_one_by_one_it_is_the_newest_of_all_there_ever_were(log: list[Feedback], length: int) -> None:
    kept = StoredSequence()
    for event in log:
        kept = merge(kept, [event], length)
    by_id = {event.event_id: event for event in log}
    ordered = sorted(by_id.values(), key=lambda event: (event.ts, zlib.crc32(event.event_id.encode())), reverse=True)
    assert list(zip(kept.ts, kept.item_id, strict=True)) == [(event.ts, event.item_id) for event in ordered[:length]]


@settings(max_examples=200, deadline=None)
@given(
    log=st.lists(st.sampled_from(EVENTS), max_size=30),
    order=st.randoms(use_true_random=False),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
def test_any_delivery_at_least_once_ends_in_the_same_value(log: list[Feedback], order, cuts: list[int]) -> None:
    at_once = merge(StoredSequence(), log, length=6)
    delivered = log * 2
    order.shuffle(delivered)
    edges = [0, *sorted(cuts), len(delivered)]
    value = encode(StoredSequence())
    for start, end in zip(edges, edges[1:], strict=False):
        value = encode(merge(decode(value), delivered[start:end], length=6))
    assert decode(value) == at_once
