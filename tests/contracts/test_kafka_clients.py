"""What both Kafka clients must keep on Apache Kafka, beyond `test_log.py`; `kafka_log` is in `conftest.py`."""

from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import pytest

from stream import kafka_adapter
from stream.exceptions import FencedError, LogUnavailableError, TransactionAbortedError
from stream.log import GroupMember, OffsetAndMetadata, TopicPartition
from tests.contracts.kafka_factory import KafkaLogFactory
from tests.contracts.log_factory import assigned, read

WaitUntil = Callable[..., None]


def new(what: str) -> str:
    return f"{what}-{uuid4().hex[:8]}"


def test_a_replaced_member_cannot_commit_and_cannot_go_on(kafka_log: KafkaLogFactory) -> None:
    topic, group = new("t"), new("g")
    kafka_log.create_topic(topic, 1)
    at = TopicPartition(topic, 0)
    old = kafka_log.member(group, "old", [topic], instance_id="one")
    assigned(old, partitions=1)
    producer = kafka_log.transactional_producer(new("x"))
    producer.begin()
    producer.produce(topic, b"u", b"too late")
    new_one = kafka_log.member(group, "new", [topic], instance_id="one")
    assigned(new_one, partitions=1)
    with pytest.raises(FencedError):
        producer.send_offsets({at: OffsetAndMetadata(1)}, old)
    assert new_one.committed([at]) == {at: None}
    reader = kafka_log.reader()
    reader.assign({at: 0})
    assert read(reader, 0) == []


def test_a_producer_that_writes_after_it_was_replaced_is_fenced_and_its_successor_is_not(
    kafka_log: KafkaLogFactory,
) -> None:
    topic, name = new("t"), new("x")
    kafka_log.create_topic(topic, 1)
    first = kafka_log.transactional_producer(name)
    first.begin()
    first.produce(topic, b"u", b"one")
    first.commit()
    second = kafka_log.transactional_producer(name)
    with pytest.raises(FencedError):
        first.begin()
        first.produce(topic, b"u", b"lost")
        first.commit()
    second.begin()
    second.produce(topic, b"u", b"two")
    second.commit()
    reader = kafka_log.reader()
    reader.assign({TopicPartition(topic, 0): 0})
    assert [message.value for message in read(reader, 2)] == [b"one", b"two"]


def test_a_transaction_the_broker_cannot_take_is_dropped_whole_and_a_later_one_goes_through(
    kafka_log: KafkaLogFactory,
) -> None:
    topic, group = new("t"), new("g")
    kafka_log.create_topic(topic, 1, {"max.message.bytes": "2000"})
    at = TopicPartition(topic, 0)
    member = kafka_log.member(group, "m", [topic])
    assigned(member, partitions=1)
    transactional_id = new("x")
    producer = kafka_log.transactional_producer(transactional_id)

    def write(size: int) -> None:
        producer.begin()
        producer.produce(topic, b"u", b"small")
        producer.produce(topic, b"u", bytes(size))
        producer.send_offsets({at: OffsetAndMetadata(size)}, member)
        producer.commit()

    with pytest.raises((TransactionAbortedError, FencedError)) as refused:
        write(10_000)
    if refused.type is FencedError:
        # kafka-python may ask for a new epoch while its offsets are on their way, and so fence itself: a joiner then
        # ends without a commit, and the next one goes on.
        assert kafka_log.config.adapter == "kafka-python"
        producer = kafka_log.transactional_producer(transactional_id)
    assert member.committed([at]) == {at: None}
    for attempt in range(3):  # after a refusal both clients need a transaction to find their numbers again
        try:
            write(10)
            break
        except TransactionAbortedError:
            assert attempt < 2
            assert member.committed([at]) == {at: None}
    assert member.committed([at]) == {at: OffsetAndMetadata(10)}
    reader = kafka_log.reader()
    reader.assign({at: 0})
    assert [len(message.value) for message in read(reader, 2)] == [5, 10]


