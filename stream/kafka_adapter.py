"""The one place that knows which client library a run uses (`kafka.adapter`); each is imported only when chosen.

Arguments, results and errors are those of the protocols in `stream.log`, and the same whatever is chosen.
"""

from collections.abc import Sequence

from stream.log import GroupMember, KafkaConfig, Producer, Reader, TransactionalProducer


def group_member(
    config: KafkaConfig, group_id: str, topics: Sequence[str], *, instance_id: str | None = None
) -> GroupMember:
    """Returns a new member of a consumer group; `instance_id` (KIP-345) must be one process's own."""
    if config.adapter == "kafka-python":
        from stream.kafka_python_log import KafkaPythonGroupMember

        return KafkaPythonGroupMember(config, group_id, topics, instance_id=instance_id)
    from stream.kafka_log import KafkaGroupMember

    return KafkaGroupMember(config, group_id, topics, instance_id=instance_id)


def reader(config: KafkaConfig) -> Reader:
    """Returns a new reader of chosen partitions."""
    if config.adapter == "kafka-python":
        from stream.kafka_python_log import KafkaPythonReader

        return KafkaPythonReader(config)
    from stream.kafka_log import KafkaReader

    return KafkaReader(config)


def producer(config: KafkaConfig) -> Producer:
    """Returns a new producer that never waits."""
    if config.adapter == "kafka-python":
        from stream.kafka_python_producer import KafkaPythonProducer

        return KafkaPythonProducer(config)
    from stream.kafka_producer import KafkaProducer

    return KafkaProducer(config)


def transactional_producer(config: KafkaConfig, transactional_id: str) -> TransactionalProducer:
    """Returns a new transactional producer; it fences every earlier one of the same id."""
    if config.adapter == "kafka-python":
        from stream.kafka_python_producer import KafkaPythonTransactionalProducer

        return KafkaPythonTransactionalProducer(config, transactional_id)
    from stream.kafka_producer import KafkaTransactionalProducer

    return KafkaTransactionalProducer(config, transactional_id)
