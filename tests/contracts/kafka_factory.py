"""The log on a Kafka broker, as the contract suite wants it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from confluent_kafka.admin import AdminClient, NewTopic

from stream import kafka_adapter
from stream.kafka_client import client_settings
from stream.log import GroupMember, KafkaConfig, Producer, Reader, TransactionalProducer


class _Closes(Protocol):
    def close(self) -> None: ...


class KafkaLogFactory:
    """Clients of one broker; `close` closes those that a test has left open."""

    def __init__(self, config: KafkaConfig) -> None:
        self.config = config
        self._admin = AdminClient(client_settings(config, {}, {}))
        self._made: list[_Closes] = []

    def create_topic(self, topic: str, num_partitions: int, settings: Mapping[str, str] | None = None) -> None:
        wanted = NewTopic(topic, num_partitions, 1, config=dict(settings or {}))
        for created in self._admin.create_topics([wanted]).values():
            created.result(30)

    def member(self, group: str, name: str, topics: Sequence[str], *, instance_id: str | None = None) -> GroupMember:
        member = kafka_adapter.group_member(self.config, group, topics, instance_id=instance_id)
        self._made.append(member)
        return member

    def reader(self) -> Reader:
        reader = kafka_adapter.reader(self.config)
        self._made.append(reader)
        return reader

    def producer(self) -> Producer:
        producer = kafka_adapter.producer(self.config)
        close = getattr(producer, "close", None)  # librdkafka's ends with its last reference
        if close is not None:
            self._made.append(producer)  # type: ignore[arg-type]
        return producer

    def transactional_producer(self, transactional_id: str) -> TransactionalProducer:
        producer = kafka_adapter.transactional_producer(self.config, transactional_id)
        self._made.append(producer)
        return producer

    def close(self) -> None:
        for client in reversed(self._made):
            client.close()
