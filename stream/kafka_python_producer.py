"""The writing side of the log on Kafka with kafka-python: the same contract as `stream.kafka_producer`.

The reading side is in `stream.kafka_python_log`. What differs from librdkafka: a producer cannot be made while no
broker answers, and the first message to a topic waits for the topic's partitions, at most a second.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kafka
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.structs import OffsetAndMetadata as Committed

from stream.exceptions import LogUnavailableError, TransactionAbortedError
from stream.kafka_python_client import build_client, client_logger, client_settings, is_fenced, translate, within
from stream.kafka_python_log import KafkaPythonGroupMember
from stream.log import GroupMember, KafkaConfig, OffsetAndMetadata, TopicPartition

_MAX_BUFFERED_BYTES = 32 * 1024 * 1024
_STEP_TIMEOUT_S = 60.0
"""A step of a transaction is tried for a minute before the worker gives up."""
_FLUSHES = 5
_CLOSE_TIMEOUT_S = 5.0
_WRITING: dict[str, Any] = {
    "acks": "all",
    "allow_auto_create_topics": False,
    "metrics_enabled": False,
    "max_request_size": 64 * 1024 * 1024,  # the broker knows best what is too large
}


class KafkaPythonProducer:
    """Sends without waiting: `stream.log.Producer`.

    Messages wait in a buffer of `max_messages` and 32 MiB, each for at most `message_timeout_ms`, and what is given up
    is counted.

    Raises:
        LogUnavailableError: from the constructor, when no broker answers.
    """

    def __init__(self, config: KafkaConfig, *, max_messages: int = 100_000, message_timeout_ms: int = 120_000) -> None:
        self._max_messages = max_messages
        self._lock = threading.Lock()
        self._num_queued = 0
        self._num_bytes = 0
        self._num_failed = 0
        ours = {
            "linger_ms": 2,
            "delivery_timeout_ms": message_timeout_ms,
            "request_timeout_ms": min(30_000, message_timeout_ms // 2),
            "max_block_ms": 1_000,
            "enable_idempotence": False,  # with it, one message that is refused would be the last one sent
        }
        self._producer: Any = build_client(config, kafka.KafkaProducer, client_settings(config, {**_WRITING, **ours}))

    def produce(self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> bool:
        """Queues one message. Returns False, without blocking, if the buffer is full: the caller counts it.

        What can never be sent (too large, no such topic) is counted in `num_failed`.
        """
        num_bytes = len(value) + len(key or b"")
        with self._lock:
            if self._num_queued >= self._max_messages or self._num_bytes + num_bytes > _MAX_BUFFERED_BYTES:
                return False
            self._num_queued += 1
            self._num_bytes += num_bytes
        try:
            sent = self._producer.send(topic, value, key, headers=list(headers))
        except KafkaError as error:
            self._take_result(num_bytes, topic, error)
            return True
        sent.add_callback(lambda _metadata: self._take_result(num_bytes, topic, None))
        sent.add_errback(lambda error: self._take_result(num_bytes, topic, error))
        return True

    def poll(self) -> None:
        """Serves delivery reports; kafka-python's own thread has done it already."""

    @property
    def num_failed(self) -> int:
        """Messages that were queued and then given up by the client."""
        return self._num_failed

    @property
    def num_queued(self) -> int:
        """Messages that wait to be sent or for the broker's answer."""
        return self._num_queued

    def flush(self, timeout_ms: int) -> int:
        """Waits for the queue to empty. Returns how many messages are still in it after `timeout_ms`."""
        for _ in range(_FLUSHES):
            try:
                self._producer.flush(timeout_ms / 1_000)
                break
            except KafkaTimeoutError:
                break
            except KafkaError:
                continue  # a batch was too large and is sent in parts, which it does not wait for
        return self._num_queued

    def close(self) -> None:
        """Sends what is queued, for at most five seconds, and releases the connection."""
        _close(self._producer)

    def _take_result(self, num_bytes: int, topic: str, error: BaseException | None) -> None:
        with self._lock:
            self._num_queued -= 1
            self._num_bytes -= num_bytes
            self._num_failed += error is not None
        if error is not None:
            client_logger().warning("UNSENT message given up. topic=%s error=%s", topic, error)


_EPOCH_LOOKS, _EPOCH_LOOK_S = 200, 0.05
"""How often, and after how many seconds each, one looks whether a new epoch has come."""


