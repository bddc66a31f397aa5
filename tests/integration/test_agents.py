"""The agents as a process: sequences in Redis exact through duplicates, kills and a Redis that goes away."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis as redis_client

from freshrank.embedded import start_redis
from stream.agents_config import AgentsConfig
from stream.codec import decode_sequence, encode
from stream.kafka_producer import KafkaProducer
from stream.log import FEEDBACK, KafkaConfig, topic_name
from stream.online_metrics_config import OnlineMetricsConfig
from stream.schema import Feedback, SchemaConfig, TaskConfig
from tests.integration.agents_process import start_agents

WaitUntil = Callable[..., None]
START_MS = 1_700_000_000_000
SCHEMA = SchemaConfig(scenarios=("home",), tasks={"click": TaskConfig(action="click", window_ms=1_000)})


class Agents:
    """The process, what it is fed, and what should be in Redis."""

    def __init__(self, kafka: KafkaConfig, redis_url: str, folder: Path, wait_until: WaitUntil) -> None:
        self.kafka, self.redis_url, self.folder, self.wait_until = kafka, redis_url, folder, wait_until
        self.prefix = f"{uuid.uuid4().hex}:"
        self.redis = redis_client.Redis.from_url(redis_url)
        self.producer = KafkaProducer(kafka)
        self.sent: dict[str, list[Feedback]] = {}
        self.start()

    def start(self) -> None:
        self.child = start_agents(
            "agents",
            kafka=self.kafka,
            redis_url=self.redis_url,
            config=AgentsConfig(sequence_length=5, prefix=self.prefix, metrics=OnlineMetricsConfig(enabled=False)),
            schema=SCHEMA,
            folder=self.folder,
            instance_id="agents-0",
        )

    def send(self, numbers: range) -> None:
        """Sends one click per number, to three users; every third twice, and one message that is none."""
        for n in numbers:
            feedback = Feedback(f"r{n}", f"u{n % 3}", f"i{n}", "click", START_MS + n, event_id=f"e{n}")
            self.sent.setdefault(feedback.user_id, []).append(feedback)
            for _ in range(1 + (n % 3 == 0)):
                self._produce(feedback.user_id, encode(feedback))
        self._produce("u0", b"{not json")
        self._produce("u0", encode(Feedback("r", "u0", "i", "other", START_MS, event_id="other")))
        assert self.producer.flush(20_000) == 0

    def _produce(self, user_id: str, value: bytes) -> None:
        assert self.producer.produce(topic_name(self.kafka, FEEDBACK), user_id.encode(), value)

    def items(self, user_id: str) -> list[str]:
        value = self.redis.get(self.prefix + user_id)
        return decode_sequence(value).item_id if value else []

    def is_up_to_date(self) -> bool:
        assert self.child.exit_code() is None, self.child.log_path.read_text()
        return all(
            self.items(user_id) == [feedback.item_id for feedback in reversed(sent)][:5]
            for user_id, sent in self.sent.items()
        )

    def stop(self) -> int:
        self.redis.close()
        return self.child.stop(20)


@pytest.fixture
def agents(kafka: KafkaConfig, redis_server: str, tmp_path: Path, wait_until: WaitUntil) -> Iterator[Agents]:
    agents = Agents(kafka, redis_server, tmp_path, wait_until)
    yield agents
    agents.stop()


def test_sequences_are_exact_through_a_kill_and_a_clean_stop(agents: Agents) -> None:
    agents.send(range(10))
    agents.wait_until(agents.is_up_to_date, "the first sequences are in Redis", timeout_s=60)
    agents.child.kill()  # what it had read since its last commit comes again
    agents.send(range(10, 20))
    agents.start()
    agents.wait_until(agents.is_up_to_date, "the restarted agents have caught up", timeout_s=60)
    assert agents.redis.ttl(agents.prefix + "u1") > 86_400
    assert agents.stop() == 0


def test_while_redis_is_gone_feedback_waits(
    noida_broker: str, free_port: Callable[[], int], tmp_path: Path, wait_until: WaitUntil
) -> None:
    from stream.topics import create_topics

    kafka = KafkaConfig(bootstrap_servers=noida_broker, topic_prefix=f"t{uuid.uuid4().hex[:8]}-")
    create_topics(kafka)
    port = free_port()
    service = start_redis(tmp_path / "redis", port)
    agents = Agents(kafka, f"redis://127.0.0.1:{port}/0", tmp_path, wait_until)
    try:
        agents.send(range(5))
        agents.wait_until(agents.is_up_to_date, "the first sequences are in Redis", timeout_s=60)
        service.stop()
        agents.send(range(5, 15))
        log = agents.child.log_path
        agents.wait_until(lambda: "Redis does not answer" in log.read_text(), "it notices")
        service = start_redis(tmp_path / "redis", port)
        newest = {
            user_id: [feedback.item_id for feedback in reversed(sent)][:3] for user_id, sent in agents.sent.items()
        }
        agents.wait_until(  # the new Redis knows no older ones
            lambda: {user_id: agents.items(user_id)[:3] for user_id in newest} == newest,
            "what came meanwhile is in the new Redis",
            timeout_s=60,
        )
    finally:
        agents.stop()
        service.stop()
