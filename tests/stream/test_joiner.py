"""The joiner worker on the in-memory log: killed, rebalanced, restarted; the labels stay those of the oracle."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.exceptions import (
    CopartitionError,
    FencedError,
    LogUnavailableError,
    LostMessagesError,
    OffsetMetadataError,
    TransactionAbortedError,
)
from stream.join import JoinConfig
from stream.log import (
    DEAD_LETTER,
    EXAMPLES,
    FEEDBACK,
    IMPRESSIONS,
    OUTCOMES,
    GroupMember,
    OffsetAndMetadata,
    TopicPartition,
)
from stream.memory_broker import CrashSchedule
from stream.memory_log import MemoryTransactionalProducer
from stream.offsets import labels_hash
from stream.schema import Feedback, Impression, TaskConfig
from tests.stream.build import did, explored, schema, shown, to_compare_with
from tests.stream.cluster import GROUP, Cluster
from tests.stream.oracle import labels_of, outcomes_of

FINAL = schema(
    click=TaskConfig(action="click", window_ms=10_000, policy="eager"),
    hide=TaskConfig(action="hide", window_ms=5_000, policy="wait"),
    long_view=TaskConfig(action="view", window_ms=10_000, at_least=3.0, policy="eager"),
)
"""Each label once."""
SCHEMA = schema(
    **FINAL.tasks,
    click_fnw=TaskConfig(action="click", window_ms=10_000, policy="fnw"),
    click_fnw_rn=TaskConfig(action="click", window_ms=5_000, policy="fnw_rn"),
    click_es_dfm=TaskConfig(action="click", window_ms=10_000, policy="es_dfm", observe_ms=5_000),
    view_defer=TaskConfig(action="view", window_ms=10_000, policy="defer", observe_ms=4_999),
    view_defer_neg=TaskConfig(action="view", window_ms=5_000, policy="defer_neg", observe_ms=1),
    hide_vanilla=TaskConfig(action="hide", window_ms=9_999, policy="vanilla", observe_ms=5_000),
)
"""The same, and every other way in which labels can go out."""
OUTCOME_MS = 11_000
CONFIG = JoinConfig(
    grace_ms=500,
    out_of_orderness_ms=2_000,
    max_ahead_ms=0,
    idle_ms=1_000,
    duplicate_ms=1_000,
    commit_interval_ms=100,
    outcome_window_ms=OUTCOME_MS,
)
PLAIN = replace(CONFIG, outcome_window_ms=None)
"""Without outcomes."""
Event = Impression | Feedback


def traffic(seed: int, num_slates: int = 12) -> list[tuple[int, Event]]:
    """Returns (arrival, event): disorder up to out_of_orderness_ms, duplicates, feedback before its impression."""
    rng = random.Random(seed)
    arrivals: list[tuple[int, Event]] = []

    def send(event: Event) -> None:
        for _ in range(1 + (rng.random() < 0.15)):
            arrivals.append((event.ts + rng.randrange(CONFIG.out_of_orderness_ms), event))

    for number in range(num_slates):
        at_ms = rng.randrange(30_000)
        user = f"u{rng.randrange(5)}"
        items = [f"i{index}" for index in range(rng.randint(1, 4))]
        slate = shown(f"r{number}", *items, at=at_ms, user=user)
        if number % 3 == 1:
            slate = explored(slate, SCHEMA.tasks, "other", "one more")
        send(to_compare_with(slate, SCHEMA.tasks) if number % 3 == 2 else slate)
        for _ in range(rng.randrange(5)):
            action = rng.choice(["click", "hide", "view", "share"])
            delay_ms = rng.choice([0, 1, 4_999, 5_000, 5_001, 9_999, 10_000, 10_001, rng.randrange(12_000)])
            value = rng.choice([1.0, 3.0])
            item = rng.choice([*items, "other"])
            send(did(action, item, at=at_ms + delay_ms, on=f"r{number}", value=value, user=user))
    return sorted(arrivals, key=lambda arrival: arrival[0])


def expected_labels(arrivals: list[tuple[int, Event]]) -> Counter[tuple[str, str, str, str, int, int]]:
    events = [event for _, event in arrivals]
    return labels_of(
        SCHEMA,
        [event for event in events if isinstance(event, Impression)],
        [event for event in events if isinstance(event, Feedback)],
    )


def assert_outputs(cluster: Cluster, arrivals: list[tuple[int, Event]], why: str = "") -> None:
    """Labels and outcomes are those of the oracle, each once."""
    events = [event for _, event in arrivals]
    shown = [event for event in events if isinstance(event, Impression)]
    assert cluster.labels() == expected_labels(arrivals), why
    done = [event for event in events if isinstance(event, Feedback)]
    assert cluster.outcomes() == outcomes_of(shown, done, OUTCOME_MS), why


def live(cluster: Cluster, arrivals: list[tuple[int, Event]], tick_ms: int = 700) -> None:
    """Sends each event when it is due, lets the joiners run after each tick, then lets everything settle."""
    waiting = list(arrivals)
    while waiting:
        cluster.now_ms += tick_ms
        while waiting and waiting[0][0] <= cluster.now_ms:
            cluster.send(waiting.pop(0)[1])
        cluster.turn()
    cluster.settle()


def assert_counters_add_up(cluster: Cluster, arrivals: list[tuple[int, Event]]) -> None:
    c = cluster.counters()
    assert c.impressions == sum(isinstance(event, Impression) for _, event in arrivals)
    assert c.feedback == sum(isinstance(event, Feedback) for _, event in arrivals)
    assert c.impressions == c.slates + c.impression_duplicate
    assert c.labels == c.positives + c.negatives
    assert c.settled == c.items * len(SCHEMA.tasks)
    assert c.explored == c.outcomes > 0
    assert (c.explored_incomplete, c.outcome_late) == (0, 0)
    assert (c.impression_late, c.feedback_late, c.malformed, c.clock_ahead, c.lost_messages) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_those_of_the_oracle(seed: int) -> None:
    cluster = Cluster(SCHEMA, CONFIG)
    cluster.start()
    arrivals = traffic(seed)
    live(cluster, arrivals)
    assert_outputs(cluster, arrivals)
    assert_counters_add_up(cluster, arrivals)


def test_killed_at_every_step_the_labels_are_the_same() -> None:
    arrivals = traffic(seed=7, num_slates=6)

    def run(crash_at: set[int]) -> Cluster:
        cluster = Cluster(SCHEMA, CONFIG)
        cluster.crashes.crash_at = crash_at
        cluster.start()
        live(cluster, arrivals, tick_ms=2_000)
        return cluster

    uninterrupted = run(set())
    steps = uninterrupted.crashes.steps
    assert_outputs(uninterrupted, arrivals)
    assert {"poll", "produce", "send_offsets", "commit", "committed"} == set(steps)
    for number, step in enumerate(steps):
        assert_outputs(run({number}), arrivals, f"killed at step {number}, {step}")


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sets(st.integers(0, 400), max_size=8),
    st.lists(
        st.tuples(st.integers(0, 45), st.sampled_from(["start", "kill"]), st.sampled_from(["one", "two"])), max_size=6
    ),
)
def test_crashes_and_rebalances_lose_nothing_double_nothing_and_contradict_nothing(
    seed: int, crash_at: set[int], changes: list[tuple[int, str, str]]
) -> None:
    arrivals = traffic(seed)
    cluster = Cluster(SCHEMA, CONFIG)
    cluster.crashes.crash_at = crash_at
    cluster.play(arrivals, changes)
    assert_outputs(cluster, arrivals)
    assert_late_positives_follow_their_negatives(cluster)


def assert_late_positives_follow_their_negatives(cluster: Cluster) -> None:
    seen = set()
    for request_id, item, task, kind, label, _ in cluster.labels_in_order():
        assert kind != "late_positive" or (request_id, item, task) in seen
        if label == 0:
            seen.add((request_id, item, task))


def test_a_backlog_is_joined_like_the_live_stream() -> None:
    arrivals = traffic(seed=3)
    cluster = Cluster(SCHEMA, CONFIG, now_ms=100_000)
    cluster.send(*(event for _, event in arrivals))
    cluster.start()
    cluster.settle()
    assert_outputs(cluster, arrivals)


def test_two_joiners_share_the_partitions() -> None:
    cluster = Cluster(SCHEMA, CONFIG)
    cluster.start("one")
    cluster.start("two")
    arrivals = traffic(seed=5)
    live(cluster, arrivals)
    assert sorted(len(joiner.pairs) for joiner in cluster.joiners.values()) == [1, 1]
    assert_outputs(cluster, arrivals)
    assert_counters_add_up(cluster, arrivals)


def test_a_joiner_given_up_for_dead_cannot_commit() -> None:
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=1)
    zombie = cluster.start("one")
    cluster.turn()
    cluster.turn()
    cluster.send(shown(at=0), did(at=1))
    cluster.now_ms += 10
    zombie.run_once()
    cluster.broker.leave(GROUP, "one")
    cluster.start("two")
    cluster.joiners.pop("one")
    cluster.settle()
    with pytest.raises(FencedError):
        zombie.commit()
    assert cluster.labels()[("r", "a", "click", "final", 1, 1)] == 1


def test_a_positive_is_visible_after_one_commit_interval() -> None:
    cluster = Cluster(FINAL, CONFIG)
    cluster.start()
    cluster.turn()
    cluster.now_ms += 5_000
    cluster.send(shown(at=4_000), did(at=5_000))
    cluster.turn()
    assert cluster.labels() == {("r", "a", "click", "final", 1, 1_000): 1}


def test_the_last_slates_of_a_quiet_night_close_too() -> None:
    cluster = Cluster(FINAL, CONFIG)
    cluster.start()
    cluster.send(shown(at=0))
    for _ in range(40):
        cluster.now_ms += 500
        cluster.turn()
    assert {label[2:5] for label in cluster.labels()} == {
        ("click", "final", 0),
        ("hide", "final", 0),
        ("long_view", "final", 0),
    }


def test_nothing_new_means_nothing_to_commit() -> None:
    cluster = Cluster(SCHEMA, CONFIG)
    joiner = cluster.start()
    cluster.send(shown(at=0))
    cluster.settle()
    num_commits = joiner.num_commits
    for _ in range(20):
        cluster.now_ms += 1_000
        cluster.turn()
    assert joiner.num_commits == num_commits


def test_when_all_slates_are_closed_the_committed_offset_is_the_end() -> None:
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=1)
    cluster.start()
    cluster.send(shown(at=0), did(at=1))
    cluster.settle()
    for topic in (IMPRESSIONS, FEEDBACK):
        committed = cluster.broker.committed(GROUP, TopicPartition(topic, 0))
        assert committed is not None
        assert committed.offset == 1


def test_the_committed_watermark_never_moves_back() -> None:
    arrivals = traffic(seed=11)
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=1)
    cluster.start()
    watermarks = [-1]
    waiting = list(arrivals)
    while waiting:
        cluster.now_ms += 700
        while waiting and waiting[0][0] <= cluster.now_ms:
            cluster.send(waiting.pop(0)[1])
        if len(waiting) % 5 == 0:
            cluster.kill()
            cluster.start()
        cluster.turn()
        committed = cluster.broker.committed(GROUP, TopicPartition(IMPRESSIONS, 0))
        if committed is not None:
            watermarks.append(msgspec.json.decode(committed.metadata)["watermark"])
    assert all(before <= after for before, after in pairwise(watermarks))
    assert watermarks[-1] > 0


def test_a_malformed_message_goes_to_the_dead_letters_once_and_the_stream_goes_on() -> None:
    arrivals = traffic(seed=1)
    for crash_at in (None, 5, 9):
        cluster = Cluster(SCHEMA, CONFIG)
        cluster.crashes = CrashSchedule(set() if crash_at is None else {crash_at})
        cluster.start()
        cluster.send_bytes(IMPRESSIONS, b'{"request_id": "r"', user="u1")
        cluster.send_bytes(FEEDBACK, b'{"request_id":"r","user_id":"u","item_id":"i","action":"a","ts":-5}', user="u1")
        live(cluster, arrivals)
        letters = {message.value: dict(message.headers) for message in cluster.messages(DEAD_LETTER)}
        assert len(cluster.messages(DEAD_LETTER)) == len(letters) == 2
        negative = letters[b'{"request_id":"r","user_id":"u","item_id":"i","action":"a","ts":-5}']
        assert negative["error"] == b"ts: expected int >= 0"
        assert (negative["source_topic"], negative["source_offset"]) == (b"feedback", b"0")
        assert_outputs(cluster, arrivals)


def test_a_clock_in_2099_neither_moves_the_watermark_nor_holds_the_log_open() -> None:
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=1, now_ms=1)
    cluster.start()
    arrivals = traffic(seed=2)
    cluster.send(shown("ahead", at=4_070_908_800_000), did(at=4_070_908_800_000, on="ahead"))
    live(cluster, arrivals)
    assert_outputs(cluster, arrivals)
    assert cluster.counters().malformed == 2
    assert all(b"refuse_ahead_ms" in dict(m.headers)["error"] for m in cluster.messages(DEAD_LETTER))


def test_a_clock_a_little_ahead_is_clamped_and_counted() -> None:
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=1, now_ms=50_000)
    cluster.start()
    cluster.turn()
    cluster.send(shown("ahead", at=60_000), did(at=60_001, on="ahead"), shown("now", at=50_000))
    for _ in range(3):
        cluster.now_ms += 200
        cluster.turn()
    assert cluster.joiners["one"].pairs[0].core.watermark_ms <= cluster.now_ms
    cluster.settle()
    assert cluster.counters().clock_ahead == 2
    assert {label[0] for label in cluster.labels()} == {"ahead", "now"}


def test_unequal_numbers_of_partitions_are_refused_at_the_start() -> None:
    cluster = Cluster(SCHEMA, CONFIG)
    cluster.broker.create_topic(FEEDBACK, 3)
    with pytest.raises(CopartitionError, match="impressions 2, feedback 3, examples 2, outcomes 2 partitions"):
        cluster.start()


def test_a_joiner_too_many_says_so_once_and_takes_over_when_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cluster = Cluster(SCHEMA, CONFIG)
    for name in ("one", "three", "two"):
        cluster.start(name)
    for _ in range(5):
        cluster.turn()
    idle = [name for name, joiner in cluster.joiners.items() if not joiner.pairs]
    assert len(idle) == 1
    assert caplog.text.count("no partition for this joiner") == 1
    cluster.kill(next(name for name in cluster.joiners if name not in idle))
    arrivals = traffic(seed=5)
    live(cluster, arrivals)
    assert_outputs(cluster, arrivals)


def grow(cluster: Cluster, num_partitions: int) -> None:
    for topic in (IMPRESSIONS, FEEDBACK, EXAMPLES, OUTCOMES):
        cluster.broker.grow_topic(topic, num_partitions)


def test_another_number_of_partitions_stops_a_joiner_that_runs() -> None:
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=1)
    joiner = cluster.start()
    cluster.turn()
    grow(cluster, 3)
    with pytest.raises(CopartitionError, match="impressions had 1 partitions and has 3 now: users move to other"):
        joiner.run_once()


def test_slates_open_under_another_number_of_partitions_are_not_taken_up_and_labels_not_contradicted() -> None:
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=1)
    open_slate(cluster)
    grow(cluster, 3)
    labels = cluster.labels()
    joiner = cluster.start()
    with pytest.raises(LostMessagesError, match=r"slates are open since the topics had 1 partitions, 3 now: .*give_up"):
        joiner.run_once()
    cluster.kill()
    cluster.config = replace(CONFIG, when_lost="give_up")
    cluster.start()
    cluster.send(shown("next", at=cluster.now_ms))
    cluster.settle()
    assert cluster.counters().lost_messages == 2
    assert {label[0] for label in (cluster.labels() - labels)} == {"next"}


def test_another_number_of_partitions_is_welcome_where_nothing_is_open() -> None:
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=1)
    cluster.start()
    cluster.send(shown(at=0), did(at=0))
    cluster.settle()
    cluster.kill()
    grow(cluster, 2)
    cluster.start()
    cluster.send(shown("next", at=cluster.now_ms))
    cluster.settle()
    assert cluster.counters().lost_messages == 0
    assert ("next", "a", "click", "final", 0, -1) in cluster.labels()


@pytest.mark.parametrize("topic", [IMPRESSIONS, FEEDBACK, EXAMPLES, DEAD_LETTER])
def test_a_missing_topic_is_named(topic: str) -> None:
    cluster = Cluster(SCHEMA, CONFIG)
    cluster.broker.create_topic(topic, 0)
    with pytest.raises(LogUnavailableError, match=f"topic {topic} does not exist"):
        cluster.start()


def test_an_assignment_that_splits_a_pair_is_refused() -> None:
    cluster = Cluster(SCHEMA, CONFIG)
    cluster.broker.join(GROUP, "a stranger", (FEEDBACK,))
    joiner = cluster.start()
    cluster.broker.rejoin(GROUP, "a stranger")
    with pytest.raises(CopartitionError, match="range assignor"):
        for _ in range(3):
            joiner.run_once()


def committed_by(cluster: Cluster) -> dict[TopicPartition, OffsetAndMetadata]:
    found = {}
    for topic in (IMPRESSIONS, FEEDBACK):
        at = TopicPartition(topic, 0)
        committed = cluster.broker.committed(GROUP, at)
        assert committed is not None
        found[at] = committed
    return found


def open_slate(cluster: Cluster) -> None:
    """Leaves one open slate with a committed positive behind, and no joiner."""
    cluster.start()
    cluster.turn()
    cluster.now_ms += 1_000
    cluster.send(shown(at=1_000), did(at=1_000))
    cluster.turn()
    cluster.kill()


def test_foreign_metadata_is_refused() -> None:
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=1)
    open_slate(cluster)
    transaction = cluster.broker.transaction("x", cluster.broker.open_producer("x"))
    transaction.offsets.append((GROUP, {TopicPartition(FEEDBACK, 0): OffsetAndMetadata(0, "hello")}))
    cluster.broker.end_transaction("x", 1, is_commit=True)
    joiner = cluster.start()
    with pytest.raises(OffsetMetadataError, match="metadata 'hello' is not a joiner's"):
        joiner.run_once()


def test_another_outcome_window_is_refused_while_slates_are_open() -> None:
    cluster = Cluster(FINAL, CONFIG, num_partitions=1)
    open_slate(cluster)
    for other in (None, OUTCOME_MS + 1):
        cluster.config = replace(CONFIG, outcome_window_ms=other)
        joiner = cluster.start()
        with pytest.raises(OffsetMetadataError, match="outcome_window_ms changed"):
            joiner.run_once()
        cluster.kill()


def test_without_outcomes_the_label_settings_hash_as_they_always_did() -> None:
    """Or every group would have to be drained for a release that changes nothing for it."""
    assert labels_hash(schema(), 2_000, 10_000) == labels_hash(schema(), 2_000, 10_000, None) == "a6d6d99b871c592a"
    assert labels_hash(schema(), 2_000, 10_000, 60_000) != labels_hash(schema(), 2_000, 10_000, 60_001)


def test_outcomes_need_their_topic_and_only_those_who_send_some() -> None:
    cluster = Cluster(SCHEMA, PLAIN)
    cluster.broker.create_topic(OUTCOMES, 0)
    cluster.start()
    cluster.kill()
    cluster.config = CONFIG
    with pytest.raises(LogUnavailableError, match="topic outcomes does not exist"):
        cluster.start()
    cluster.broker.create_topic(OUTCOMES, 3)
    with pytest.raises(CopartitionError, match="examples 2, outcomes 3 partitions"):
        cluster.start()


def test_outcomes_are_in_the_partition_of_their_users() -> None:
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=3)
    cluster.start()
    live(cluster, traffic(seed=2, num_slates=20))
    partition_of = {
        event.user_id: message.partition
        for message in cluster.messages(IMPRESSIONS)
        for event in [msgspec.json.decode(message.value, type=Impression)]
    }
    found = [
        (partition_of[user], message.partition)
        for message in cluster.messages(OUTCOMES)
        for user in pa.ipc.open_stream(message.value).read_all()["user_id"].to_pylist()
    ]
    assert len({partition for partition, _ in found}) > 1
    assert all(of_user == partition for of_user, partition in found)


def test_other_label_settings_are_refused_while_slates_are_open_and_welcome_afterwards() -> None:
    cluster = Cluster(FINAL, PLAIN, num_partitions=1)
    open_slate(cluster)
    other = schema(click=TaskConfig(action="click", window_ms=20_000))
    cluster.schema = other
    joiner = cluster.start()
    with pytest.raises(OffsetMetadataError, match="slates are still open under other settings"):
        joiner.run_once()
    cluster.kill()
    cluster.schema = FINAL
    cluster.start()
    cluster.settle()
    before = cluster.labels()
    cluster.kill()
    cluster.schema = other
    cluster.start()
    at_ms = cluster.now_ms
    cluster.send(shown("next", at=at_ms), did(at=at_ms + 15_000, on="next"))
    cluster.settle()
    new = [
        labels for m in cluster.messages(EXAMPLES)[-1:] for labels in pa.ipc.open_stream(m.value).read_all().to_pylist()
    ]
    assert before.total() == 3
    assert [(row["request_id"], row["label.click"]) for row in new] == [("next", [1])]


def test_a_topic_created_anew_is_noticed() -> None:
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=1)
    open_slate(cluster)
    cluster.broker.create_topic(IMPRESSIONS, 1)
    joiner = cluster.start()
    with pytest.raises(OffsetMetadataError, match="created anew"):
        joiner.run_once()


def test_what_retention_deleted_stops_the_joiner_before_anything_is_committed() -> None:
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=1)
    open_slate(cluster)
    cluster.broker.delete_before(TopicPartition(FEEDBACK, 0), 1)
    labels = cluster.labels()
    joiner = cluster.start()
    with pytest.raises(LostMessagesError, match=r"1 messages .* are deleted by retention; .* join\.when_lost: give_up"):
        joiner.run_once()
    assert cluster.labels() == labels


def test_what_retention_deleted_is_counted_and_never_contradicted(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(SCHEMA, replace(CONFIG, when_lost="give_up"), num_partitions=1)
    open_slate(cluster)
    cluster.broker.delete_before(TopicPartition(FEEDBACK, 0), 1)
    cluster.start()
    cluster.send(shown("next", at=cluster.now_ms))
    cluster.settle()
    assert cluster.counters().lost_messages == 1
    assert "raise the topics' retention.ms" in caplog.text
    labels = cluster.labels()
    assert labels[("r", "a", "click", "final", 1, 0)] == 1
    assert ("r", "a", "click", "final", 0, -1) not in labels, "the positive is out; without it in the log, no negative"
    assert ("next", "a", "click", "final", 0, -1) in labels


def test_examples_of_a_partition_stay_in_it_in_order_of_their_triggers() -> None:
    cluster = Cluster(SCHEMA, CONFIG, num_partitions=3)
    cluster.start()
    arrivals = traffic(seed=4)
    live(cluster, arrivals)
    for message in cluster.messages(EXAMPLES):
        for row in pa.ipc.open_stream(message.value).read_all().to_pylist():
            assert message.partition == _partition_of(cluster, row["user_id"])


def _partition_of(cluster: Cluster, user_id: str) -> int:
    return next(m.partition for m in cluster.messages(IMPRESSIONS) if m.key == user_id.encode())


def test_run_commits_what_is_at_hand_before_it_returns() -> None:
    cluster = Cluster(FINAL, CONFIG)
    joiner = cluster.start()
    turns = iter(range(6))
    cluster.send(shown(at=0), did(at=1))
    joiner.run(lambda: next(turns, None) is None)
    assert cluster.labels() == {("r", "a", "click", "final", 1, 1): 1}


class FailingProducer(MemoryTransactionalProducer):
    """The broker gives up some transactions, before or after their offsets were added."""

    failures: tuple[str, ...] = ()

    def _fail(self, step: str) -> None:
        if self.failures and self.failures[0] == step:
            self.failures = self.failures[1:]
            self.abort()
            raise TransactionAbortedError(f"the transaction was dropped while {step}")

    def send_offsets(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], member: GroupMember) -> None:
        super().send_offsets(offsets, member)
        self._fail("committing offsets")

    def commit(self) -> None:
        self._fail("committing")
        super().commit()


def test_what_an_aborted_transaction_held_goes_out_with_the_next_one() -> None:
    cluster = Cluster(SCHEMA, CONFIG)
    joiner = cluster.start()
    producer = FailingProducer(cluster.broker, "one")
    producer.failures = ("committing", "committing offsets", "committing", "committing")
    joiner._producer = producer
    arrivals = traffic(seed=4)
    live(cluster, arrivals)
    assert joiner.num_aborted == 4
    assert_outputs(cluster, arrivals)
    assert_counters_add_up(cluster, arrivals)


def test_while_the_broker_does_not_tell_the_ends_the_watermark_waits(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(FINAL, CONFIG, num_partitions=1)
    joiner = cluster.start()
    known = joiner._member.end_offsets

    def unknown(partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        raise LogUnavailableError("kafka at nowhere does not answer")

    cluster.send(shown(at=0))
    cluster.turn()
    joiner._member.end_offsets = unknown  # type: ignore[method-assign]
    cluster.now_ms += 1_000_000
    for _ in range(3):
        cluster.now_ms += 2 * CONFIG.idle_ms
        cluster.turn()
    assert cluster.labels() == Counter()
    assert "the ends of quiet partitions are not known" in caplog.text
    joiner._member.end_offsets = known  # type: ignore[method-assign]
    cluster.settle()
    assert cluster.labels().total() == len(FINAL.tasks)
