"""The writing side of the log on Kafka: a producer that never waits, and a transactional one for the joiner.

The reading side is in `stream.kafka_log`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import TopicPartition as Position

from stream.exceptions import FencedError, TransactionAbortedError
from stream.kafka_client import (
    REQUEST_TIMEOUT_S,
    TRANSACTION_STATE,
    Connection,
    build_client,
    client_logger,
    client_settings,
    translate,
)
from stream.kafka_log import KafkaGroupMember
from stream.log import GroupMember, KafkaConfig, OffsetAndMetadata, TopicPartition

PARTITIONER = "murmur2_random"
"""As Kafka's Java clients, kafka-python and Faust: a key goes to the same partition whoever writes it."""

_ATTEMPTS = 12
_ATTEMPT_TIMEOUT_S = 5.0
"""A step of a transaction is tried for a minute before the worker gives up; short, so that a stop is noticed."""


class _Writing:
    """What both producers share: the connection, its errors, questions to the broker."""

    def __init__(self, config: KafkaConfig, ours: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._config = config
        self._connection = Connection(config)
        settings = client_settings(config, {"partitioner": PARTITIONER, "acks": "all", **ours}, defaults)
        self._producer: Producer = build_client(Producer, settings | {"error_cb": self._connection.told})

    @property
    def num_errors(self) -> int:
        """Errors of the connection since the start; while the broker is gone they come several times a second."""
        return self._connection.num_errors


class KafkaProducer(_Writing):
    """Sends without waiting: `stream.log.Producer`.

    It starts and goes on without a broker: messages wait in a buffer of `max_messages` and 32 MiB, each for at most
    `message_timeout_ms`, and what is given up is counted. After a lost answer a message may be in the log twice; who
    reads these topics drops duplicates by id.
    """

    def __init__(self, config: KafkaConfig, *, max_messages: int = 100_000, message_timeout_ms: int = 120_000) -> None:
        self._num_failed = 0
        defaults = {
            "linger.ms": 2,
            "queue.buffering.max.messages": max_messages,
            "queue.buffering.max.kbytes": 32_768,
            "message.timeout.ms": message_timeout_ms,
            "delivery.report.only.error": True,
        }
        super().__init__(config, {"on_delivery": self._take_report}, defaults)

    def produce(self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> bool:
        """Queues one message. Returns False, without blocking, if the buffer is full: the caller counts it.

        What can never be sent (too large, no such topic) is counted in `num_failed` at once.
        """
        try:
            self._producer.produce(topic, value, key, headers=list(headers))
        except BufferError:
            self._producer.poll(0)
            return False
        except KafkaException as error:
            self._give_up(topic, error.args[0])
        return True

    def poll(self) -> None:
        """Serves delivery reports; call it regularly."""
        self._producer.poll(0)

    @property
    def num_failed(self) -> int:
        """Messages that were queued and then given up by the client."""
        return self._num_failed

    @property
    def num_queued(self) -> int:
        """Messages that wait to be sent or for the broker's answer."""
        return len(self._producer)

    def flush(self, timeout_ms: int) -> int:
        """Waits for the queue to empty. Returns how many messages are still in it after `timeout_ms`."""
        return self._producer.flush(timeout_ms / 1_000)

    def _take_report(self, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            self._give_up(message.topic(), error)

    def _give_up(self, topic: str, error: KafkaError) -> None:
        self._num_failed += 1
        client_logger().warning("UNSENT message given up. topic=%s error=%s", topic, error.str())


class KafkaTransactionalProducer(_Writing):
    """One transaction at a time on Kafka: `stream.log.TransactionalProducer`.

    Creating it fences every earlier producer of the same `transactional_id` and ends its open transaction. A step that
    the broker does not answer is tried again for a minute.

    Raises, from every method:
        FencedError: another producer of this id, or a newer generation of the group, has taken over.
        TransactionAbortedError: the transaction could not be completed and has been dropped; begin the next one.
        LogUnavailableError: the broker did not answer for a minute.
    """

    def __init__(self, config: KafkaConfig, transactional_id: str, *, transaction_timeout_ms: int = 10_000) -> None:
        ours = {"transactional.id": transactional_id, "transaction.timeout.ms": transaction_timeout_ms}
        super().__init__(config, ours, {"linger.ms": 5, "queue.buffering.max.kbytes": 131_072})
        self._is_open = False
        self._is_fatal = False
        self._num_calls = 0
        self._call: int | None = None
        self._connection.check(self._producer, REQUEST_TIMEOUT_S)
        self._try("registering the producer", self._producer.init_transactions)

    @property
    def call(self) -> int | None:
        """Number of the client's call that is being waited for; one that hangs never comes back, whatever its limit."""
        return self._call

    def begin(self) -> None:
        """Opens a transaction."""
        self._try("opening a transaction", lambda _timeout_s: self._producer.begin_transaction())
        self._is_open = True

    def produce(self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Adds one message to the open transaction; waits while the buffer is full."""
        while True:
            try:
                self._producer.produce(topic, value, key, headers=list(headers))
                return
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as error:
                raise self._ended(error, f"writing to {topic}") from error

    def send_offsets(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], member: GroupMember) -> None:
        """Adds the group's input offsets, with metadata, to the open transaction (KIP-447)."""
        if not isinstance(member, KafkaGroupMember):
            raise TypeError(f"member: {type(member).__name__} is not a KafkaGroupMember")
        positions = [
            Position(*partition, committed.offset, committed.metadata) for partition, committed in offsets.items()
        ]
        self._try(
            "committing offsets",
            lambda timeout_s: self._producer.send_offsets_to_transaction(positions, member.group_metadata, timeout_s),
        )

    def commit(self) -> None:
        """Makes all of it visible. Returns only when it is durable."""
        self._try("committing", self._producer.commit_transaction)
        self._is_open = False

    def abort(self) -> None:
        """Drops all of it."""
        self._is_open = False
        self._try("aborting", self._producer.abort_transaction)

    def close(self) -> None:
        """Aborts what is open and releases the connection."""
        if self._is_open:
            self.abort()
        with warnings.catch_warnings():
            if self._is_fatal:  # raised where it happened; that there is nothing left to abort is no news
                warnings.simplefilter("ignore", RuntimeWarning)
            try:
                self._producer.close()
            except KafkaException as error:
                if not error.args[0].fatal():
                    raise translate(self._config, error, "closing") from error

    def _try(self, doing: str, step: Callable[[float], None]) -> None:
        """Does one step of a transaction, again as long as librdkafka says that this makes sense."""
        for attempt in range(_ATTEMPTS):
            self._num_calls += 1
            self._call = self._num_calls
            try:
                step(_ATTEMPT_TIMEOUT_S)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or attempt == _ATTEMPTS - 1:
                    raise self._ended(error, doing) from error
            finally:
                self._call = None

    def _ended(self, error: KafkaException, doing: str) -> Exception:
        """Returns what to raise for an error that ends the transaction, after dropping what can be dropped."""
        translated = translate(self._config, error, doing)
        reason = error.args[0]
        self._is_fatal = self._is_fatal or reason.fatal()
        if self._is_open and (reason.txn_requires_abort() or reason.code() == TRANSACTION_STATE):
            self.abort()
            if not isinstance(translated, FencedError):
                return TransactionAbortedError(f"the transaction was dropped while {doing} ({reason.str()})")
        self._is_open = False
        return translated
