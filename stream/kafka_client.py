"""What every confluent-kafka client of ours shares: settings, log lines, errors in our own words."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from stream.exceptions import FencedError, LogUnavailableError, StreamError
from stream.kafka_security import ClientSettingError, check_security
from stream.log import KafkaConfig

REQUEST_TIMEOUT_S = 10.0
"""How long one question to the broker (metadata, offsets) may take before we say that it does not answer."""
LOG_INTERVAL_S = 30.0
"""librdkafka repeats a lost connection several times a second: one line of a sort in this time is enough."""

_LOOKS = 20
"""So often we look for a refusal while we wait for the first answer."""
_LOOPBACK = ("localhost", "127.0.0.1")
# librdkafka's own codes are public; the underscore only tells them from the broker's.
PARTITION_EOF = KafkaError._PARTITION_EOF  # noqa: SLF001
MAX_POLL_EXCEEDED = KafkaError._MAX_POLL_EXCEEDED  # noqa: SLF001
NO_SUCH_OFFSET = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)  # noqa: SLF001
TRANSACTION_STATE = KafkaError._STATE  # noqa: SLF001
NO_SUCH_TOPIC = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
)
_REFUSED_CODES = (KafkaError._AUTHENTICATION, KafkaError._SSL)  # noqa: SLF001
_SILENT_CODES = (
    KafkaError._TRANSPORT,  # noqa: SLF001
    KafkaError._TIMED_OUT,  # noqa: SLF001
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    KafkaError._RESOLVE,  # noqa: SLF001
)
_FENCED_CODES = frozenset(
    {
        KafkaError._FENCED,  # noqa: SLF001
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
    }
)


class RepeatFilter(logging.Filter):
    """Lets one line of each sort through per `interval_s`; the next one says how many were left out.

    The sort of a librdkafka line is its first word (`FAIL`, `SESSTMOUT`, ...).
    """

    def __init__(self, interval_s: float = LOG_INTERVAL_S) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._last_s: dict[str, float] = {}
        self._num_left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether the line may pass; time is the record's own."""
        sort = record.getMessage().partition(" ")[0]
        last_s = self._last_s.get(sort)
        if last_s is not None and record.created - last_s < self._interval_s:
            self._num_left_out[sort] = self._num_left_out.get(sort, 0) + 1
            return False
        self._last_s[sort] = record.created
        if num_left_out := self._num_left_out.pop(sort, 0):
            record.msg, record.args = f"{record.getMessage()} (and {num_left_out} more like this)", None
        return True


def client_logger() -> logging.Logger:
    """Returns the logger librdkafka's own lines go to, with repeats held back."""
    logger = logging.getLogger("stream.librdkafka")
    if not any(isinstance(known, RepeatFilter) for known in logger.filters):
        logger.addFilter(RepeatFilter())
    return logger


def client_settings(config: KafkaConfig, ours: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns librdkafka settings: common and role `defaults`, over them the user's `client`, over them `ours`.

    Raises:
        ClientSettingError: `client` sets something the exactly-once protocol depends on, or security in vain.
    """
    check_security(config.client)
    clash = sorted(config.client.keys() & (ours.keys() | {"bootstrap.servers"}))
    if clash:
        raise ClientSettingError(f"kafka.client: {', '.join(clash)} is not allowed here; it is set by the program")
    hosts = [server.strip().rpartition(":")[0] for server in config.bootstrap_servers.split(",")]
    common: dict[str, Any] = {
        "bootstrap.servers": config.bootstrap_servers,
        "client.id": "freshrank",
        "reconnect.backoff.ms": 250,
        "reconnect.backoff.max.ms": 1_000,  # found again within a second of coming back
        "socket.keepalive.enable": True,
    }
    if all(host in _LOOPBACK for host in hosts):
        common["broker.address.family"] = "v4"  # "localhost" is ::1 first, where nothing of ours listens
    return {**common, **defaults, **config.client, **ours}


def build_client(make: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """Returns `make(settings)`, a confluent-kafka client that logs where we log.

    Raises:
        ClientSettingError: a setting librdkafka does not know or does not allow.
    """
    try:
        return make(dict(settings), logger=client_logger())
    except KafkaException as error:
        raise ClientSettingError(f"kafka.client: {error.args[0].str()}") from error


class Connection:
    """What librdkafka tells on the side about the connection of one client; `told` is its `error_cb`."""

    def __init__(self, config: KafkaConfig) -> None:
        self.num_errors = 0
        """Errors since the start; while the broker is gone they come several times a second."""
        self._config = config
        self._refusal: KafkaError | None = None

    def told(self, error: KafkaError) -> None:
        """Takes one error of the connection."""
        self.num_errors += 1
        if error.code() in _REFUSED_CODES:
            self._refusal = error

    def check(self, client: Any, timeout_s: float) -> None:
        """Returns when the broker has answered `client`.

        Raises:
            LogUnavailableError: it refuses the login or we refuse its certificate (told as soon as it is known), or it
                does not answer in time.
        """
        for attempt in range(_LOOKS):
            try:
                client.list_topics(timeout=timeout_s / _LOOKS)
                return
            except KafkaException as error:
                client.poll(0)  # librdkafka goes on trying after a refusal, and tells of it only here
                if self._refusal is not None:
                    reason = " ".join(self._refusal.str().split())
                    raise LogUnavailableError(
                        f"kafka at {self._config.bootstrap_servers} cannot be used: {reason}"
                    ) from error
                if attempt == _LOOKS - 1:
                    raise unavailable(self._config, error, "connecting") from error


def unavailable(config: KafkaConfig, error: KafkaException, doing: str) -> LogUnavailableError:
    """Returns the one sentence for a broker that does not answer, or does not do what it is asked."""
    reason = error.args[0]
    if reason.code() in _SILENT_CODES:
        return LogUnavailableError(
            f"kafka at {config.bootstrap_servers} does not answer while {doing} ({reason.name()}): "
            "check kafka.bootstrap_servers (or FRESHRANK_KAFKA) and that the broker runs"
        )
    return LogUnavailableError(f"kafka at {config.bootstrap_servers} refuses while {doing}: {reason.str()}")


def translate(config: KafkaConfig, error: KafkaException, doing: str) -> StreamError:
    """Returns the error of ours that says what a librdkafka error means for the caller."""
    reason = error.args[0]
    # A consumer's fatal error keeps the broker's code only in its text.
    if reason.code() in _FENCED_CODES or "fenced" in reason.str():
        return FencedError(f"another process has taken over while {doing} ({reason.name()}): stopping without commit")
    return unavailable(config, error, doing)
