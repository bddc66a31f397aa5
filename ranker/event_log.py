"""Impressions and feedback on their way to the log. Nothing here waits: what does not fit in the buffer is counted."""

from collections.abc import Sequence

from ranker.stats import RankerStats
from stream.codec import encode
from stream.log import FEEDBACK, IMPRESSIONS, KafkaConfig, Producer, topic_name
from stream.schema import Feedback, Impression


class EventLog:
    """Writes both topics, keyed by user, so that a user's slates and feedback meet in one partition number."""

    def __init__(self, producer: Producer, kafka: KafkaConfig, stats: RankerStats) -> None:
        self._producer = producer
        self._impressions = topic_name(kafka, IMPRESSIONS)
        self._feedback = topic_name(kafka, FEEDBACK)
        self._stats = stats
        self.is_full = False
        """Whether the last impression found no room."""

    def impression(self, impression: Impression) -> bool:
        """Hands one impression over. False: the buffer is full and the impression is lost."""
        is_queued = self._producer.produce(self._impressions, impression.user_id.encode(), encode(impression))
        self.is_full = not is_queued
        if is_queued:
            self._stats.impressions += 1
        else:
            self._stats.impressions_dropped += 1
        return is_queued

    def feedback(self, actions: Sequence[Feedback]) -> int:
        """Hands actions over, in order, until the buffer is full. Returns how many were taken."""
        num_taken = 0
        for action in actions:
            if not self._producer.produce(self._feedback, action.user_id.encode(), encode(action)):
                break
            num_taken += 1
        self._stats.feedback += num_taken
        self._stats.feedback_dropped += len(actions) - num_taken
        return num_taken

    def poll(self) -> None:
        """Serves delivery reports; call it regularly."""
        self._producer.poll()

    @property
    def num_failed(self) -> int:
        """Messages that were queued and then given up by the client."""
        return self._producer.num_failed

    def flush(self, timeout_ms: int) -> int:
        """Waits for what is queued. Returns how many messages are still there after `timeout_ms`."""
        return self._producer.flush(timeout_ms)
