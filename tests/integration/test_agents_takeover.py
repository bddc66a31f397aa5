"""Two agents on Apache Kafka, one killed: what is in Redis in the end is what the whole log says, exactly.

Sequences under disorder, duplicates and stragglers; online metrics from transactions, some of them aborted.
"""

import random
import uuid
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import redis as redis_client
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from stream.agents import APP_ID
from stream.agents_config import AgentsConfig
from stream.codec import encode
from stream.kafka_log import KafkaReader
from stream.kafka_producer import PARTITIONER, KafkaProducer
from stream.log import EXAMPLES, FEEDBACK, KafkaConfig, TopicPartition, topic_name
from stream.online_metrics import PartitionMetrics
from stream.online_metrics_config import OnlineMetricsConfig
from stream.schema import Feedback
from stream.sequences import decode
from stream.settled_labels import read_settled
from stream.topics import create_topics
from tests.integration.agents_process import start_agents
from tests.stream.served_labels import SCHEMA, emission, message, random_log

pytestmark = pytest.mark.integration
WaitUntil = Callable[..., None]
START_MS = 1_700_000_000_000
NUM_USERS, ACTIONS_EACH, LENGTH = 15, 300, 100
METRICS = OnlineMetricsConfig(window_labels=300, cohort_labels=100, drift_block_labels=10, interval_ms=50)
NUM_STEPS = 40
ABORTED_VERSION = 10_000


def arrivals(seed: int) -> list[Feedback]:
    """Returns clicks as they arrive: out of order, a tenth of them twice, some again when all newer ones have come."""
    rng = random.Random(seed)
    late: list[tuple[float, Feedback]] = []
    for user in range(NUM_USERS):
        for n in range(ACTIONS_EACH):
            click = Feedback(f"r{n}", f"u{user}", f"i{user}.{n}", "click", START_MS + n // 2, event_id=f"e{user}.{n}")
            straggles = rng.random() < 0.02  # and when it comes the sequence is full of newer ones
            late.append((ACTIONS_EACH if straggles else n + rng.uniform(0, 30), click))
            if rng.random() < 0.1:
                late.append((n + rng.uniform(0, 2 * ACTIONS_EACH), click))
    return [click for _, click in sorted(late, key=lambda arrival: arrival[0])]


def newest(clicks: list[Feedback], user_id: str) -> list[tuple[int, str]]:
    """Returns time and item of a user's last actions, newest first: the slow way, with all of the log in memory."""
    by_id = {click.event_id: click for click in clicks if click.user_id == user_id}
    ordered = sorted(by_id.values(), key=lambda click: (click.ts, zlib.crc32(click.event_id.encode())))
    return [(click.ts, click.item_id) for click in reversed(ordered)][:LENGTH]


def read_all(kafka: KafkaConfig, partition: TopicPartition) -> list[tuple[int, bytes]]:
    """Returns offset and value of each committed message of a partition."""
    reader = KafkaReader(kafka)
    reader.assign({partition: 0})
    found: list[tuple[int, bytes]] = []
    while polled := reader.poll(1_000, 2_000):
        found += [(one.offset, one.value) for one in polled]
    reader.close()
    return found


def num_members(kafka: KafkaConfig) -> int:
    """Returns how many agents have partitions."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    group = kafka.topic_prefix + APP_ID
    described = admin.describe_consumer_groups([group])[group].result(timeout=20)
    return sum(bool(member.assignment.topic_partitions) for member in described.members)


def test_a_killed_agent_leaves_no_trace(
    apache_broker: str, redis_server: str, tmp_path: Path, wait_until: WaitUntil
) -> None:
    kafka = KafkaConfig(bootstrap_servers=apache_broker, topic_prefix=f"t{uuid.uuid4().hex[:8]}-")
    create_topics(kafka)
    prefix = f"{uuid.uuid4().hex}:"
    config = AgentsConfig(
        sequence_length=LENGTH,
        prefix=f"{prefix}seq:",
        metrics=replace(METRICS, prefix=f"{prefix}online:"),
        max_ahead_ms=10**12,
    )
    common = {"kafka": kafka, "redis_url": redis_server, "config": config, "schema": SCHEMA, "folder": tmp_path}
    redis = redis_client.Redis.from_url(redis_server)
    examples = topic_name(kafka, EXAMPLES)

    def stored(partition: int) -> int:
        return int(redis.hget(f"{prefix}online:{examples}:{partition}", "offset") or 0)

    clicks = arrivals(seed=1)
    logs = {key: random_log(seed, NUM_STEPS) for seed, key in enumerate((b"a", b"b", b"c", b"d"))}
    aborted = message(emission(version=ABORTED_VERSION, labels=[1, 1, 0], scores=[0.9] * 3))
    feedback = KafkaProducer(kafka)
    joiner = Producer(
        {"bootstrap.servers": apache_broker, "transactional.id": f"{prefix}joiner", "partitioner": PARTITIONER}
    )
    joiner.init_transactions(20)
    workers = [start_agents("first", **common)]

    def send(step: int) -> None:
        for click in clicks[step * len(clicks) // NUM_STEPS : (step + 1) * len(clicks) // NUM_STEPS]:
            assert feedback.produce(topic_name(kafka, FEEDBACK), click.user_id.encode(), encode(click))
        joiner.begin_transaction()
        is_aborted = step % 5 == 2
        for key, log in logs.items():
            joiner.produce(examples, aborted if is_aborted else log[step], key)
        assert joiner.flush(20) == 0  # so that what is aborted is in the log
        joiner.abort_transaction() if is_aborted else joiner.commit_transaction()

    try:
        for step in range(NUM_STEPS // 4):
            send(step)
        wait_until(lambda: stored(0) and stored(1), "the first one keeps both partitions", timeout_s=90)
        workers.append(start_agents("second", **common))
        for step in range(NUM_STEPS // 4, NUM_STEPS // 2):
            send(step)
        wait_until(lambda: num_members(kafka) == 2, "the two share them", timeout_s=90)
        for step in range(NUM_STEPS // 2, NUM_STEPS):
            if step == NUM_STEPS * 3 // 4:
                workers[0].kill()
            send(step)
        assert feedback.flush(20_000) == 0
        committed = {partition: read_all(kafka, TopicPartition(examples, partition)) for partition in (0, 1)}
        assert all(committed.values())
        users = {click.user_id: newest(clicks, click.user_id) for click in clicks}

        def sequence(user_id: str) -> list[tuple[int, str]]:
            value = redis.get(f"{prefix}seq:{user_id}")
            kept = decode(value) if value else decode(b"{}")
            return list(zip(kept.ts, kept.item_id, strict=True))

        def is_done() -> bool:
            assert workers[1].exit_code() is None, workers[1].log_path.read_text()
            is_read = all(stored(partition) > log[-1][0] for partition, log in committed.items())
            return is_read and all(sequence(user_id) == actions for user_id, actions in users.items())

        wait_until(is_done, "the other one has taken over and read all", timeout_s=90)
        for partition, log in committed.items():
            expected = PartitionMetrics(METRICS)
            for offset, value in log:
                expected.fold(offset, read_settled(value, tuple(SCHEMA.tasks)))
            assert redis.hget(f"{prefix}online:{examples}:{partition}", "state") == expected.encode()
            versions = [one.last_version for cell in expected.cells.values() for one in cell.cohorts.state]
            assert 0 < max(versions) < ABORTED_VERSION
        assert 0 < redis.ttl(f"{prefix}seq:u0") <= config.ttl_s
        assert workers[1].stop(20) == 0
    finally:
        for worker in workers:
            worker.kill()
        redis.close()
