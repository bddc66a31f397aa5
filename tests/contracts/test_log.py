"""What every log must keep, in memory and on Kafka; the fixture `log` is in `conftest.py`."""

import time
from collections.abc import Callable
from uuid import uuid4

import pytest

from stream.exceptions import FencedError
from stream.log import OffsetAndMetadata, TopicPartition
from stream.memory_broker import partition_hash
from tests.contracts.log_factory import LogFactory, assigned, read

WaitUntil = Callable[..., None]


def new_topic(log: LogFactory, num_partitions: int = 1) -> str:
    topic = f"t-{uuid4().hex[:8]}"
    log.create_topic(topic, num_partitions)
    return topic


def send(log: LogFactory, topic: str, *values: bytes, key: bytes | None = b"u") -> None:
    producer = log.producer()
    for value in values:
        assert producer.produce(topic, key, value)
    assert producer.flush(30_000) == 0
    assert producer.num_failed == 0


def test_a_reader_gets_key_value_headers_and_a_time_stamp_in_offset_order(log: LogFactory) -> None:
    topic = new_topic(log)
    producer = log.producer()
    producer.produce(topic, b"u1", b"one", (("error", b"why"),))
    producer.produce(topic, None, b"two")
    assert producer.flush(30_000) == 0
    reader = log.reader()
    reader.assign({TopicPartition(topic, 0): 0})
    one, two = read(reader, 2)
    assert (one.topic, one.partition, one.offset, one.key, one.value) == (topic, 0, 0, b"u1", b"one")
    assert one.headers == (("error", b"why"),)
    assert one.timestamp_ms > 0
    assert (two.offset, two.key, two.value, two.headers) == (1, None, b"two", ())


def test_a_reader_starts_at_the_offset_it_is_given_and_can_be_assigned_anew(log: LogFactory) -> None:
    topic = new_topic(log)
    send(log, topic, b"0", b"1", b"2")
    reader = log.reader()
    reader.assign({TopicPartition(topic, 0): 2})
    assert [message.value for message in read(reader, 1)] == [b"2"]
    reader.assign({TopicPartition(topic, 0): 1})
    assert [message.value for message in read(reader, 2)] == [b"1", b"2"]


def test_keys_go_to_the_partition_of_their_murmur2_hash(log: LogFactory) -> None:
    topic = new_topic(log, num_partitions=4)
    keys = [f"user-{number}".encode() for number in range(20)]
    for key in keys:
        send(log, topic, b"x", key=key)
    reader = log.reader()
    reader.assign({TopicPartition(topic, number): 0 for number in range(4)})
    found = {message.key: message.partition for message in read(reader, 20)}
    assert found == {key: partition_hash(key) % 4 for key in keys}


def test_topics_tell_their_partitions_and_bounds(log: LogFactory) -> None:
    topic = new_topic(log, num_partitions=3)
    at = TopicPartition(topic, partition_hash(b"u") % 3)
    send(log, topic, b"0", b"1")
    reader = log.reader()
    assert (reader.num_partitions(topic), reader.num_partitions("no-such-topic")) == (3, 0)
    assert reader.begin_offsets([at]) == {at: 0}
    assert reader.end_offsets([at]) == {at: 2}


def test_a_transaction_is_visible_only_once_committed_and_never_if_aborted(
    log: LogFactory, wait_until: WaitUntil
) -> None:
    topic = new_topic(log)
    at = TopicPartition(topic, 0)
    producer = log.transactional_producer(f"x-{uuid4().hex[:8]}")
    reader = log.reader()
    reader.assign({at: 0})
    producer.begin()
    producer.produce(topic, b"u", b"dropped")
    producer.abort()
    producer.begin()
    producer.produce(topic, b"u", b"kept")
    assert read(reader, 0) == []
    producer.commit()
    (message,) = read(reader, 1)
    assert message.value == b"kept"

    def is_end_exact() -> bool:
        assert reader.poll(1, 50) == []  # behind the message there is only the mark that ends its transaction
        return reader.end_offsets([at]) == {at: message.offset + 1}

    wait_until(is_end_exact, "read to its end, the end is known exactly")
    producer.close()


def test_aborted_transactions_at_the_end_are_behind_the_end_once_they_were_passed(
    log: LogFactory, wait_until: WaitUntil
) -> None:
    topic = new_topic(log)
    at = TopicPartition(topic, 0)
    producer = log.transactional_producer(f"x-{uuid4().hex[:8]}")
    reader = log.reader()
    reader.assign({at: 0})

    def is_end(end: int) -> bool:
        assert reader.poll(10, 50) == []
        return reader.end_offsets([at]) == {at: end}

    for value in (b"dropped", b"dropped too"):
        producer.begin()
        producer.produce(topic, b"u", value)
        producer.abort()
    wait_until(lambda: is_end(0), "nothing readable, nothing to wait for")
    producer.begin()
    producer.produce(topic, b"u", b"kept")
    producer.commit()
    (message,) = read(reader, 1)
    producer.begin()
    producer.produce(topic, b"u", b"dropped at last")
    producer.abort()
    wait_until(lambda: is_end(message.offset + 1), "the end is after the last readable message")
    producer.close()


