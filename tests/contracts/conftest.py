"""The implementations that the contract suites run on."""

from collections.abc import Iterator

import pytest

from stream.log import KafkaConfig
from tests.contracts.kafka_factory import KafkaLogFactory
from tests.contracts.log_factory import LogFactory, MemoryLogFactory

_KAFKA = {
    "noida": ("noida_broker", "confluent"),
    "apache": ("apache_broker", "confluent"),
    "apache-kafka-python": ("apache_broker", "kafka-python"),
}
_BROKERS = [
    "noida",
    pytest.param("apache", marks=pytest.mark.integration),
    pytest.param("apache-kafka-python", marks=pytest.mark.integration),
]


@pytest.fixture(params=["memory", *_BROKERS])
def log(request: pytest.FixtureRequest) -> Iterator[LogFactory]:
    """Each log in turn: in memory, the embedded broker, and Apache Kafka (KAFKA_HOME) by each client."""
    if request.param == "memory":
        yield MemoryLogFactory()
        return
    broker, adapter = _KAFKA[request.param]
    factory = KafkaLogFactory(KafkaConfig(bootstrap_servers=request.getfixturevalue(broker), adapter=adapter))
    yield factory
    factory.close()


@pytest.fixture(params=_BROKERS[1:])
def kafka_log(request: pytest.FixtureRequest) -> Iterator[KafkaLogFactory]:
    """Apache Kafka by each client: for what the embedded broker and the one in memory do not do."""
    broker, adapter = _KAFKA[request.param]
    factory = KafkaLogFactory(KafkaConfig(bootstrap_servers=request.getfixturevalue(broker), adapter=adapter))
    yield factory
    factory.close()
