"""What every kafka-python client of ours shares: settings, a bound on waiting, errors in our own words."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import kafka.errors
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient

from stream.exceptions import FencedError, LogUnavailableError, StreamError
from stream.kafka_login import RefusedError, shake_hands
from stream.kafka_security import ClientSettingError, kafka_python_settings, security_settings
from stream.log import KafkaConfig

REQUEST_TIMEOUT_S = 10.0
"""How long one question to the broker (metadata, offsets) may take before we say that it does not answer."""

_FENCED = (
    kafka.errors.ProducerFencedError,
    kafka.errors.InvalidProducerEpochError,
    kafka.errors.FencedInstanceIdError,
    kafka.errors.CommitFailedError,  # what it makes of a stale group generation or an unknown member
    kafka.errors.IllegalGenerationError,
    kafka.errors.UnknownMemberIdError,
)
T = TypeVar("T")


def client_settings(config: KafkaConfig, ours: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a kafka-python client: where the broker is, how to log in, and `ours`.

    Raises:
        ClientSettingError: `client` has a setting that kafka-python does not.
    """
    tuning = sorted(config.client.keys() - security_settings(config.client).keys())
    if tuning:
        raise ClientSettingError(
            f"kafka.client: {', '.join(tuning)} is not a setting of kafka-python; "
            "leave it out, or set kafka.adapter to confluent"
        )
    return {**common_settings(config), "reconnect_backoff_ms": 250, "reconnect_backoff_max_ms": 1_000, **ours}


def common_settings(config: KafkaConfig) -> dict[str, Any]:
    """Returns what every kafka-python client needs, the one that manages topics included."""
    return {
        "bootstrap_servers": _servers(config),
        "client_id": "freshrank",
        "bootstrap_timeout_ms": int(REQUEST_TIMEOUT_S * 1_000),
        **kafka_python_settings(config.client),
    }


def build_client(config: KafkaConfig, make: Callable[..., T], settings: Mapping[str, Any]) -> T:
    """Returns `make(**settings)`, a kafka-python client that is connected.

    Raises:
        LogUnavailableError: nobody answers, or login or certificate are refused.
    """
    reach(config, settings)
    transports: list[Any] = []

    def transport(**configs: Any) -> Any:
        transports.append(KafkaNetClient(**configs))
        return transports[-1]

    try:
        return make(**settings, kafka_client=transport)
    except KafkaError as error:
        for opened in transports:  # a constructor that fails leaves its thread and socket open
            opened.close()
        raise unavailable(config, error, "connecting") from error


def reach(config: KafkaConfig, settings: Mapping[str, Any]) -> None:
    """Returns when one of the servers has let us in; `settings` are what kafka-python is given.

    Raises:
        LogUnavailableError: nobody answers, or login or certificate are refused.
    """
    reason: OSError | None = None
    for server in _servers(config):
        try:
            shake_hands(server, settings, REQUEST_TIMEOUT_S)
            return
        except RefusedError as error:
            raise LogUnavailableError(f"kafka at {config.bootstrap_servers} cannot be used: {_line(error)}") from error
        except OSError as error:
            reason = error
    raise LogUnavailableError(_silence(config, "connecting", reason)) from reason


def within(config: KafkaConfig, timeout_s: float, doing: str, step: Callable[[], T]) -> T:
    """Returns `step()`, for the steps that kafka-python itself would wait for without an end.

    Raises:
        LogUnavailableError: no end after `timeout_s`; the client must not be used any more.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(step())
        except BaseException as error:  # handed to the caller, whatever it is
            failed.append(error)

    thread = threading.Thread(target=run, name=f"kafka-python {doing}", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failed:
        raise failed[0]
    if not done:
        raise LogUnavailableError(_silence(config, doing, None))
    return done[0]


def unavailable(config: KafkaConfig, error: KafkaError, doing: str) -> LogUnavailableError:
    """Returns the one sentence for a broker that does not answer, or does not do what it is asked."""
    if error.retriable:
        return LogUnavailableError(_silence(config, doing, error))
    return LogUnavailableError(f"kafka at {config.bootstrap_servers} refuses while {doing}: {_line(error)}")


def translate(config: KafkaConfig, error: KafkaError, doing: str) -> StreamError:
    """Returns the error of ours that says what an error of kafka-python means for the caller."""
    if is_fenced(error):
        return FencedError(f"another process has taken over while {doing} ({_line(error)}): stopping without commit")
    return unavailable(config, error, doing)


def is_fenced(error: KafkaError) -> bool:
    """Returns whether somebody else has taken over; once told, kafka-python repeats it only in its text."""
    return isinstance(error, _FENCED) or any(known.__name__ in str(error) for known in _FENCED)


def client_logger() -> logging.Logger:
    """Returns the logger for what a client has to say."""
    return logging.getLogger("stream.kafka_python")


def _servers(config: KafkaConfig) -> list[str]:
    return [server.strip() for server in config.bootstrap_servers.split(",")]


def _silence(config: KafkaConfig, doing: str, reason: Exception | None) -> str:
    why = f" ({_line(reason)})" if reason is not None else ""
    return (
        f"kafka at {config.bootstrap_servers} does not answer while {doing}{why}: "
        "check kafka.bootstrap_servers (or FRESHRANK_KAFKA) and that the broker runs"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
