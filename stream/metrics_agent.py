"""Keeps online metrics of what was served, exactly once: state and offset are one value in Redis.

    examples -> batch -> decode, fold -> 1 state with its offset written to Redis -> 2 batch acknowledged

Kafka's committed offset only says where reading starts. It never passes the stored one, and what comes a second time
is known by its offset. What memory holds is dropped at every rebalance and read back at the next message; between two
batches Redis has all of it.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from stream.agents_config import AgentCounters
from stream.exceptions import DecodeError
from stream.online_figures import CellFigures, figures
from stream.online_metrics import PartitionMetrics
from stream.online_metrics_config import OnlineMetricsConfig
from stream.partition_store import PartitionStore
from stream.patient import until_redis_answers
from stream.schema import SchemaConfig
from stream.settled_labels import Cell, read_settled

_LOG = logging.getLogger(__name__)

EndOffset = Callable[[int], Awaitable[int]]
"""Asks Kafka for the end of a partition of `examples`."""


class Delivery(NamedTuple):
    """One message of `examples`."""

    partition: int
    offset: int
    value: bytes


class MetricsAgent:
    """The partitions that this worker keeps the metrics of."""

    def __init__(
        self,
        config: OnlineMetricsConfig,
        schema: SchemaConfig,
        store: PartitionStore,
        counters: AgentCounters,
        end_offset: EndOffset,
    ) -> None:
        self._config = config
        self._tasks = tuple(schema.tasks)
        self._store = store
        self._counters = counters
        self._end_offset = end_offset
        self._partitions: dict[int, PartitionMetrics] = {}
        self.alarms: Counter[Cell] = Counter()
        """Drift alarms raised by this worker; counted when the state that knows of them is stored."""

    def forget(self) -> None:
        """Drops what is in memory: partitions may have changed hands."""
        self._partitions = {}

    def figures(self) -> list[CellFigures]:
        """Returns the figures of this worker's partitions; any thread may ask."""
        return figures(list(self._partitions.values()))

    async def take(self, deliveries: Iterable[Delivery]) -> None:
        """Takes up messages, in order per partition; returns when Redis has what came of them.

        While Redis is gone it waits and tries again, for as long as it takes.
        """
        by_partition: dict[int, list[Delivery]] = {}
        for delivery in deliveries:
            by_partition.setdefault(delivery.partition, []).append(delivery)
        for partition, messages in by_partition.items():
            held = self._partitions  # a rebalance meanwhile puts another dictionary there
            metrics = held.get(partition) or await self._load(partition)
            news = [message for message in messages if message.offset >= metrics.next_offset]
            self._counters.examples_repeated += len(messages) - len(news)
            alarms: Counter[Cell] = Counter()
            for message in news:
                self._fold(metrics, message, alarms)
            if not news or await self._is_stored(partition, metrics):
                self.alarms += alarms
                held[partition] = metrics
            else:
                held.pop(partition, None)

    def _fold(self, metrics: PartitionMetrics, message: Delivery, alarms: Counter[Cell]) -> None:
        try:
            settled = read_settled(message.value, self._tasks)
        except DecodeError as error:
            if not self._counters.examples_malformed:
                _LOG.warning("Left out a message that cannot be read. offset=%d error=%s", message.offset, error)
            self._counters.examples_malformed += 1
            metrics.skip(message.offset)
            return
        result = metrics.fold(message.offset, settled)
        alarms.update(result.alarms)
        for scenario, task in result.alarms:
            _LOG.warning("The calibration of what is served has changed. scenario=%s task=%s", scenario, task)
        self._counters.labels += result.num_labels
        self._counters.labels_left_out += result.num_left_out
        self._counters.labels_unscored += settled.num_unscored

    async def _load(self, partition: int) -> PartitionMetrics:
        data = await until_redis_answers(lambda: self._store.load(partition), self._counters)
        if data is None:
            return PartitionMetrics(self._config)
        try:
            metrics = PartitionMetrics.decode(data, self._config)
            end = await self._end_offset(partition)
            if metrics.next_offset > end:
                raise DecodeError(f"state of online metrics: beyond the end of the partition, {end}: a topic made anew")
        except DecodeError as error:
            _LOG.warning("Online metrics start anew. partition=%d error=%s", partition, error)
            await until_redis_answers(lambda: self._store.discard(partition), self._counters)
            return PartitionMetrics(self._config)
        return metrics

    async def _is_stored(self, partition: int, metrics: PartitionMetrics) -> bool:
        """Stores the metrics; returns False if another worker's go further."""
        state = metrics.encode()
        return await until_redis_answers(
            lambda: self._store.save(partition, metrics.next_offset, state), self._counters
        )