def test_offsets_and_metadata_of_one_client_are_read_by_the_other(kafka_log: KafkaLogFactory) -> None:
    topic, group = new("t"), new("g")
    kafka_log.create_topic(topic, 1)
    at = TopicPartition(topic, 0)
    member = kafka_log.member(group, "m", [topic])
    assigned(member, partitions=1)
    producer = kafka_log.transactional_producer(new("x"))
    committed = OffsetAndMetadata(3, '{"next":5,"name":"größe"}')
    producer.begin()
    producer.send_offsets({at: committed}, member)
    producer.commit()
    member.close()
    other = "confluent" if kafka_log.config.adapter == "kafka-python" else "kafka-python"
    successor = kafka_adapter.group_member(replace(kafka_log.config, adapter=other), group, [topic])
    try:
        assert successor.committed([at]) == {at: committed}
    finally:
        successor.close()


def test_an_offset_that_does_not_exist_is_told(kafka_log: KafkaLogFactory, wait_until: WaitUntil) -> None:
    topic = new("t")
    kafka_log.create_topic(topic, 1)
    reader = kafka_log.reader()
    reader.assign({TopicPartition(topic, 0): 1_000})

    def is_told() -> bool:
        try:
            return bool(reader.poll(10, 50))
        except LogUnavailableError as error:
            assert "\n" not in str(error)
            return topic in str(error)

    wait_until(is_told, "the topic is named")


def test_a_partition_that_does_not_exist_is_told(kafka_log: KafkaLogFactory) -> None:
    if kafka_log.config.adapter == "confluent":
        pytest.skip("librdkafka waits half a minute for a partition to appear before it tells")
    topic = new("t")
    kafka_log.create_topic(topic, 1)
    with pytest.raises(LogUnavailableError, match=rf"{topic}\[1\] does not exist"):
        kafka_log.reader().assign({TopicPartition(topic, 0): 0, TopicPartition(topic, 1): 0})


def test_the_ends_of_a_partition_that_does_not_exist_are_an_error_of_one_line(
    kafka_log: KafkaLogFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.kafka_log.REQUEST_TIMEOUT_S", 1.0)
    monkeypatch.setattr("stream.kafka_python_log.REQUEST_TIMEOUT_S", 1.0)
    topic = new("t")
    kafka_log.create_topic(topic, 1)
    with pytest.raises(LogUnavailableError, match=topic) as error:
        kafka_log.reader().end_offsets([TopicPartition(topic, 7)])
    assert "\n" not in str(error.value)


def test_what_cannot_be_sent_is_counted_and_does_not_raise(kafka_log: KafkaLogFactory, wait_until: WaitUntil) -> None:
    topic = new("t")
    kafka_log.create_topic(topic, 1, {"max.message.bytes": "2000"})
    producer = kafka_log.producer()
    assert producer.produce(topic, b"u", bytes(10_000))
    assert producer.flush(10_000) == 0

    def is_counted() -> bool:
        producer.poll()
        return producer.num_failed == 1

    wait_until(is_counted, "the large one is given up")
    assert producer.produce(topic, b"u", b"small")
    assert producer.flush(10_000) == 0
    reader = kafka_log.reader()
    reader.assign({TopicPartition(topic, 0): 0})
    assert [message.value for message in read(reader, 1)] == [b"small"]
    assert producer.num_failed == 1


def test_two_clients_in_one_group_share_by_the_same_numbers(kafka_log: KafkaLogFactory) -> None:
    """A change of the adapter needs no stop: both speak the range assignor of the same protocol."""
    topics, group = [new("t"), new("t")], new("g")
    for topic in topics:
        kafka_log.create_topic(topic, 2)
    one = kafka_log.member(group, "one", topics)
    other = "confluent" if kafka_log.config.adapter == "kafka-python" else "kafka-python"
    two: GroupMember = kafka_adapter.group_member(replace(kafka_log.config, adapter=other), group, topics)
    try:
        owned = assigned(one, two, partitions=4)
    finally:
        two.close()
    for mine in owned:
        assert len({at.partition for at in mine}) == 1
    assert owned[0].isdisjoint(owned[1])
