"""The Faust app that keeps each user's last actions in Redis, where the next ranking finds them.

    feedback -> batch -> decode, filter -> 1 sequences written to Redis -> 2 batch acknowledged (offset committed later)

At least once: what was not acknowledged comes again, and writing it twice changes nothing (`stream.sequences`).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faust
from redis.asyncio import Redis
from redis.exceptions import RedisError

from stream.codec import EventDecoder
from stream.exceptions import DecodeError, LogUnavailableError
from stream.kafka_adapter import reader as new_reader
from stream.kafka_security import faust_credentials
from stream.log import FEEDBACK, KafkaConfig, topic_name
from stream.paced_fetch import pace_fetches
from stream.schema import Feedback, SchemaConfig
from stream.sequence_store import SequenceStore

_LOG = logging.getLogger(__name__)

APP_ID = "freshrank-agents"
"""Consumer group of the app, after the topic prefix."""
_BATCH_WITHIN_S = 0.02
_STOP_LOOK_S = 0.1
_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 2.0
_REDIS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsConfig:
    """What is kept of each user."""

    sequence_length: int = 100
    """Actions kept per user, the newest; at least 1."""
    ttl_s: int = 2_592_000
    """Seconds after a user's last action when the sequence is forgotten (default 30 days); at least 1."""
    actions: tuple[str, ...] = ()
    """Names of the actions that are kept; empty: those that make a task's label."""
    prefix: str = "freshrank:seq:"
    """In front of the user id in every Redis key; the ranker reads the same."""
    max_ahead_ms: int = 60_000
    """An action further than this after the time it was logged has a wrong clock and is left out; at least 0."""
    batch_events: int = 500
    """Most events written to Redis at a time; at least 1."""

    def __post_init__(self) -> None:
        for name, least in (("sequence_length", 1), ("ttl_s", 1), ("max_ahead_ms", 0), ("batch_events", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")


@dataclass(slots=True, kw_only=True)
class AgentCounters:
    """What the agents of this process have done since they started."""

    events: int = 0
    """Feedback read, all of it."""
    kept: int = 0
    """Feedback written to a sequence."""
    malformed: int = 0
    """Feedback that could not be decoded; the joiner sends it to the dead letters."""
    other_action: int = 0
    """Feedback whose action is not kept."""
    clock_ahead: int = 0
    """Feedback left out because its time is too far after the time it was logged."""
    redis_failures: int = 0
    """Writes to Redis that failed and were tried again."""


class SequenceAgent:
    """Decodes and filters feedback, and writes it until it is written."""

    def __init__(
        self, config: AgentsConfig, schema: SchemaConfig, store: SequenceStore, counters: AgentCounters
    ) -> None:
        self._decoder = EventDecoder(schema)
        self._actions = frozenset(config.actions or (task.action for task in schema.tasks.values()))
        self._max_ahead_ms = config.max_ahead_ms
        self._store = store
        self._counters = counters

    async def write(self, values: Sequence[tuple[bytes, int]]) -> None:
        """Adds feedback, each with the time it was logged in ms, to the sequences; returns when Redis has them.

        While Redis is gone it waits and tries again, for as long as it takes.
        """
        feedback_of: dict[str, list[Feedback]] = {}
        num_kept = 0
        for value, logged_ms in values:
            feedback = self._accept(value, logged_ms)
            if feedback is not None:
                feedback_of.setdefault(feedback.user_id, []).append(feedback)
                num_kept += 1
        wait_s = 0.0
        while feedback_of:
            try:
                await self._store.add(feedback_of)
                break
            except (RedisError, OSError) as error:
                self._counters.redis_failures += 1
                if not wait_s:
                    _LOG.warning("Redis does not take sequences, trying until it does. error=%s", error)
                wait_s = min(2 * wait_s or _FIRST_WAIT_S, _LONGEST_WAIT_S)
                await asyncio.sleep(wait_s)
        if wait_s:
            _LOG.info("Redis takes sequences again. events=%d", num_kept)
        self._counters.events += len(values)
        self._counters.kept += num_kept

    def _accept(self, value: bytes, logged_ms: int) -> Feedback | None:
        try:
            feedback = self._decoder.feedback(value)
        except DecodeError:
            self._counters.malformed += 1
            return None
        if feedback.action not in self._actions:
            self._counters.other_action += 1
            return None
        # One clock in the year 2099 would otherwise stay the newest action for ever.
        if logged_ms > 0 and feedback.ts > logged_ms + self._max_ahead_ms:
            self._counters.clock_ahead += 1
            return None
        return feedback


def build_app(
    kafka: KafkaConfig, agent: SequenceAgent, folder: Path, *, batch_events: int, instance_id: str | None = None
) -> faust.App:
    """Returns the app with its one agent; `folder` is where Faust may keep files of its own.

    Raises:
        ClientSettingError: the Kafka settings ask for security that Faust cannot do; the text names the setting.
    """
    pace_fetches()
    app = faust.App(
        kafka.topic_prefix + APP_ID,
        broker=[f"kafka://{server.strip()}" for server in kafka.bootstrap_servers.split(",")],
        broker_credentials=faust_credentials(kafka.client),
        store="memory://",
        datadir=str(folder),
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=instance_id,
        broker_commit_interval=0.5,
        broker_commit_every=1_000,
        broker_session_timeout=10.0,
        broker_heartbeat_interval=2.0,
        broker_request_timeout=20.0,
        stream_wait_empty=False,
    )
    feedback = app.topic(topic_name(kafka, FEEDBACK), value_type=bytes, value_serializer="raw")

    @app.agent(feedback)
    async def keep_sequences(stream: Any) -> None:  # its type does not know noack_take
        async for events in stream.noack_take(batch_events, within=_BATCH_WITHIN_S):
            # 1 sequences written to Redis
            await agent.write([(event.value, int(event.message.timestamp * 1_000)) for event in events])
            # 2 batch acknowledged
            for event in events:
                event.ack()

    return app


def run_agents(
    kafka: KafkaConfig,
    config: AgentsConfig,
    redis_url: str,
    schema: SchemaConfig,
    counters: AgentCounters,
    folder: Path,
    should_stop: Callable[[], bool],
    *,
    instance_id: str | None = None,
) -> None:
    """Runs the agents until `should_stop()`.

    Raises:
        LogUnavailableError: Kafka does not answer or the topic is missing.
        redis.RedisError: Redis does not answer at the start; later it is waited for.
    """
    feedback = topic_name(kafka, FEEDBACK)
    reader = new_reader(kafka)
    num_partitions = reader.num_partitions(feedback)
    reader.close()
    if num_partitions == 0:
        raise LogUnavailableError(f"topic {feedback} does not exist; create it with `freshrank topics`")
    asyncio.run(_run(kafka, config, redis_url, schema, counters, folder, should_stop, instance_id))


async def _run(
    kafka: KafkaConfig,
    config: AgentsConfig,
    redis_url: str,
    schema: SchemaConfig,
    counters: AgentCounters,
    folder: Path,
    should_stop: Callable[[], bool],
    instance_id: str | None,
) -> None:
    redis = Redis.from_url(redis_url, socket_timeout=_REDIS_TIMEOUT_S)
    try:
        await redis.ping()
        store = SequenceStore(redis, prefix=config.prefix, length=config.sequence_length, ttl_s=config.ttl_s)
        agent = SequenceAgent(config, schema, store, counters)
        app = build_app(kafka, agent, folder, batch_events=config.batch_events, instance_id=instance_id)
        app.finalize()
        await app.start()
        while not should_stop() and not app.should_stop:
            await asyncio.sleep(_STOP_LOOK_S)
        await app.stop()
        if app.crash_reason is not None:
            raise app.crash_reason
    finally:
        await redis.aclose()
