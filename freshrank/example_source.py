"""A topic as the trainer's, or the blend worker's, source: all partitions or a rank's, offsets from a checkpoint."""

from collections.abc import Collection, Mapping

from model.source import ExampleMessage
from stream.exceptions import LogUnavailableError
from stream.log import EXAMPLES, KafkaConfig, Reader, TopicPartition, topic_name


class LogExampleSource:
    """An `ExampleSource` over a `Reader`. Takes the partitions of the topic: `examples`, if no other is named.

    Raises:
        LogUnavailableError: the topic does not exist.
    """

    def __init__(
        self, reader: Reader, kafka: KafkaConfig, topic: str = EXAMPLES, *, rank: int = 0, num_ranks: int = 1
    ) -> None:
        """Takes every partition whose number leaves `rank` when divided by `num_ranks`."""
        self._reader = reader
        self._rank, self._num_ranks = rank, num_ranks
        self._topic = topic_name(kafka, topic)
        self._num_partitions = reader.num_partitions(self._topic)
        if self._num_partitions == 0:
            raise LogUnavailableError(f"topic {self._topic} does not exist: create it with `freshrank topics create`")

    def partitions(self) -> Collection[int]:
        """Returns the partitions that it takes; there may be none."""
        return range(self._rank, self._num_partitions, self._num_ranks)

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Goes on at the given offsets; elsewhere at the oldest one kept."""
        partitions = [TopicPartition(self._topic, number) for number in self.partitions()]
        begin = self._reader.begin_offsets(partitions)
        self._reader.assign({at: offsets.get(at.partition, begin[at]) for at in partitions})

    def poll(self, max_messages: int, timeout_ms: int) -> list[ExampleMessage]:
        """Returns what is there, after `timeout_ms` at the latest."""
        found = self._reader.poll(max_messages, timeout_ms)
        return [ExampleMessage(one.partition, one.offset, one.value, one.timestamp_ms) for one in found]

    def finished(self) -> Collection[int]:
        """Returns nothing: a live log has no end."""
        return ()
