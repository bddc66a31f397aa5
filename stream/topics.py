"""The topics of a run: create them, look at them, say what does not fit, and how far a group is behind."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
from kafka import IsolationLevel, KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic, OffsetSpec
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorError,
    TopicAlreadyExistsError,
)

from stream.exceptions import CopartitionError, LogUnavailableError
from stream.kafka_python_client import build_client, common_settings
from stream.log import FEEDBACK, IMPRESSIONS, TOPICS, KafkaConfig, TopicPartition, topic_name
from stream.offsets import Progress

_LOG = logging.getLogger(__name__)

_TIMEOUT_MS = 10_000
_COORDINATOR_ATTEMPTS = 20
_COORDINATOR_WAIT_S = 0.5
_SETTINGS = ("retention.ms", "cleanup.policy", "max.message.bytes", "min.insync.replicas")


class TopicInfo(NamedTuple):
    """One topic as the broker has it."""

    name: str
    num_partitions: int
    """0 if the topic does not exist."""
    replication_factor: int
    retention_ms: int | None
    """How long messages are kept; -1 forever, None if the broker does not say. The same for what follows."""
    cleanup_policy: str | None = None
    """`delete` after the retention, or `compact` to the last message of each key."""
    max_message_bytes: int | None = None
    """The largest batch the broker takes."""
    min_insync_replicas: int | None = None
    """Copies that must have a message before a write with acks=all counts as done."""


class Lag(NamedTuple):
    """How far a group is in one partition."""

    next_offset: int
    """Offset of the first message the group has not dealt with."""
    end_offset: int
    """Offset after the last committed message, marks of transactions included."""

    @property
    def num_messages(self) -> int:
        """Messages still to be read; a few too many where transactions left marks."""
        return max(0, self.end_offset - self.next_offset)


def create_topics(config: KafkaConfig) -> list[str]:
    """Creates the topics that do not exist yet; returns their names.

    Raises:
        CopartitionError: topics that exist already do not have one number of partitions.
        LogUnavailableError: the broker does not answer, or refuses.
    """
    with _admin(config) as admin:
        missing = [info.name for info in _describe(admin, config) if info.num_partitions == 0]
        created = []
        for name in missing:
            try:
                admin.create_topics(
                    [NewTopic(name, config.num_partitions, config.replication_factor)], wait_for_metadata=True
                )
            except TopicAlreadyExistsError:
                continue  # another process was faster
            created.append(name)
        check_partitions(_describe(admin, config))
    for name in created:
        _LOG.info("created a topic. topic=%s partitions=%d", name, config.num_partitions)
    return created


def describe_topics(config: KafkaConfig) -> list[TopicInfo]:
    """Returns what the broker knows of each of our topics, in the order of `stream.log.TOPICS`."""
    with _admin(config) as admin:
        return _describe(admin, config)


def num_brokers(config: KafkaConfig) -> int | None:
    """Returns how many brokers the cluster has; None if it does not say (Kafka before 2.8, the embedded broker)."""
    with _admin(config) as admin:
        try:
            return len(admin.describe_cluster()["brokers"])
        except KeyError:  # kafka-python misreads the answer of those that do not know the question
            return None


def check_partitions(infos: Sequence[TopicInfo]) -> None:
    """Checks that what belongs to one user has the same partition number in every topic.

    Raises:
        CopartitionError: topics that exist differ in their number of partitions.
    """
    counts = {info.name: info.num_partitions for info in infos if info.num_partitions}
    if len(set(counts.values())) > 1:
        described = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CopartitionError(f"topics must have the same number of partitions, but have: {described}")


def retention_problems(config: KafkaConfig, infos: Sequence[TopicInfo], keep_ms: int) -> list[str]:
    """Returns a sentence for each input topic that forgets messages which open slates may still need.

    `keep_ms` is the longest label window with its grace: the joiner rebuilds its open slates from the log.
    """
    inputs = {topic_name(config, IMPRESSIONS), topic_name(config, FEEDBACK)}
    return [
        f"topic {info.name} keeps messages for {info.retention_ms} ms, but slates stay open for {keep_ms} ms: "
        f"raise its retention.ms above {keep_ms}"
        for info in infos
        if info.name in inputs and info.retention_ms is not None and 0 <= info.retention_ms <= keep_ms
    ]


def topic_lag(config: KafkaConfig, group_id: str) -> dict[TopicPartition, Lag]:
    """Returns how far a consumer group is in each partition it has committed; empty if it never did.

    A joiner commits the oldest offset it would need for a restart; how far it has read is in the metadata.
    """
    with _admin(config) as admin:
        committed = _group_offsets(admin, group_id)
        if not committed:
            return {}
        ends = admin.list_partition_offsets(
            {partition: OffsetSpec.LATEST for partition in committed}, isolation_level=IsolationLevel.READ_COMMITTED
        )
    return {
        TopicPartition(partition.topic, partition.partition): Lag(
            next_offset=_next_offset(found.offset, found.metadata), end_offset=ends[partition].offset
        )
        for partition, found in committed.items()
    }


def _group_offsets(admin: KafkaAdminClient, group_id: str) -> Any:
    """Returns what a group has committed; waits while a cluster that is asked for the first time makes room for it."""
    for _ in range(_COORDINATOR_ATTEMPTS - 1):
        try:
            return admin.list_group_offsets(group_id)[group_id]
        except (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError):
            time.sleep(_COORDINATOR_WAIT_S)
    return admin.list_group_offsets(group_id)[group_id]


def _next_offset(offset: int, metadata: str) -> int:
    try:
        # confluent-kafka sends a string's closing NUL along, and takes it off again when it reads.
        return msgspec.json.decode(metadata.rstrip("\0"), type=Progress).next
    except msgspec.MsgspecError:
        return offset  # another program's commit: its offset says it all


def _describe(admin: KafkaAdminClient, config: KafkaConfig) -> list[TopicInfo]:
    names = [topic_name(config, topic) for topic in TOPICS]
    partitions = {topic["name"]: topic["partitions"] for topic in admin.describe_topics(names)}
    existing = [name for name in names if partitions.get(name)]
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, list(_SETTINGS)) for name in existing]
    settings = admin.describe_configs(resources, config_filter="all")["topic"] if resources else {}
    infos = []
    for name in names:
        found = partitions.get(name) or []
        retention, cleanup, max_bytes, min_insync = (
            settings.get(name, {}).get(setting, {}).get("value") for setting in _SETTINGS
        )
        infos.append(
            TopicInfo(
                name,
                num_partitions=len(found),
                replication_factor=len(found[0]["replica_nodes"]) if found else 0,
                retention_ms=_integer(retention),
                cleanup_policy=cleanup,
                max_message_bytes=_integer(max_bytes),
                min_insync_replicas=_integer(min_insync),
            )
        )
    return infos


def _integer(value: str | None) -> int | None:
    return int(value) if value is not None else None


@contextmanager
def _admin(config: KafkaConfig) -> Iterator[KafkaAdminClient]:
    """Opens an admin client; its errors become one sentence."""
    settings = {**common_settings(config), "client_id": "freshrank-topics", "request_timeout_ms": _TIMEOUT_MS}
    admin: KafkaAdminClient = build_client(config, KafkaAdminClient, settings)
    try:
        yield admin
    except KafkaError as error:
        raise LogUnavailableError(f"kafka at {config.bootstrap_servers} refused: {error}") from error
    finally:
        admin.close()
