"""`freshrank join` processes that share the partitions of Apache Kafka: scaled up and down, stalled, refused."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import OFFSET_END, Consumer
from confluent_kafka import TopicPartition as Position
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions

from freshrank.exits import ExitCode
from freshrank.join import GROUP_ID
from stream.log import EXAMPLES, FEEDBACK, IMPRESSIONS, KafkaConfig, topic_name
from stream.schema import Impression, Items, SchemaConfig, TaskConfig
from stream.topics import create_topics, topic_lag
from tests.chaos.cluster import STOPPED, Joiners, write_run
from tests.chaos.log import Feeder, expected_labels, read_events, read_labels
from tests.chaos.traffic import TrafficConfig, arrivals

pytestmark = pytest.mark.integration
WaitUntil = Callable[..., None]
SCHEMA = SchemaConfig(
    scenarios=("home",),
    tasks={
        "click": TaskConfig(action="click", window_ms=1_000, policy="eager"),
        "order": TaskConfig(action="order", window_ms=4_000, policy="wait"),
    },
)
JOIN: dict[str, int | str] = {
    "grace_ms": 1_000,
    "duplicate_ms": 2_000,
    "idle_ms": 3_600_000,  # the log's own last events end a test, not the clock on the wall
}
NUM_PARTITIONS = 4


@pytest.fixture
def log(apache_broker: str) -> KafkaConfig:
    config = KafkaConfig(
        bootstrap_servers=apache_broker, topic_prefix=f"r{uuid.uuid4().hex[:8]}-", num_partitions=NUM_PARTITIONS
    )
    create_topics(config)
    return config


@pytest.fixture
def joiners(log: KafkaConfig, tmp_path: Path) -> Iterator[Joiners]:
    joiners = Joiners(write_run(tmp_path / "run.yaml", log, SCHEMA, JOIN), tmp_path)
    yield joiners
    joiners.close()


class Load:
    """Traffic on its way into the log, and the question whether its labels are right."""

    def __init__(self, log: KafkaConfig, duration_ms: int) -> None:
        self._log = log
        # Dated back, so that the events that end it are not in the future.
        start_ms = time.time_ns() // 1_000_000 - 120_000
        config = TrafficConfig(duration_ms=duration_ms)
        load, self._ends = arrivals(SCHEMA, config, start_ms, np.random.default_rng(3))
        self._feeder = Feeder(log, load)
        self._feeder.start()

    @property
    def is_over(self) -> bool:
        return not self._feeder.is_alive()

    def finish(self) -> None:
        self._feeder.finish(self._ends)

    def is_joined(self) -> bool:
        lag = topic_lag(self._log, self._log.topic_prefix + GROUP_ID)
        return len(lag) == 2 * NUM_PARTITIONS and not any(each.num_messages for each in lag.values())

    def assert_labels_are_right(self) -> None:
        impressions, feedback = read_events(self._log, SCHEMA)
        expected = expected_labels(SCHEMA, impressions, feedback)
        seen = read_labels(self._log, SCHEMA)
        assert seen - expected == Counter(), "double or wrong"
        assert expected - seen == Counter(), "lost"
        assert seen.total() > 1_000


def test_one_joiner_becomes_three_and_then_two_under_load(
    joiners: Joiners, log: KafkaConfig, wait_until: WaitUntil
) -> None:
    load = Load(log, duration_ms=24_000)
    joiners.start("one")
    wait_until(lambda: joiners.num_takeovers("one") == 4, "one has all partitions", timeout_s=40)
    joiners.start("two")
    joiners.start("three")
    wait_until(lambda: min(joiners.num_takeovers(n) for n in ("two", "three")) > 0, "three share", timeout_s=40)
    assert joiners.stop("one") == 0
    before = {name: joiners.num_takeovers(name) for name in ("two", "three")}
    wait_until(
        lambda: sum(joiners.num_takeovers(name) - before[name] for name in before) >= 4,
        "the two that are left share what the one had",
        timeout_s=40,
    )
    assert not load.is_over, "the load ended before the last rebalance: it proves nothing"
    load.finish()
    wait_until(load.is_joined, "all is joined", timeout_s=60)
    assert joiners.close() == {"two": 0, "three": 0}
    load.assert_labels_are_right()


def test_a_member_that_slept_past_its_session_and_was_replaced_is_fenced(
    joiners: Joiners, log: KafkaConfig, wait_until: WaitUntil
) -> None:
    load = Load(log, duration_ms=26_000)
    joiners.start("sleeper", static=True)
    joiners.start("other", static=True)
    wait_until(lambda: joiners.num_takeovers("sleeper") * joiners.num_takeovers("other"), "both work", timeout_s=40)
    before = joiners.num_takeovers("other")
    joiners.stall("sleeper")
    wait_until(lambda: joiners.num_takeovers("other") >= before + NUM_PARTITIONS, "the other has it all", timeout_s=40)
    joiners.start("replacement", static=True, instance="sleeper")
    wait_until(lambda: joiners.num_takeovers("replacement") > 0, "the replacement has taken over", timeout_s=40)
    assert not load.is_over
    joiners.wake("sleeper")
    wait_until(lambda: joiners.exit_code("sleeper") is not None, "the sleeper has ended", timeout_s=30)
    assert joiners.exit_code("sleeper") == ExitCode.FENCED
    assert joiners.last_words("sleeper").startswith("freshrank: Another joiner has taken over: ")
    load.finish()

    def is_joined() -> bool:
        # The sleeper's last attempt to write may fence its replacement too, which is started again, as ever.
        for end in joiners.reap():
            assert end.code == ExitCode.FENCED
            if end.name == "replacement":
                joiners.start("replacement", static=True, instance="sleeper")
        return load.is_joined()

    wait_until(is_joined, "all is joined", timeout_s=60)
    ended = joiners.close()
    assert ended["other"] == ExitCode.OK
    assert ended["replacement"] in STOPPED  # it may have been started again only just now
    load.assert_labels_are_right()


def test_a_member_that_slept_past_its_session_writes_nothing_of_what_it_held(
    joiners: Joiners, log: KafkaConfig, wait_until: WaitUntil
) -> None:
    load = Load(log, duration_ms=24_000)
    joiners.start("sleeper")
    joiners.start("other")
    wait_until(lambda: joiners.num_takeovers("sleeper") * joiners.num_takeovers("other"), "both work", timeout_s=40)
    before = joiners.num_takeovers("other"), joiners.num_takeovers("sleeper")
    joiners.stall("sleeper")
    wait_until(
        lambda: joiners.num_takeovers("other") >= before[0] + NUM_PARTITIONS, "the other has it all", timeout_s=40
    )
    assert not load.is_over
    joiners.wake("sleeper")
    # If it wakes up in a commit it is fenced; if it wakes up in a poll it is told first, and joins anew.
    wait_until(
        lambda: joiners.exit_code("sleeper") == ExitCode.FENCED or joiners.num_takeovers("sleeper") > before[1],
        "the sleeper is fenced or a new member",
        timeout_s=40,
    )
    load.finish()
    wait_until(load.is_joined, "all is joined", timeout_s=60)
    ends = joiners.close()
    assert ends["other"] == 0
    assert ends["sleeper"] in (0, ExitCode.FENCED)
    load.assert_labels_are_right()


def test_unequal_numbers_of_partitions_are_refused_at_the_start(
    joiners: Joiners, log: KafkaConfig, wait_until: WaitUntil
) -> None:
    feedback = topic_name(log, FEEDBACK)
    admin = AdminClient({"bootstrap.servers": log.bootstrap_servers})
    admin.create_partitions([NewPartitions(feedback, NUM_PARTITIONS + 1)])[feedback].result(20)
    joiners.start("one")
    wait_until(lambda: joiners.exit_code("one") is not None, "it has refused", timeout_s=40)
    assert joiners.exit_code("one") == ExitCode.BROKER_GONE
    assert joiners.last_words("one") == (
        f"freshrank: {topic_name(log, IMPRESSIONS)} 4, {feedback} 5, {topic_name(log, EXAMPLES)} 4 partitions: "
        "all of them need the same number, and the same partitioner"
    )


def test_a_stranger_in_the_group_that_splits_the_pairs_is_noticed(
    joiners: Joiners, log: KafkaConfig, wait_until: WaitUntil
) -> None:
    joiners.start("one")
    wait_until(lambda: joiners.num_takeovers("one") == NUM_PARTITIONS, "it works", timeout_s=40)
    stranger = Consumer(
        {
            "bootstrap.servers": log.bootstrap_servers,
            "group.id": log.topic_prefix + GROUP_ID,
            "partition.assignment.strategy": "range",
        }
    )
    try:
        stranger.subscribe([topic_name(log, IMPRESSIONS)])
        wait_until(
            lambda: stranger.poll(0.05) is None and joiners.exit_code("one") is not None, "it has refused", timeout_s=40
        )
    finally:
        stranger.close()
    assert joiners.exit_code("one") == ExitCode.BROKER_GONE
    assert "every member of the group must use the range assignor on both topics" in joiners.last_words("one")


def test_topics_that_forget_too_early_are_refused_at_the_start(
    joiners: Joiners, log: KafkaConfig, wait_until: WaitUntil
) -> None:
    impressions = topic_name(log, IMPRESSIONS)
    needed_ms = 4_000 + 1_000 + 2_000 + 2_000  # the longest window, grace_ms, duplicate_ms, out_of_orderness_ms
    set_retention(log, impressions, needed_ms)
    joiners.start("one")
    wait_until(lambda: joiners.exit_code("one") is not None, "it has refused", timeout_s=40)
    assert joiners.exit_code("one") == ExitCode.USAGE
    assert joiners.last_words("one") == (
        f"freshrank: topic {impressions} keeps messages for {needed_ms} ms, but slates stay open for {needed_ms} ms: "
        f"raise its retention.ms above {needed_ms}"
    )
    set_retention(log, impressions, needed_ms + 1)
    joiners.start("two")
    wait_until(lambda: joiners.num_takeovers("two") == NUM_PARTITIONS, "it works", timeout_s=40)


def test_messages_deleted_while_their_slates_are_open_stop_the_joiner(
    joiners: Joiners, log: KafkaConfig, wait_until: WaitUntil
) -> None:
    impressions = topic_name(log, IMPRESSIONS)
    now_ms = time.time_ns() // 1_000_000
    feeder = Feeder(log, [])
    feeder.start()
    joiners.start("one")
    wait_until(lambda: joiners.num_takeovers("one") == NUM_PARTITIONS, "it works", timeout_s=40)
    feeder.finish([Impression("r", "u", "home", now_ms, Items(id=["a", "b"]))])
    wait_until(lambda: sum(num_read_of(log, IMPRESSIONS).values()) == 1, "the slate is read", timeout_s=40)
    assert joiners.stop("one") == 0
    admin = AdminClient({"bootstrap.servers": log.bootstrap_servers})
    deleted = admin.delete_records([Position(impressions, number, OFFSET_END) for number in range(NUM_PARTITIONS)])
    for each in deleted.values():
        each.result(20)
    joiners.start("two")
    wait_until(lambda: joiners.exit_code("two") is not None, "it has refused", timeout_s=40)
    assert joiners.exit_code("two") == ExitCode.USAGE
    assert " 1 messages that open slates need are deleted by retention; " in joiners.last_words("two")
    assert joiners.last_words("two").endswith(
        "join.when_lost: give_up once, to go on without the labels of these slates"
    )


def num_read_of(log: KafkaConfig, topic: str) -> dict[int, int]:
    """Returns, per partition of a topic, how many messages the group has dealt with."""
    lag = topic_lag(log, log.topic_prefix + GROUP_ID)
    name = topic_name(log, topic)
    return {where.partition: each.next_offset for where, each in lag.items() if where.topic == name}


def set_retention(log: KafkaConfig, topic: str, retention_ms: int) -> None:
    admin = AdminClient({"bootstrap.servers": log.bootstrap_servers})
    entry = ConfigEntry("retention.ms", str(retention_ms), incremental_operation=AlterConfigOpType.SET)
    [altered] = admin.incremental_alter_configs(
        [ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])]
    ).values()
    altered.result(20)
