"""Creating and describing topics, and how far a group is behind, on both brokers."""

import uuid
from dataclasses import replace

import pytest

from stream.exceptions import CopartitionError, LogUnavailableError
from stream.kafka_log import KafkaGroupMember
from stream.kafka_producer import KafkaProducer, KafkaTransactionalProducer
from stream.log import FEEDBACK, IMPRESSIONS, TOPICS, KafkaConfig, OffsetAndMetadata, TopicPartition, topic_name
from stream.offsets import METADATA_VERSION, Progress, encode_progress
from stream.topics import (
    Lag,
    TopicInfo,
    check_partitions,
    create_topics,
    describe_topics,
    retention_problems,
    topic_lag,
)


def test_topics_are_created_once(kafka: KafkaConfig) -> None:
    assert create_topics(kafka) == []  # the fixture has made them
    fresh = replace(kafka, topic_prefix=f"f{uuid.uuid4().hex[:8]}-", num_partitions=3)
    assert {info.num_partitions for info in describe_topics(fresh)} == {0}
    assert create_topics(fresh) == [topic_name(fresh, topic) for topic in TOPICS]
    infos = describe_topics(fresh)
    assert [info.name for info in infos] == [topic_name(fresh, topic) for topic in TOPICS]
    assert {(info.num_partitions, info.replication_factor) for info in infos} == {(3, 1)}


def test_topics_with_different_numbers_of_partitions_are_refused() -> None:
    infos = [TopicInfo("impressions", 2, 1, None), TopicInfo("feedback", 3, 1, None), TopicInfo("examples", 0, 0, None)]
    with pytest.raises(CopartitionError, match="impressions 2, feedback 3"):
        check_partitions(infos)
    check_partitions([infos[0], infos[2]])


@pytest.mark.parametrize(("retention_ms", "num_problems"), [(None, 0), (-1, 0), (999, 1), (1_000, 1), (1_001, 0)])
def test_an_input_topic_must_keep_messages_longer_than_slates_stay_open(
    retention_ms: int | None, num_problems: int
) -> None:
    infos = [TopicInfo("feedback", 1, 1, retention_ms), TopicInfo("examples", 1, 1, 5)]
    problems = retention_problems(KafkaConfig(), infos, keep_ms=1_000)
    assert len(problems) == num_problems
    assert all("feedback" in problem for problem in problems)


def test_lag_counts_from_what_the_joiner_has_read_not_from_what_it_would_replay(kafka: KafkaConfig) -> None:
    group = f"{kafka.topic_prefix}group"
    impressions, feedback = topic_name(kafka, IMPRESSIONS), topic_name(kafka, FEEDBACK)
    assert topic_lag(kafka, group) == {}
    producer = KafkaProducer(kafka)
    assert all(producer.produce(impressions, b"k", b"v") for _ in range(5))
    assert producer.flush(20_000) == 0
    member = KafkaGroupMember(kafka, group, [impressions, feedback])
    transactional = KafkaTransactionalProducer(kafka, f"{kafka.topic_prefix}t")
    try:
        while not (assigned := member.poll(1, 50).assigned):
            pass
        ends = member.end_offsets([p for p in assigned if p.topic == impressions])
        [written] = [partition for partition, end in ends.items() if end == 5]
        transactional.begin()
        metadata = encode_progress(Progress(METADATA_VERSION, 4, 0, 0, "x"))
        transactional.send_offsets(
            {written: OffsetAndMetadata(1, metadata), TopicPartition(feedback, 0): OffsetAndMetadata(0, "another's")},
            member,
        )
        transactional.commit()
    finally:
        transactional.close()
        member.close()
    lag = topic_lag(kafka, group)
    assert lag[written] == Lag(next_offset=4, end_offset=5)
    assert lag[written].num_messages == 1
    assert lag[TopicPartition(feedback, 0)] == Lag(next_offset=0, end_offset=0)


def test_no_broker_is_one_sentence() -> None:
    with pytest.raises(LogUnavailableError, match=r"kafka at 127\.0\.0\.1:9 does not answer"):
        describe_topics(KafkaConfig(bootstrap_servers="127.0.0.1:9"))


def test_a_login_that_would_be_left_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kafka\.client: sasl\.username would be ignored"):
        describe_topics(KafkaConfig(client={"sasl.username": "me"}))
