"""What only the kafka-python clients have, beyond the contracts: bounds on waiting, and sentences without a broker."""

import threading
from collections.abc import Callable

import pytest
from kafka.errors import (
    CommitFailedError,
    KafkaError,
    KafkaTimeoutError,
    ProducerFencedError,
    TopicAuthorizationFailedError,
)

from stream import kafka_adapter
from stream.exceptions import FencedError, LogUnavailableError
from stream.kafka_log import KafkaGroupMember
from stream.kafka_python_client import translate, within
from stream.kafka_python_log import KafkaPythonGroupMember
from stream.kafka_python_producer import KafkaPythonProducer
from stream.log import KafkaConfig

NOWHERE = KafkaConfig(bootstrap_servers="127.0.0.1:9", adapter="kafka-python")


@pytest.mark.parametrize(
    "make",
    [
        kafka_adapter.reader,
        kafka_adapter.producer,
        lambda config: kafka_adapter.group_member(config, "group", ["topic"]),
        lambda config: kafka_adapter.transactional_producer(config, "id"),
    ],
)
def test_no_broker_at_start_is_one_sentence(make: Callable[[KafkaConfig], object]) -> None:
    with pytest.raises(LogUnavailableError, match=r"^kafka at 127\.0\.0\.1:9 does not answer while connecting \("):
        make(NOWHERE)


def test_a_step_without_an_end_is_given_up() -> None:
    forever = threading.Event()
    with pytest.raises(LogUnavailableError, match="does not answer while committing"):
        within(NOWHERE, 0.01, "committing", forever.wait)
    forever.set()


def test_a_step_with_an_end_gives_its_result_or_its_error() -> None:
    assert within(NOWHERE, 10, "asking", lambda: 7) == 7
    with pytest.raises(KafkaTimeoutError):
        within(NOWHERE, 10, "asking", lambda: (_ for _ in ()).throw(KafkaTimeoutError("too late")))


@pytest.mark.parametrize(
    ("error", "ours", "told"),
    [
        (ProducerFencedError(), FencedError, "another process has taken over while committing"),
        (CommitFailedError(), FencedError, "another process has taken over while committing"),
        (KafkaError("we are in an error state: ProducerFencedError"), FencedError, "another process has taken over"),
        (KafkaTimeoutError("too late"), LogUnavailableError, "does not answer while committing"),
        (TopicAuthorizationFailedError("t"), LogUnavailableError, "refuses while committing"),
    ],
)
def test_errors_say_what_they_mean_for_the_caller(error: KafkaError, ours: type[Exception], told: str) -> None:
    translated = translate(NOWHERE, error, "committing")
    assert type(translated) is ours
    assert told in str(translated)


def test_the_adapter_is_the_one_that_is_configured(noida_broker: str) -> None:
    classes = {"confluent": KafkaGroupMember, "kafka-python": KafkaPythonGroupMember}
    for adapter, expected in classes.items():
        config = KafkaConfig(bootstrap_servers=noida_broker, adapter=adapter)  # type: ignore[arg-type]
        member = kafka_adapter.group_member(config, "group", ["topic"])
        assert type(member) is expected
        member.close()


def test_a_full_buffer_is_said_and_does_not_block(noida_broker: str) -> None:
    producer = KafkaPythonProducer(KafkaConfig(bootstrap_servers=noida_broker), max_messages=0)
    assert not producer.produce("topic", b"u", b"value")
    assert (producer.num_queued, producer.num_failed) == (0, 0)
    assert producer.flush(1_000) == 0
    producer.close()


@pytest.mark.integration
def test_a_message_to_a_topic_that_does_not_exist_is_counted(apache_broker: str) -> None:
    producer = KafkaPythonProducer(KafkaConfig(bootstrap_servers=apache_broker))
    assert producer.produce("no-such-topic", b"u", b"value")
    assert (producer.num_queued, producer.num_failed) == (0, 1)
    producer.close()
