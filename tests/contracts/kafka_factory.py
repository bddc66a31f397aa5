"""The log on a Kafka broker, as the contract suite wants it."""

from collections.abc import Sequence

from confluent_kafka.admin import AdminClient, NewTopic

from stream.kafka_log import KafkaGroupMember, KafkaReader
from stream.kafka_producer import KafkaProducer, KafkaTransactionalProducer
from stream.log import KafkaConfig


class KafkaLogFactory:
    """Clients of one broker; `close` closes those that a test has left open."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._admin = AdminClient({"bootstrap.servers": config.bootstrap_servers, "broker.address.family": "v4"})
        self._made: list[KafkaGroupMember | KafkaReader | KafkaTransactionalProducer] = []

    def create_topic(self, topic: str, num_partitions: int) -> None:
        for created in self._admin.create_topics([NewTopic(topic, num_partitions, 1)]).values():
            created.result(30)

    def member(self, group: str, name: str, topics: Sequence[str]) -> KafkaGroupMember:
        member = KafkaGroupMember(self._config, group, topics)
        self._made.append(member)
        return member

    def reader(self) -> KafkaReader:
        reader = KafkaReader(self._config)
        self._made.append(reader)
        return reader

    def producer(self) -> KafkaProducer:
        return KafkaProducer(self._config)

    def transactional_producer(self, transactional_id: str) -> KafkaTransactionalProducer:
        producer = KafkaTransactionalProducer(self._config, transactional_id)
        self._made.append(producer)
        return producer

    def close(self) -> None:
        for client in reversed(self._made):
            client.close()
