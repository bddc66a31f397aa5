"""The joiner on the kafka-python client, through the same kills and rebalance as `test_joiner_kafka`."""

import uuid

import pytest

from stream.log import KafkaConfig
from stream.topics import create_topics
from tests.integration.test_joiner_kafka import joiners, test_no_label_is_lost_or_double_through_kills_and_a_rebalance

__all__ = ["joiners", "test_no_label_is_lost_or_double_through_kills_and_a_rebalance"]
pytestmark = pytest.mark.integration


@pytest.fixture
def kafka(apache_broker: str) -> KafkaConfig:
    config = KafkaConfig(
        bootstrap_servers=apache_broker, topic_prefix=f"t{uuid.uuid4().hex[:8]}-", adapter="kafka-python"
    )
    create_topics(config)
    return config
