"""The plan of micro-batches: the same on every rank, whoever reads what and how fast; in log order that of one rank."""

from random import Random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch_plan import Offer, PartHead, head_of, in_turn, part_of
from model.batching import MicroBatcher, Order, Part, RowsAbout
from model.checkpoint import Position

Batches = list[list[tuple[int, int, int]]]
BATCH_ROWS = 10


def message(partition: int, offset: int, num_rows: int, order_ms: int) -> Part:
    head = PartHead(partition, offset, order_ms, order_ms, 0, 0, Position(offset + 1), RowsAbout(num_rows))
    return part_of(head, arrived_ms=0)


def batches_of(batcher: MicroBatcher, finished: set[int]) -> Batches:
    found = []
    while (batch := batcher.full_batch(finished)) is not None:
        found.append([(part.partition, part.offset, part.num_rows) for part in batch])
    return found


def planned(log: dict[int, list[Part]], size: int, order: Order, random: Random) -> list[Batches]:
    """What each rank makes of a log that all read at speeds of their own, an exchange after each poll."""
    batchers = [MicroBatcher(log, batch_rows=BATCH_ROWS, order=order) for _ in range(size)]
    left = {partition: list(parts) for partition, parts in log.items()}
    found: list[Batches] = [[] for _ in range(size)]
    while True:
        offers = []
        for rank in range(size):
            read: list[Part] = []
            for partition in range(rank, len(log), size):
                num = random.randint(0, 3)
                read += left[partition][:num]
                del left[partition][:num]
            ended = [partition for partition in range(rank, len(log), size) if not left[partition]]
            offers.append(msgspec.msgpack.encode(Offer(parts=[head_of(part) for part in read], finished=ended)))
        told = [msgspec.msgpack.decode(offer, type=Offer) for offer in offers]
        finished = {partition for offer in told for partition in offer.finished}
        for rank, batcher in enumerate(batchers):
            for part in in_turn([[part_of(head, arrived_ms=rank) for head in offer.parts] for offer in told]):
                batcher.push(part)
            found[rank] += batches_of(batcher, finished)
        if len(finished) == len(log):
            return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=12), min_size=1, max_size=5),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_all_ranks_plan_the_same_and_in_log_order_what_one_rank_would(
    drawn: list[list[tuple[int, int]]], size: int, random: Random
) -> None:
    log: dict[int, list[Part]] = {}
    for partition, sizes in enumerate(drawn):
        order_ms = 0
        log[partition] = []
        for offset, (num_rows, step_ms) in enumerate(sizes):
            order_ms += step_ms
            log[partition].append(message(partition, offset, num_rows, order_ms))
    alone = MicroBatcher(log, batch_rows=BATCH_ROWS, order="log")
    for parts in log.values():
        for part in parts:
            alone.push(part)
    expected = batches_of(alone, set(log))
    assert planned(log, size, "log", random) == [expected] * size
    first, *others = planned(log, size, "arrival", random)
    assert all(one == first for one in others)


def test_every_micro_batch_has_rows_of_every_rank_that_has_some() -> None:
    log = {partition: [message(partition, offset, 4, 0) for offset in range(10)] for partition in range(2)}
    for batches in planned(log, 2, "arrival", Random(1)):
        halves = [{partition for partition, _, _ in batch} for batch in batches]
        assert halves.count({0, 1}) >= len(halves) - 1


def test_what_is_known_of_rows_goes_with_them() -> None:
    about = RowsAbout(3, True, {"deals": (2, 1)})
    head = PartHead(1, 7, 5, 6, 60, 4, Position(7, 3), about)
    back = msgspec.msgpack.decode(msgspec.msgpack.encode(Offer(parts=[head], counts=[1, 0, 2])), type=Offer)
    assert head_of(part_of(back.parts[0], arrived_ms=9)) == head and back.counts == [1, 0, 2]
