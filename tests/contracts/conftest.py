"""The implementations that the contract suites run on."""

from collections.abc import Iterator

import pytest

from stream.log import KafkaConfig
from tests.contracts.kafka_factory import KafkaLogFactory
from tests.contracts.log_factory import LogFactory, MemoryLogFactory


@pytest.fixture(params=["memory", "noida", pytest.param("apache", marks=pytest.mark.integration)])
def log(request: pytest.FixtureRequest) -> Iterator[LogFactory]:
    """Each log in turn: the in-memory one, the embedded broker, and Apache Kafka where KAFKA_HOME names one."""
    if request.param == "memory":
        yield MemoryLogFactory()
        return
    factory = KafkaLogFactory(KafkaConfig(bootstrap_servers=request.getfixturevalue(f"{request.param}_broker")))
    yield factory
    factory.close()
