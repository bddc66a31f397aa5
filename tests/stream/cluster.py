"""Joiners on an in-memory broker with a clock that moves by hand: started, killed and restarted as a test says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from stream.codec import encode
from stream.emission import JoinCounters
from stream.join import JoinConfig
from stream.joiner import Joiner
from stream.log import DEAD_LETTER, EXAMPLES, FEEDBACK, IMPRESSIONS, OUTCOMES, KafkaConfig, Message, TopicPartition
from stream.memory_broker import Crash, CrashSchedule, MemoryBroker
from stream.memory_log import MemoryGroupMember, MemoryProducer, MemoryReader, MemoryTransactionalProducer
from stream.schema import KINDS, Feedback, Impression, SchemaConfig
from stream.spill import Spill, SpillConfig
from tests.stream.oracle import Deeds, Label

GROUP = "join"

Change = tuple[int, str, str]
"""(tick, `start` or `kill`, joiner)"""


class Cluster:
    """A broker, a clock, and the joiners of one group by name."""

    def __init__(
        self,
        schema: SchemaConfig,
        config: JoinConfig,
        num_partitions: int = 2,
        now_ms: int = 0,
        spill: SpillConfig | None = None,
    ) -> None:
        self.schema = schema
        self.config = config
        self.now_ms = now_ms
        self.spill = spill
        self.spills: dict[str, Spill] = {}
        """Of each joiner, if any: a folder of its name in the folder of `spill`."""
        self.broker = MemoryBroker(lambda: self.now_ms)
        for topic in (IMPRESSIONS, FEEDBACK, EXAMPLES, OUTCOMES, DEAD_LETTER):
            self.broker.create_topic(topic, num_partitions)
        self.crashes = CrashSchedule()
        self.counted = JoinCounters()
        """Committed by joiners that are no more."""
        self.joiners: dict[str, Joiner] = {}
        self._members: dict[str, MemoryGroupMember] = {}
        self._producer = MemoryProducer(self.broker)

    def send(self, *events: Impression | Feedback) -> None:
        for event in events:
            topic = IMPRESSIONS if isinstance(event, Impression) else FEEDBACK
            self._producer.produce(topic, event.user_id.encode(), encode(event))

    def send_bytes(self, topic: str, value: bytes, user: str = "u") -> None:
        self._producer.produce(topic, user.encode(), value)

    def start(self, name: str = "one") -> Joiner:
        self._members[name] = MemoryGroupMember(self.broker, GROUP, name, [IMPRESSIONS, FEEDBACK], crashes=self.crashes)
        producer = MemoryTransactionalProducer(self.broker, name, crashes=self.crashes)
        if self.spill is not None:
            directory = str(Path(str(self.spill.directory)) / name)
            self.spills[name] = Spill(replace(self.spill, directory=directory))
        self.joiners[name] = Joiner(
            self.schema,
            self.config,
            self._members[name],
            producer,
            KafkaConfig(),
            lambda: self.now_ms,
            self.spills.get(name),
        )
        return self.joiners[name]

    def kill(self, name: str = "one") -> None:
        """The process is gone, and the group has noticed."""
        self.counted.add(self.joiners.pop(name).counters)
        self._members.pop(name)
        if name in self.spills:
            self.spills.pop(name).close()
        self.broker.leave(GROUP, name)

    def turn(self) -> None:
        """Lets each joiner run once; one that crashes starts again at once."""
        for name in list(self.joiners):
            try:
                self.joiners[name].run_once()
            except Crash:
                self.kill(name)
                self.start(name)

    def settle(self) -> None:
        """Lets everything be read, and a night pass, so that all windows close and all is committed."""
        for _ in range(8):
            self.turn()
        self.now_ms += 10 * self.schema.max_window_ms + 100_000
        for _ in range(12):
            self.now_ms += 2 * self.config.idle_ms
            self.turn()

    def play(self, arrivals: Sequence[tuple[int, Impression | Feedback]], changes: Sequence[Change]) -> None:
        """Sends each event when it is due, starts and kills joiners at their tick, then lets everything settle."""
        waiting = list(arrivals)
        tick = 0
        while waiting:
            for at, change, name in changes:
                if at == tick and change == "start" and name not in self.joiners:
                    self.start(name)
                elif at == tick and change == "kill" and name in self.joiners:
                    self.kill(name)
            self.now_ms += 700
            while waiting and waiting[0][0] <= self.now_ms:
                self.send(waiting.pop(0)[1])
            self.turn()
            tick += 1
        if not self.joiners:
            self.start()
        self.settle()

    def counters(self) -> JoinCounters:
        """Returns what all joiners ever committed."""
        total = JoinCounters()
        total.add(self.counted)
        for joiner in self.joiners.values():
            total.add(joiner.counters)
        return total

    def messages(self, topic: str) -> list[Message]:
        reader = MemoryReader(self.broker)
        reader.assign({TopicPartition(topic, number): 0 for number in range(reader.num_partitions(topic))})
        return reader.poll(10**6, 0)

    def labels(self) -> Counter[Label]:
        """Returns the labels in the examples topic, as a reader with read_committed sees them."""
        return Counter(self.labels_in_order())

    def labels_in_order(self) -> list[Label]:
        """Returns the same, in the order of the log."""
        return [label for message in self.messages(EXAMPLES) for label in labels_in(message.value, self.schema)]

    def outcomes(self) -> Counter[tuple[str, Deeds]]:
        """Returns what is in the outcomes topic, as a reader with read_committed sees it."""
        return Counter(outcome for message in self.messages(OUTCOMES) for outcome in outcomes_in(message.value))


def outcomes_in(value: bytes) -> list[tuple[str, Deeds]]:
    """Returns the outcomes of one message, read cell by cell with Arrow alone."""
    outcomes: list[tuple[str, Deeds]] = []
    for row in pa.ipc.open_stream(value).read_all().to_pylist():
        columns = [row[f"action.{name}"] for name in ("position", "name", "value", "first_ts")]
        deeds = [(row["item_id"][position], *deed) for position, *deed in zip(*columns, strict=True)]
        assert len(set(deeds)) == len(deeds)
        outcomes.append((row["request_id"], frozenset(deeds)))
    return outcomes


def labels_in(value: bytes, schema: SchemaConfig) -> list[Label]:
    """Returns the labels of one examples message, read cell by cell with Arrow alone."""
    labels: list[Label] = []
    for row in pa.ipc.open_stream(value).read_all().to_pylist():
        for task in schema.tasks:
            columns = (row["item_id"], row[f"kind.{task}"], row[f"label.{task}"], row[f"delay_ms.{task}"])
            for item, kind, label, delay_ms in zip(*columns, strict=True):
                if KINDS[kind] != "none":
                    labels.append((row["request_id"], item, task, KINDS[kind], label, delay_ms))
    return labels
