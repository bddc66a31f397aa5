"""The scenarios of `tests/scenarios` through `freshrank join` on Apache Kafka, undisturbed and killed in the middle.

All of them at once, each with topics, a group and a process of its own. Event times are shifted to the recent past;
behind the last one come events that close every window, so that no clock on the wall decides anything.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions
from confluent_kafka import TopicPartition as Position
from confluent_kafka.admin import AdminClient

from freshrank.exits import ExitCode
from freshrank.join import GROUP_ID
from stream.codec import encode
from stream.kafka_client import client_settings
from stream.kafka_log import KafkaReader
from stream.kafka_producer import KafkaProducer
from stream.log import DEAD_LETTER, EXAMPLES, FEEDBACK, IMPRESSIONS, KafkaConfig, TopicPartition, topic_name
from stream.memory_broker import partition_hash
from stream.offsets import Progress
from stream.schema import Feedback, Impression, Items
from stream.topics import create_topics
from tests.chaos.cluster import Joiners, write_run
from tests.chaos.log import read_topic
from tests.scenarios.load import Ratios, Raw, Scenario, Until, ratios_in, scenarios
from tests.stream.cluster import labels_in
from tests.stream.oracle import Label

SCENARIOS = {scenario.name: scenario for scenario in scenarios()}
LAST = "last"
_TIMEOUT_S = 80.0
_LOOK_EVERY_S = 0.1
_SHIFT_STEP_MS = 60_000
"""Shifts are multiples of it, so that buckets of event time begin where the scenario has them."""


class Outcome(NamedTuple):
    """What a scenario has left in the log, and how often a joiner has taken it up.

    `stuck_at` says where it has not come to its end.
    """

    labels: Counter[Label]
    ratios: Ratios
    num_dead_letters: int
    exit_code: int
    num_kills: int
    num_lives: int
    log: str
    stuck_at: str = ""


class Clients:
    """What all plays share."""

    def __init__(self, endpoint: str) -> None:
        kafka = KafkaConfig(bootstrap_servers=endpoint)
        self.endpoint = endpoint
        self.admin = AdminClient(client_settings(kafka, {}, {}))
        self.producer = KafkaProducer(kafka)


class Play:
    """One scenario on its way. `run` yields whenever it waits for the joiner."""

    def __init__(self, scenario: Scenario, clients: Clients, folder: Path, *, is_killed: bool) -> None:
        self.scenario, self._is_killed = scenario, is_killed
        prefix = f"{scenario.name.replace('_', '-')}-{'killed' if is_killed else 'undisturbed'}-"
        self._kafka = KafkaConfig(
            bootstrap_servers=clients.endpoint, topic_prefix=prefix, num_partitions=scenario.num_partitions
        )
        folder.mkdir(parents=True)
        create_topics(self._kafka)
        self._admin, self._producer = clients.admin, clients.producer
        self._reader = KafkaReader(self._kafka)
        examples = topic_name(self._kafka, EXAMPLES)
        self._reader.assign({TopicPartition(examples, number): 0 for number in range(scenario.num_partitions)})
        self._num_labels = 0
        self._num_sent: Counter[tuple[str, int]] = Counter()
        self._joiners = Joiners(
            write_run(folder / "run.yaml", self._kafka, scenario.schema, dict(scenario.join_settings)), folder
        )
        self.waits_for = "its start"

    def run(self) -> Iterator[None]:
        """Plays the scenario to its end; one kill falls when half of it is committed and the next message is sent."""
        self._joiners.start("one", static=True)
        scenario, middle = self.scenario, len(self.scenario.steps) // 2
        shift_ms = self._shift_ms()
        for number, step in enumerate(scenario.steps):
            is_middle = self._is_killed and number == middle
            if is_middle:
                yield from self._until(self._is_all_committed, "half of it is committed")
            if isinstance(step, Until):
                yield from self._until(partial(self._has_labels, step.until_labels), f"{step.until_labels} labels")
            elif isinstance(step, Raw):
                self._send(step.topic, step.user, step.raw.encode())
            else:
                self._send_event(step.event(shift_ms))
            if is_middle:
                self._joiners.kill("one")
                self._joiners.start("one", static=True)
        yield from self._until(lambda: _now_ms() >= scenario.after_ms + shift_ms, "the time of its end")
        for user in self._users_of_all_partitions():
            self._send_event(Impression(LAST, user, "home", scenario.after_ms + shift_ms, Items(id=["a"])))
            self._send_event(Feedback(LAST, user, "a", "end", scenario.after_ms + shift_ms))
        yield from self._until(self._is_all_committed, "all of it is committed")

    def ask_to_stop(self) -> None:
        """Sends the joiner a SIGTERM."""
        self._joiners.ask_to_leave("one")

    def outcome(self) -> Outcome:
        """Waits for the end of the joiner; returns what is in the log."""
        exit_code = self._joiners.close()["one"]
        self._reader.close()
        schema = self.scenario.schema
        examples = [message.value for message in read_topic(self._kafka, EXAMPLES)]
        labels = Counter(label for value in examples for label in labels_in(value, schema) if label[0] != LAST)
        return Outcome(
            labels,
            {place: ratio for value in examples for place, ratio in ratios_in(value, schema).items()},
            len(read_topic(self._kafka, DEAD_LETTER)),
            exit_code,
            int(self._is_killed),
            self._joiners.num_takeovers("one") // self._kafka.num_partitions,
            self._joiners.log_path("one").read_text(),
            self.waits_for,
        )

    def _shift_ms(self) -> int:
        if self.scenario.is_ahead:
            return _now_ms() - max(step.at for step in self.scenario.steps if not isinstance(step, Until))
        return (_now_ms() - self.scenario.after_ms) // _SHIFT_STEP_MS * _SHIFT_STEP_MS

    def _until(self, condition: Callable[[], bool], what: str) -> Iterator[None]:
        assert self._producer.flush(30_000) == 0
        self.waits_for = what
        while not condition():
            yield
        self.waits_for = ""

    def _has_labels(self, num_labels: int) -> bool:
        for message in self._reader.poll(1_000, 10):
            self._num_labels += len(labels_in(message.value, self.scenario.schema))
        return self._num_labels >= num_labels

    def _is_all_committed(self) -> bool:
        """Returns whether committed transactions hold everything that was sent."""
        group = self._kafka.topic_prefix + GROUP_ID
        asked = [Position(topic_name(self._kafka, topic), number) for topic, number in self._num_sent]
        found = self._admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, asked)])[group].result(30)
        reached = {
            (at.topic.removeprefix(self._kafka.topic_prefix), at.partition): _progress(at.metadata).next
            for at in found.topic_partitions
            if at.metadata
        }
        return reached == dict(self._num_sent)

    def _send_event(self, event: Impression | Feedback) -> None:
        self._send(IMPRESSIONS if isinstance(event, Impression) else FEEDBACK, event.user_id, encode(event))

    def _send(self, topic: str, user: str, value: bytes) -> None:
        assert self._producer.produce(topic_name(self._kafka, topic), user.encode(), value)
        self._num_sent[(topic, partition_hash(user.encode()) % self._kafka.num_partitions)] += 1

    def _users_of_all_partitions(self) -> list[str]:
        found: dict[int, str] = {}
        for number in range(100):
            found.setdefault(partition_hash(f"last{number}".encode()) % self._kafka.num_partitions, f"last{number}")
        assert len(found) == self._kafka.num_partitions
        return list(found.values())


def _progress(metadata: str) -> Progress:
    return Progress(**json.loads(metadata))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture(scope="module", params=["undisturbed", "killed"])
def outcomes(
    request: pytest.FixtureRequest, apache_broker: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """What each scenario came to, by name."""
    folder = tmp_path_factory.mktemp(request.param)
    is_killed = request.param == "killed"
    clients = Clients(apache_broker)
    plays = [Play(scenario, clients, folder / name, is_killed=is_killed) for name, scenario in SCENARIOS.items()]
    running = [play.run() for play in plays]
    deadline_s = time.monotonic() + _TIMEOUT_S
    try:
        while running and time.monotonic() < deadline_s:
            running = [run for run in running if next(run, "done") != "done"]
            time.sleep(_LOOK_EVERY_S)
    finally:
        for play in plays:
            play.ask_to_stop()
        outcomes = {play.scenario.name: play.outcome() for play in plays}
    return outcomes


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_labels_are_those_of_the_file(outcomes: dict[str, Outcome], name: str) -> None:
    outcome, scenario = outcomes[name], SCENARIOS[name]
    assert not outcome.stuck_at, f"still waiting: {outcome.stuck_at}; {outcome.log}"
    assert outcome.exit_code == ExitCode.OK, outcome.log
    assert outcome.num_lives > outcome.num_kills
    assert outcome.labels == scenario.expected
    assert outcome.ratios == scenario.ratios
    assert outcome.num_dead_letters == scenario.counters.get("malformed", 0)
