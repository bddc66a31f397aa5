"""What the topics of a run must be like: one function per requirement, pure, each problem one sentence with its remedy.

| requirement | because otherwise |
|---|---|
| every topic exists | a process stops at its start |
| the same number of partitions | a user's slates and feedback do not meet |
| inputs are kept longer than slates stay open | a restart cannot rebuild what is open |
| deleted by age, never compacted | every topic has the user as its key: only a user's last message would stay |
| messages of our size are taken | transactions with a large slate fail again and again |
| with several brokers, copies of which one may fail | one lost broker takes messages with it, or stops all writing |
"""

from collections.abc import Iterator, Sequence

from stream.examples import MAX_MESSAGE_BYTES
from stream.exceptions import CopartitionError
from stream.log import KafkaConfig
from stream.topics import TopicInfo, check_partitions, retention_problems

_ENOUGH_COPIES = 3
"""From here on a write can wait for a second copy and still go on while one broker is down."""


def setting_problems(
    config: KafkaConfig, infos: Sequence[TopicInfo], *, keep_ms: int, num_brokers: int | None
) -> list[str]:
    """Returns a sentence for each requirement that a topic does not meet; none if all is well.

    `keep_ms` is how long inputs are needed: the longest label window with all that is added to it. Without
    `num_brokers`, copies are not asked for.
    """
    problems = [
        f"topic {info.name} does not exist: create it with `freshrank topics create`"
        for info in infos
        if not info.num_partitions
    ]
    try:
        check_partitions(infos)
    except CopartitionError as error:
        problems.append(str(error))
    existing = [info for info in infos if info.num_partitions]
    problems += retention_problems(config, existing, keep_ms)
    for info in existing:
        problems += [*_cleanup(info), *_size(info), *_copies(info, num_brokers)]
    return problems


def unknown_settings(infos: Sequence[TopicInfo], num_brokers: int | None) -> list[str]:
    """Returns a sentence for what would have to be checked and the broker does not tell."""
    sentences = [] if num_brokers is not None else ["the broker does not tell how many there are: copies not checked"]
    for info in infos:
        told = {
            "retention.ms": info.retention_ms,
            "cleanup.policy": info.cleanup_policy,
            "max.message.bytes": info.max_message_bytes,
            "min.insync.replicas": info.min_insync_replicas,
        }
        hidden = [name for name, value in told.items() if value is None]
        if info.num_partitions and hidden:
            sentences.append(f"topic {info.name}: the broker does not tell {', '.join(hidden)}: not checked")
    return sentences


def _cleanup(info: TopicInfo) -> Iterator[str]:
    if info.cleanup_policy not in (None, "delete"):
        yield (
            f"topic {info.name} has cleanup.policy={info.cleanup_policy}, which keeps one message per user: set delete"
        )


def _size(info: TopicInfo) -> Iterator[str]:
    if info.max_message_bytes is not None and info.max_message_bytes < MAX_MESSAGE_BYTES:
        yield (
            f"topic {info.name} takes messages of {info.max_message_bytes} bytes, but ours have up to "
            f"{MAX_MESSAGE_BYTES}: raise its max.message.bytes"
        )


def _copies(info: TopicInfo, num_brokers: int | None) -> Iterator[str]:
    """A single broker has nothing to copy to; with more, losing one must lose nothing and stop nothing."""
    copies, least = info.replication_factor, info.min_insync_replicas
    if num_brokers is not None and num_brokers > 1 and copies < 2:
        yield f"topic {info.name} has {copies} copy on a cluster of {num_brokers} brokers: raise its replication factor"
    if least is not None and copies >= 2 and least >= copies:
        yield (
            f"topic {info.name} has min.insync.replicas={least} of {copies} copies, so that one broker less stops all "
            f"writing: set it to {copies - 1}"
        )
    if least is not None and copies >= _ENOUGH_COPIES and least < 2:
        yield (
            f"topic {info.name} has min.insync.replicas={least} of {copies} copies, so that a write may be in one "
            "place only: set it to 2"
        )
