"""Who takes a partition over begins where the last transaction ends, even one that is still open (KIP-447).

The embedded broker does not keep this: it tells what was committed before. Exactly once is a promise on Apache Kafka.
"""

from threading import Timer
from uuid import uuid4

from stream.log import OffsetAndMetadata, TopicPartition
from tests.contracts.kafka_factory import KafkaLogFactory
from tests.contracts.log_factory import LogFactory, MemoryLogFactory, assigned

_COMMIT_AFTER_S = 2.0


def test_offsets_sent_before_a_member_left_are_waited_for_on_kafka(kafka_log: KafkaLogFactory) -> None:
    take_over(kafka_log)


def test_offsets_sent_before_a_member_left_are_waited_for_in_memory() -> None:
    take_over(MemoryLogFactory())


def take_over(log: LogFactory) -> None:
    topic, group = f"t-{uuid4().hex[:8]}", f"g-{uuid4().hex[:8]}"
    log.create_topic(topic, 1)
    at = TopicPartition(topic, 0)
    one = log.member(group, "one", [topic])
    assigned(one, partitions=1)
    producer = log.transactional_producer(f"x-{uuid4().hex[:8]}")
    producer.begin()
    producer.send_offsets({at: OffsetAndMetadata(7, "sent")}, one)
    one.close()
    commit = Timer(_COMMIT_AFTER_S, producer.commit)
    commit.start()
    two = log.member(group, "two", [topic])
    assigned(two, partitions=1)
    assert two.committed([at]) == {at: OffsetAndMetadata(7, "sent")}
    commit.join()
    two.close()
    producer.close()