class KafkaPythonTransactionalProducer:
    """One transaction at a time on Kafka: `stream.log.TransactionalProducer`.

    Creating it fences every earlier producer of the same `transactional_id` and ends its open transaction.

    Raises, from every method:
        FencedError: another producer of this id, or a newer generation of the group, has taken over.
        TransactionAbortedError: the transaction could not be completed and has been dropped; begin the next one.
        LogUnavailableError: the broker did not answer for a minute.
    """

    def __init__(self, config: KafkaConfig, transactional_id: str, *, transaction_timeout_ms: int = 10_000) -> None:
        self._config = config
        self._sent: list[Any] = []
        self._is_open = False
        ours = {
            "transactional_id": transactional_id,
            "transaction_timeout_ms": transaction_timeout_ms,
            "linger_ms": 5,
            "delivery_timeout_ms": transaction_timeout_ms,
            "request_timeout_ms": transaction_timeout_ms // 2,
            "max_block_ms": int(_STEP_TIMEOUT_S * 1_000),
        }
        self._producer: Any = build_client(config, kafka.KafkaProducer, client_settings(config, {**_WRITING, **ours}))
        try:
            self._producer.init_transactions()
        except KafkaError as error:
            _close(self._producer)
            raise translate(config, error, "registering the producer") from error

    @property
    def call(self) -> int | None:
        """Returns None: no call of this client is known to hang."""
        return None

    def begin(self) -> None:
        """Opens a transaction."""
        self._sent.clear()
        self._try("opening a transaction", self._producer.begin_transaction)
        self._is_open = True

    def produce(self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Adds one message to the open transaction; waits while the topic's partitions are not known."""
        self._try(
            f"writing to {topic}",
            lambda: self._sent.append(self._producer.send(topic, value, key, headers=list(headers))),
        )

    def send_offsets(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], member: GroupMember) -> None:
        """Adds the group's input offsets, with metadata, to the open transaction (KIP-447)."""
        if not isinstance(member, KafkaPythonGroupMember):
            raise TypeError(f"member: {type(member).__name__} is not a KafkaPythonGroupMember")
        positions = {
            kafka.TopicPartition(*partition): Committed(committed.offset, committed.metadata)
            for partition, committed in offsets.items()
        }
        self._wait(
            "committing offsets",
            lambda: self._producer.send_offsets_to_transaction(positions, member.group_metadata),
        )

    def commit(self) -> None:
        """Makes all of it visible. Returns only when it is durable."""
        self._wait("committing", self._producer.commit_transaction)
        self._is_open = False
        # After a lost sequence number kafka-python starts a new epoch, in which it "commits" nothing, without a word.
        lost = [sent for sent in self._sent if not sent.succeeded()]
        if lost:
            raise TransactionAbortedError(f"the transaction was dropped while committing ({lost[0].exception})")

    def abort(self) -> None:
        """Drops all of it."""
        self._is_open = False
        self._wait("aborting", self._producer.abort_transaction)

    def close(self) -> None:
        """Aborts what is open and releases the connection."""
        try:
            if self._is_open:
                self.abort()
        finally:
            _close(self._producer)

    def _wait(self, doing: str, step: Callable[[], object]) -> None:
        """Does one step that waits for the broker, for at most a minute."""
        try:
            self._try(doing, lambda: within(self._config, _STEP_TIMEOUT_S, doing, step))
        except LogUnavailableError:
            self._is_open = False  # nothing more can be done with it: the broker will time it out
            raise

    def _try(self, doing: str, step: Callable[[], object]) -> None:
        """Does one step of a transaction; after an error, drops what can be dropped."""
        try:
            step()
        except KafkaError as error:
            was_open, self._is_open = self._is_open, False
            if was_open and self._is_dropped() and not is_fenced(error):
                raise TransactionAbortedError(f"the transaction was dropped while {doing} ({error})") from error
            raise translate(self._config, error, doing) from error

    def _is_dropped(self) -> bool:
        """Aborts after an error. Returns whether the producer can go on; after a fatal error it cannot."""
        for _ in range(_EPOCH_LOOKS):
            try:
                within(self._config, _STEP_TIMEOUT_S, "aborting", self._producer.abort_transaction)
            except KafkaError as error:
                if "from state BUMPING_PRODUCER_EPOCH" not in str(error):
                    return "from state READY" in str(error)  # it had aborted by itself
                time.sleep(_EPOCH_LOOK_S)  # it is about to abort by itself: it asks for a new epoch
            else:
                return True
        return False


def _close(producer: Any) -> None:
    """Sends what is queued, for a while, and releases the connection; what is still unsent then is given up."""
    try:
        producer.close(timeout=_CLOSE_TIMEOUT_S)
    except KafkaTimeoutError:
        producer._sender.force_close()  # noqa: SLF001 - close() gets that far only when all is sent
        producer.close(timeout=_CLOSE_TIMEOUT_S)
