"""Each requirement on the topics of a run, at its edge."""

from typing import Any

import pytest

from stream.examples import MAX_MESSAGE_BYTES
from stream.log import TOPICS, KafkaConfig
from stream.topic_settings import setting_problems, unknown_settings
from stream.topics import TopicInfo

KEEP_MS = 10_000


def infos(topic: str = "", **changed: Any) -> list[TopicInfo]:
    """Five topics on which all is well, but for what is changed of one of them."""
    fine = TopicInfo("", 2, 3, KEEP_MS + 1, "delete", MAX_MESSAGE_BYTES, 2)
    return [fine._replace(name=name, **(changed if name == topic else {})) for name in TOPICS]


def problems(found: list[TopicInfo], num_brokers: int | None = 3) -> list[str]:
    return setting_problems(KafkaConfig(), found, keep_ms=KEEP_MS, num_brokers=num_brokers)


def test_topics_that_fit_have_no_problem() -> None:
    assert problems(infos()) == []
    assert unknown_settings(infos(), num_brokers=3) == []


@pytest.mark.parametrize(
    ("topic", "changed", "told"),
    [
        ("outcomes", {"num_partitions": 0}, "topic outcomes does not exist"),
        ("examples", {"num_partitions": 3}, "the same number of partitions, but have: impressions 2, feedback 2, exam"),
        ("impressions", {"retention_ms": KEEP_MS}, "raise its retention.ms above 10000"),
        ("feedback", {"cleanup_policy": "compact,delete"}, "topic feedback has cleanup.policy=compact,delete"),
        ("examples", {"max_message_bytes": MAX_MESSAGE_BYTES - 1}, "raise its max.message.bytes"),
        ("examples", {"replication_factor": 1, "min_insync_replicas": 1}, "1 copy on a cluster of 3 brokers"),
        ("feedback", {"min_insync_replicas": 3}, "one broker less stops all writing: set it to 2"),
        ("feedback", {"min_insync_replicas": 1}, "a write may be in one place only: set it to 2"),
        ("feedback", {"replication_factor": 2, "min_insync_replicas": 2}, "set it to 1"),
    ],
)
def test_what_does_not_fit_is_one_sentence_with_its_remedy(topic: str, changed: dict[str, Any], told: str) -> None:
    [problem] = problems(infos(topic, **changed))
    assert told in problem


@pytest.mark.parametrize(
    ("topic", "changed", "num_brokers"),
    [
        ("examples", {"retention_ms": 1}, 3),  # read once, by the trainer; not rebuilt from
        ("impressions", {"retention_ms": -1}, 3),
        ("impressions", {"replication_factor": 1, "min_insync_replicas": 1}, 1),
        ("impressions", {"replication_factor": 2, "min_insync_replicas": 1}, 2),
        ("impressions", {"replication_factor": 1, "min_insync_replicas": 1}, None),
    ],
)
def test_what_is_allowed(topic: str, changed: dict[str, Any], num_brokers: int | None) -> None:
    assert problems(infos(topic, **changed), num_brokers) == []


def test_what_the_broker_does_not_tell_is_said_and_is_no_problem() -> None:
    found = infos("feedback", cleanup_policy=None, min_insync_replicas=None)
    assert problems(found) == []
    assert unknown_settings(found, num_brokers=None) == [
        "the broker does not tell how many there are: copies not checked",
        "topic feedback: the broker does not tell cleanup.policy, min.insync.replicas: not checked",
    ]
