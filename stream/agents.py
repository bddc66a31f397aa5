"""The Faust app: each user's last actions, and online metrics of what was served, both in Redis.

    feedback -> batch -> stream.sequence_agent -> 1 sequences written to Redis -> 2 batch acknowledged
    examples -> batch -> stream.metrics_agent  -> 1 state with its offset      -> 2 batch acknowledged

What is acknowledged is committed later, so after a crash some of it comes again. Sequences take an action twice
without a change; metrics know by the offset what they have taken up.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faust
from faust.types import TP
from redis.asyncio import Redis

from stream.agents_config import AgentCounters, AgentsConfig
from stream.exceptions import LogUnavailableError
from stream.faust_fetch import install_fetcher
from stream.kafka_adapter import reader as new_reader
from stream.kafka_security import faust_credentials
from stream.log import EXAMPLES, FEEDBACK, KafkaConfig, topic_name
from stream.partition_store import PartitionStore
from stream.schema import SchemaConfig
from stream.sequence_agent import SequenceAgent
from stream.sequence_store import SequenceStore

if TYPE_CHECKING:
    from stream.metrics_agent import MetricsAgent
    from stream.online_figures import CellFigures

APP_ID = "freshrank-agents"
"""Consumer group of the app, after the topic prefix."""
_BATCH_WITHIN_S = 0.02
_BATCH_EXAMPLES = 200
_STOP_LOOK_S = 0.1
_REDIS_TIMEOUT_S = 5.0


class Agents:
    """The agents of one process; `figures` and `alarms` may be read from any thread."""

    def __init__(self, kafka: KafkaConfig, config: AgentsConfig, redis_url: str, schema: SchemaConfig) -> None:
        self.counters = AgentCounters()
        self._kafka = kafka
        self._config = config
        self._redis_url = redis_url
        self._schema = schema
        self._metrics: MetricsAgent | None = None

    def figures(self) -> list["CellFigures"]:
        """Returns the online metrics of the partitions that this process has now; none where they are off."""
        return [] if self._metrics is None else self._metrics.figures()

    def alarms(self) -> dict[tuple[str, str], int]:
        """Returns the drift alarms that this process has raised, by scenario and task."""
        return {} if self._metrics is None else dict(self._metrics.alarms)

    def run(self, folder: Path, should_stop: Callable[[], bool], *, instance_id: str | None = None) -> None:
        """Runs until `should_stop()`; `folder` is where Faust may keep files of its own.

        Raises:
            LogUnavailableError: Kafka does not answer or a topic is missing.
            ClientSettingError: the Kafka settings ask for security that Faust cannot do; the text names the setting.
            redis.RedisError: Redis does not answer at the start; later it is waited for.
        """
        reader = new_reader(self._kafka)
        for topic in (FEEDBACK, EXAMPLES) if self._config.metrics.enabled else (FEEDBACK,):
            name = topic_name(self._kafka, topic)
            if reader.num_partitions(name) == 0:
                reader.close()
                raise LogUnavailableError(f"topic {name} does not exist; create it with `freshrank topics`")
        reader.close()
        asyncio.run(self._run(folder, should_stop, instance_id))

    async def _run(self, folder: Path, should_stop: Callable[[], bool], instance_id: str | None) -> None:
        redis = Redis.from_url(self._redis_url, socket_timeout=_REDIS_TIMEOUT_S)
        try:
            await redis.ping()
            app = new_app(self._kafka, folder, instance_id=instance_id)
            self._add_sequences(app, redis)
            if self._config.metrics.enabled:
                self._add_metrics(app, redis)
            app.finalize()
            await app.start()
            while not should_stop() and not app.should_stop:
                await asyncio.sleep(_STOP_LOOK_S)
            await app.stop()
            if app.crash_reason is not None:
                raise app.crash_reason
        finally:
            await redis.aclose()

    def _add_sequences(self, app: faust.App, redis: Redis) -> None:
        config = self._config
        store = SequenceStore(redis, prefix=config.prefix, length=config.sequence_length, ttl_s=config.ttl_s)
        agent = SequenceAgent(config, self._schema, store, self.counters)
        feedback = app.topic(topic_name(self._kafka, FEEDBACK), value_type=bytes, value_serializer="raw")

        @app.agent(feedback)
        async def keep_sequences(stream: Any) -> None:  # its type does not know noack_take
            async for events in stream.noack_take(config.batch_events, within=_BATCH_WITHIN_S):
                # 1 sequences written to Redis
                await agent.write([(event.value, int(event.message.timestamp * 1_000)) for event in events])
                # 2 batch acknowledged
                for event in events:
                    event.ack()

    def _add_metrics(self, app: faust.App, redis: Redis) -> None:
        from stream.metrics_agent import Delivery, MetricsAgent  # imports river, which takes a second and 80 MB

        config = self._config.metrics
        topic = topic_name(self._kafka, EXAMPLES)

        async def end_offset(partition: int) -> int:
            at = TP(topic, partition)
            return int((await app.consumer.highwaters(at))[at])

        store = PartitionStore(redis, prefix=config.prefix, topic=topic)
        agent = self._metrics = MetricsAgent(config, self._schema, store, self.counters, end_offset)
        examples = app.topic(topic, value_type=bytes, value_serializer="raw")

        @app.agent(examples)
        async def keep_metrics(stream: Any) -> None:
            async for events in stream.noack_take(_BATCH_EXAMPLES, within=config.interval_ms / 1_000):
                # What was fetched before a rebalance may have holes, and all of it comes again.
                fresh = [event for event in events if event.message.generation_id == app.consumer_generation_id]
                # 1 state with its offset written to Redis
                await agent.take(
                    [Delivery(event.message.partition, event.message.offset, event.value) for event in fresh]
                )
                # 2 batch acknowledged
                for event in fresh:
                    event.ack()

        @app.on_partitions_assigned.connect
        async def forget(_app: Any, /, *_assigned: Any, **_signal: Any) -> None:
            agent.forget()


def new_app(kafka: KafkaConfig, folder: Path, *, instance_id: str | None = None) -> faust.App:
    """Returns an app without agents yet.

    Raises:
        ClientSettingError: the Kafka settings ask for security that Faust cannot do; the text names the setting.
    """
    install_fetcher()
    return faust.App(
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
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_request_timeout=20.0,
        stream_wait_empty=False,
    )