def test_transactions_of_two_producers_are_read_in_the_order_of_the_log(log: LogFactory) -> None:
    topic = new_topic(log)
    one = log.transactional_producer(f"x-{uuid4().hex[:8]}")
    other = log.transactional_producer(f"y-{uuid4().hex[:8]}")
    reader = log.reader()
    reader.assign({TopicPartition(topic, 0): 0})
    one.begin()
    one.produce(topic, b"u", b"first")
    one.commit()
    other.begin()
    other.produce(topic, b"u", b"second")
    other.commit()
    messages = read(reader, 2)
    assert [message.value for message in messages] == [b"first", b"second"]
    assert messages[0].offset < messages[1].offset
    one.close()
    other.close()


def test_offsets_and_metadata_are_committed_with_the_transaction_or_not_at_all(log: LogFactory) -> None:
    topic = new_topic(log)
    at = TopicPartition(topic, 0)
    member = log.member(f"g-{uuid4().hex[:8]}", "m", [topic])
    assigned(member, partitions=1)
    producer = log.transactional_producer(f"x-{uuid4().hex[:8]}")
    assert member.committed([at]) == {at: None}
    producer.begin()
    producer.send_offsets({at: OffsetAndMetadata(1, '{"v":1}')}, member)
    producer.abort()
    assert member.committed([at]) == {at: None}
    producer.begin()
    producer.send_offsets({at: OffsetAndMetadata(2, '{"v":1,"next":3}')}, member)
    producer.commit()
    assert member.committed([at]) == {at: OffsetAndMetadata(2, '{"v":1,"next":3}')}
    member.close()
    producer.close()


def test_a_second_producer_with_the_same_id_fences_the_first(log: LogFactory) -> None:
    topic = new_topic(log)
    name = f"x-{uuid4().hex[:8]}"
    first = log.transactional_producer(name)
    first.begin()
    first.produce(topic, b"u", b"of the first")
    second = log.transactional_producer(name)
    with pytest.raises(FencedError):
        first.commit()
    second.begin()
    second.produce(topic, b"u", b"of the second")
    second.commit()
    reader = log.reader()
    reader.assign({TopicPartition(topic, 0): 0})
    assert [message.value for message in read(reader, 1)] == [b"of the second"]
    first.close()
    second.close()


def test_a_member_reads_an_assigned_partition_from_where_it_seeks(log: LogFactory) -> None:
    topic = new_topic(log)
    at = TopicPartition(topic, 0)
    send(log, topic, b"0", b"1", b"2")
    member = log.member(f"g-{uuid4().hex[:8]}", "m", [topic])
    assert assigned(member, partitions=1) == [{at}]
    assert read(member, 0) == []
    member.seek(at, 1)
    assert [message.value for message in read(member, 2)] == [b"1", b"2"]
    member.seek(at, 0)
    assert [message.value for message in read(member, 3)] == [b"0", b"1", b"2"]
    member.close()


def test_only_what_is_assigned_can_be_sought(log: LogFactory) -> None:
    topic = new_topic(log)
    member = log.member(f"g-{uuid4().hex[:8]}", "m", [topic])
    with pytest.raises(ValueError, match="is not assigned"):
        member.seek(TopicPartition(topic, 0), 0)
    member.close()


def test_the_range_assignor_gives_the_same_partitions_of_both_topics_to_one_member(log: LogFactory) -> None:
    topics = [new_topic(log, num_partitions=3), new_topic(log, num_partitions=3)]
    group = f"g-{uuid4().hex[:8]}"
    one = log.member(group, "one", topics)
    two = log.member(group, "two", topics)
    owned = assigned(one, two, partitions=6)
    for mine in owned:
        numbers = [{at.partition for at in mine if at.topic == topic} for topic in topics]
        assert numbers[0] == numbers[1]
    assert owned[0].isdisjoint(owned[1])
    one.close()
    two.close()


def test_a_newcomer_takes_its_share_from_the_others_and_gives_it_back_when_it_leaves(log: LogFactory) -> None:
    topic = new_topic(log, num_partitions=2)
    group = f"g-{uuid4().hex[:8]}"
    one = log.member(group, "one", [topic])
    (both,) = assigned(one, partitions=2)
    two = log.member(group, "two", [topic])
    owned = assigned(one, two, partitions=2, before=[both, set()])
    assert [len(mine) for mine in owned] == [1, 1]
    two.close()
    assert assigned(one, partitions=2, before=owned[:1]) == [both]
    one.close()


def test_a_member_too_many_is_told_that_it_gets_nothing(log: LogFactory) -> None:
    topic = new_topic(log)
    group = f"g-{uuid4().hex[:8]}"
    members = [log.member(group, name, [topic]) for name in ("one", "two")]
    told = [False, False]
    owned = [False, False]
    deadline_s = time.monotonic() + 30
    while sum(owned) != 1 or not all(told):
        assert time.monotonic() < deadline_s
        for number, member in enumerate(members):
            polled = member.poll(1_000, 20)
            owned[number] = bool(polled.assigned) or (owned[number] and not polled.revoked)
            told[number] = polled.is_dealt or (told[number] and not polled.revoked)
    for member in members:
        member.close()
