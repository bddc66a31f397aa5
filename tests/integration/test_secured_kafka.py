"""Every client through TLS and SASL on a real broker, and what it says when it is not let in."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from stream import kafka_adapter
from stream.exceptions import LogUnavailableError
from stream.log import EXAMPLES, FEEDBACK, KafkaConfig, OffsetAndMetadata, TopicPartition, topic_name
from stream.topics import create_topics, describe_topics, topic_lag
from tests.contracts.log_factory import assigned, read
from tests.integration.secured_kafka import SecuredKafka, start_secured_kafka
from tests.integration.test_agents import Agents

WaitUntil = Callable[..., None]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]  # what is refused must not hang

ADAPTERS = ["confluent", "kafka-python"]
LISTENERS = ["login", "tls", "both"]


@pytest.fixture(scope="module")
def secured(
    kafka_home: Path,
    free_port: Callable[[], int],
    wait_until: WaitUntil,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SecuredKafka]:
    yield from start_secured_kafka(kafka_home, tmp_path_factory.mktemp("secured"), free_port, wait_until)


def config_for(secured: SecuredKafka, listener: str, adapter: str, **changed: str) -> KafkaConfig:
    return KafkaConfig(
        bootstrap_servers=secured.servers[listener],
        topic_prefix=f"t{uuid.uuid4().hex[:8]}-",
        num_partitions=1,
        adapter=adapter,  # type: ignore[arg-type]
        client={**secured.client[listener], **changed},
    )


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("listener", LISTENERS)
def test_every_client_gets_in(secured: SecuredKafka, listener: str, adapter: str) -> None:
    kafka = config_for(secured, listener, adapter)
    create_topics(kafka)
    feedback, examples = (TopicPartition(topic_name(kafka, topic), 0) for topic in (FEEDBACK, EXAMPLES))
    group = f"{kafka.topic_prefix}group"
    producer = kafka_adapter.producer(kafka)
    assert producer.produce(feedback.topic, b"u", b"clicked")
    assert producer.flush(20_000) == 0
    with ExitStack() as stack:
        member = stack.enter_context(closing(kafka_adapter.group_member(kafka, group, [feedback.topic])))
        assigned(member, partitions=1)
        member.seek(feedback, 0)
        assert [message.value for message in read(member, 1)] == [b"clicked"]
        transactional = stack.enter_context(closing(kafka_adapter.transactional_producer(kafka, f"{group}-t")))
        transactional.begin()
        transactional.produce(examples.topic, b"u", b"labelled")
        transactional.send_offsets({feedback: OffsetAndMetadata(1, "read")}, member)
        transactional.commit()
        assert member.committed([feedback]) == {feedback: OffsetAndMetadata(1, "read")}
        reader = stack.enter_context(closing(kafka_adapter.reader(kafka)))
        reader.assign({examples: 0})
        assert [message.value for message in read(reader, 1)] == [b"labelled"]
    assert topic_lag(kafka, group)[feedback].num_messages == 0
    if close := getattr(producer, "close", None):
        close()


@pytest.mark.parametrize("listener", ["login", "both"])
def test_the_agents_get_in(
    secured: SecuredKafka, listener: str, redis_server: str, tmp_path: Path, wait_until: WaitUntil
) -> None:
    kafka = config_for(secured, listener, "confluent")
    create_topics(kafka)
    agents = Agents(kafka, redis_server, tmp_path, wait_until)
    try:
        agents.send(range(5))
        wait_until(agents.is_up_to_date, "the sequences are in Redis", timeout_s=60)
    finally:
        assert agents.stop() == 0


CLIENTS: dict[str, Callable[[KafkaConfig], object]] = {
    "admin": describe_topics,
    "member": lambda kafka: kafka_adapter.group_member(kafka, "group", ["topic"]),
    "reader": kafka_adapter.reader,
    "transactional producer": lambda kafka: kafka_adapter.transactional_producer(kafka, "id"),
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    ("listener", "changed", "told"),
    [
        ("login", {"sasl.password": "guessed"}, "uthentication failed"),
        ("both", {"sasl.password": "guessed"}, "uthentication failed"),
        ("tls", {"ssl.ca.location": "stranger"}, "certificate verify failed"),
        ("both", {"ssl.ca.location": "stranger"}, "certificate verify failed"),
    ],
)
def test_who_is_not_let_in_or_does_not_trust_the_broker_is_told_why_in_one_line(
    secured: SecuredKafka, client: str, adapter: str, listener: str, changed: dict[str, str], told: str
) -> None:
    if "ssl.ca.location" in changed:
        changed = {"ssl.ca.location": str(secured.stranger_ca)}
    kafka = config_for(secured, listener, adapter, **changed)
    with pytest.raises(LogUnavailableError, match=f"kafka at {kafka.bootstrap_servers} ") as error:
        CLIENTS[client](kafka)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert "guessed" not in str(error.value)
