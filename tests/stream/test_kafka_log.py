"""What only the log on Kafka has, beyond the contract of `tests/contracts/test_log.py`: groups, outages, settings."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from stream import kafka_log, kafka_producer
from stream.exceptions import FencedError, LogUnavailableError
from stream.kafka_client import RepeatFilter
from stream.kafka_log import KafkaGroupMember, KafkaReader
from stream.kafka_producer import KafkaProducer, KafkaTransactionalProducer
from stream.log import (
    EXAMPLES,
    FEEDBACK,
    IMPRESSIONS,
    KafkaConfig,
    Message,
    OffsetAndMetadata,
    TopicPartition,
    topic_name,
)

WaitUntil = Callable[..., None]
NOWHERE = KafkaConfig(bootstrap_servers="127.0.0.1:9")


class Clients:
    """Makes clients of one broker and closes them all at the end."""

    def __init__(self, config: KafkaConfig, wait_until: WaitUntil) -> None:
        self.config = config
        self.wait_until = wait_until
        self.impressions = topic_name(config, IMPRESSIONS)
        self.feedback = topic_name(config, FEEDBACK)
        self.examples = topic_name(config, EXAMPLES)
        self.group = f"{config.topic_prefix}group"
        self.made: list[KafkaGroupMember | KafkaReader | KafkaTransactionalProducer] = []

    def member(self, instance_id: str | None = None) -> KafkaGroupMember:
        member = KafkaGroupMember(self.config, self.group, [self.impressions, self.feedback], instance_id=instance_id)
        self.made.append(member)
        return member

    def reader(self) -> KafkaReader:
        reader = KafkaReader(self.config)
        self.made.append(reader)
        return reader

    def transactional(self, name: str = "one") -> KafkaTransactionalProducer:
        producer = KafkaTransactionalProducer(self.config, f"{self.config.topic_prefix}{name}")
        self.made.append(producer)
        return producer

    def send(self, topic: str, values: Sequence[bytes], partition_key: bytes = b"k") -> None:
        producer = KafkaProducer(self.config)
        assert all(producer.produce(topic, partition_key, value) for value in values)
        assert producer.flush(20_000) == 0
        assert producer.num_failed == 0

    def assigned(self, *members: KafkaGroupMember, num_each: int) -> list[set[TopicPartition]]:
        """Polls the members until each owns so many partitions; returns what each owns."""
        owned: list[set[TopicPartition]] = [set() for _ in members]

        def settled() -> bool:
            for member, own in zip(members, owned, strict=True):
                poll = member.poll(10, 20)
                own -= set(poll.revoked)
                own |= set(poll.assigned)
            return all(len(own) == num_each for own in owned)

        self.wait_until(settled, f"{len(members)} members own {num_each} partitions each", timeout_s=40)
        return owned

    def receive(self, poll: Callable[[], Sequence[Message]], count: int) -> list[Message]:
        got: list[Message] = []

        def enough() -> bool:
            got.extend(poll())
            return len(got) >= count

        self.wait_until(enough, f"{count} messages")
        return got


@pytest.fixture
def clients(kafka: KafkaConfig, wait_until: WaitUntil) -> Iterator[Clients]:
    clients = Clients(kafka, wait_until)
    yield clients
    for client in reversed(clients.made):
        client.close()


def test_a_poll_returns_at_most_what_was_asked_for(clients: Clients) -> None:
    clients.send(clients.feedback, [str(n).encode() for n in range(50)])
    reader = clients.reader()
    reader.assign({TopicPartition(clients.feedback, n): 0 for n in range(2)})
    sizes: list[int] = []

    def poll() -> list[Message]:
        got = reader.poll(7, 50)
        sizes.append(len(got))
        return got

    assert [m.value for m in clients.receive(poll, 50)] == [str(n).encode() for n in range(50)]
    assert max(sizes) == 7


def test_an_aborted_transaction_is_never_seen_and_its_marks_are_not_messages(clients: Clients) -> None:
    producer, reader = clients.transactional(), clients.reader()
    for value, end in ((b"first", producer.commit), (b"never", producer.abort), (b"last", producer.commit)):
        producer.begin()
        producer.produce(clients.examples, b"k", value)
        end()
    where = [TopicPartition(clients.examples, n) for n in range(2)]
    reader.assign(dict.fromkeys(where, 0))
    got = clients.receive(lambda: reader.poll(10, 50), 2)
    assert [m.value for m in got] == [b"first", b"last"]
    written = TopicPartition(clients.examples, got[0].partition)
    clients.wait_until(
        lambda: reader.poll(10, 50) == [] and reader.end_offsets([written])[written] == got[1].offset + 1,
        "the end offset is the one after the last message",
    )


def test_ends_are_told_right_also_between_a_seek_and_the_next_poll(clients: Clients) -> None:
    clients.send(clients.feedback, [b"0", b"1"])
    member = clients.member()
    [owned] = clients.assigned(member, num_each=4)
    for partition in owned:
        member.seek(partition, 0)
    [first, _] = clients.receive(lambda: member.poll(10, 50).messages, 2)
    where = TopicPartition(first.topic, first.partition)
    assert member.poll(10, 200).messages == []
    assert member.end_offsets([where]) == {where: 2}
    member.seek(where, 0)
    assert member.end_offsets([where]) == {where: 2}


def test_a_second_member_of_the_same_instance_takes_over_and_fences_the_first(clients: Clients) -> None:
    old = clients.member("instance")
    clients.assigned(old, num_each=4)
    new = clients.member("instance")
    clients.assigned(new, num_each=4)

    def is_fenced() -> bool:
        try:
            return bool(old.poll(10, 50).messages)
        except FencedError:
            return True

    clients.wait_until(is_fenced, "the old member is told")


@pytest.mark.parametrize("kafka", [pytest.param("apache", marks=pytest.mark.integration)], indirect=True)
def test_a_stale_generation_of_the_group_cannot_commit(clients: Clients) -> None:
    """The embedded broker does not check the generation: only Apache Kafka is exact when a member is merely slow."""
    old, producer = clients.member("instance"), clients.transactional("a")
    clients.assigned(old, num_each=4)
    producer.begin()
    producer.produce(clients.examples, b"k", b"too late")
    clients.assigned(clients.member("instance"), num_each=4)
    with pytest.raises(FencedError):
        producer.send_offsets({TopicPartition(clients.impressions, 0): OffsetAndMetadata(1)}, old)


def test_two_members_share_both_topics_by_the_same_numbers_and_revoked_messages_do_not_leak(clients: Clients) -> None:
    first = clients.member()
    [owned] = clients.assigned(first, num_each=4)
    for partition in owned:
        first.seek(partition, 0)
    for key in (b"user-0", b"user-1", b"user-2"):
        clients.send(clients.impressions, [b"v"] * 10, key)
    clients.receive(lambda: first.poll(100, 50).messages, 30)
    second = clients.member()
    leaked: list[Message] = []
    shares: dict[KafkaGroupMember, set[TopicPartition]] = {first: set(owned), second: set()}

    def settled() -> bool:
        for member, own in shares.items():
            poll = member.poll(100, 20)
            own -= set(poll.revoked)
            own |= set(poll.assigned)
            leaked.extend(m for m in poll.messages if TopicPartition(m.topic, m.partition) not in own)
        return [len(own) for own in shares.values()] == [2, 2]

    clients.send(clients.impressions, [b"more"] * 10, b"user-0")
    clients.wait_until(settled, "both members own two partitions", timeout_s=40)
    assert leaked == []
    for own in shares.values():
        assert len({partition.partition for partition in own}) == 1
    assert not shares[first] & shares[second]


def test_an_offset_that_the_log_does_not_hold_is_told(clients: Clients) -> None:
    reader = clients.reader()
    reader.assign({TopicPartition(clients.examples, 0): 1_000})

    def is_told() -> bool:
        try:
            return bool(reader.poll(10, 50))
        except LogUnavailableError as error:
            assert f"{clients.examples}[0]" in str(error)
            return True

    clients.wait_until(is_told, "the missing offset is told")


@pytest.mark.parametrize("make", [KafkaReader, lambda config: KafkaTransactionalProducer(config, "t")])
def test_no_broker_at_start_is_one_sentence(make: Callable[[KafkaConfig], object], monkeypatch) -> None:
    monkeypatch.setattr(kafka_log, "REQUEST_TIMEOUT_S", 0.3)
    monkeypatch.setattr(kafka_producer, "REQUEST_TIMEOUT_S", 0.3)
    with pytest.raises(LogUnavailableError, match=r"kafka at 127\.0\.0\.1:9 does not answer while connecting"):
        make(NOWHERE)


def test_without_a_broker_a_producer_buffers_up_to_its_bound_then_says_no_and_counts(wait_until: WaitUntil) -> None:
    producer = KafkaProducer(NOWHERE, max_messages=3, message_timeout_ms=400)
    assert [producer.produce("t", b"k", b"v") for _ in range(4)] == [True, True, True, False]
    assert producer.num_queued == 3

    def failed() -> bool:
        producer.poll()
        return producer.num_failed == 3

    wait_until(failed, "the buffered messages are given up")
    assert producer.num_errors > 0
    assert producer.flush(0) == 0


def test_a_message_too_large_to_send_is_counted_and_does_not_raise() -> None:
    producer = KafkaProducer(NOWHERE)
    assert producer.produce("t", b"k", bytes(2_000_000))
    assert producer.num_failed == 1


@pytest.mark.parametrize(
    ("client", "named"),
    [({"enable.auto.commit": "true"}, "enable.auto.commit"), ({"no.such.setting": "1"}, "no.such.setting")],
)
def test_a_setting_that_would_break_the_protocol_or_that_nobody_knows_is_refused(
    client: dict[str, str], named: str
) -> None:
    with pytest.raises(ValueError, match=rf"kafka\.client: .*{named}"):
        KafkaReader(KafkaConfig(client=client))


def test_repeated_lines_of_the_client_pass_once_in_a_while_with_their_number() -> None:
    repeats = RepeatFilter(interval_s=30)

    def passes(sort: str, at_s: float) -> str | None:
        record = logging.LogRecord("n", logging.ERROR, "p", 1, "%s [%s] gone", (sort, "c"), None)
        record.created = at_s
        return record.getMessage() if repeats.filter(record) else None

    assert [passes("FAIL", 0), passes("FAIL", 1), passes("TXN", 2), passes("FAIL", 29.9)] == [
        "FAIL [c] gone",
        None,
        "TXN [c] gone",
        None,
    ]
    assert passes("FAIL", 30) == "FAIL [c] gone (and 2 more like this)"


def test_a_member_that_leaves_before_it_was_told_of_its_partitions_leaves_quietly(clients: Clients) -> None:
    """The client tells of a rebalance from within `close` then, when nothing can be assigned any more."""
    for wait_s in (0.0, 0.2, 0.5, 1.0):
        member = KafkaGroupMember(clients.config, clients.group, [clients.impressions, clients.feedback])
        time.sleep(wait_s)
        member.close()
