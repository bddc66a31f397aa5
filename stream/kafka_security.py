"""TLS and SASL: one set of settings, in librdkafka's names, translated for every client that is not librdkafka.

    kafka.client: security.protocol, sasl.*, ssl.*  ->  read_security  ->  kafka_python_settings   (kafka-python)
                                                                       ->  faust_credentials       (Faust, aiokafka)

librdkafka takes the settings as they are, after `check_security` has found nothing that it would silently ignore.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

PREFIXES = ("security.", "sasl.", "ssl.", "enable.ssl.")
"""What a security setting of librdkafka starts with."""
KNOWN = (
    "security.protocol",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "sasl.password",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.endpoint.identification.algorithm",
    "enable.ssl.certificate.verification",
)
"""The settings that every client of ours understands; librdkafka alone has more."""


class ClientSettingError(ValueError):
    """A setting of `kafka.client` that cannot be used; the text names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How a client proves who it is and checks who the broker is."""

    protocol: Protocol = "PLAINTEXT"
    mechanism: Mechanism | None = None
    """None without SASL."""
    username: str = ""
    password: str = ""
    ca_location: str = ""
    """File or folder of the certificates that are trusted; empty: those of the system."""
    certificate_location: str = ""
    """File of the client's own certificate; empty: it has none."""
    key_location: str = ""
    key_password: str = ""
    checks_certificate: bool = True
    checks_host: bool = True

    @property
    def has_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.protocol.endswith("SSL")

    @property
    def has_sasl(self) -> bool:
        """Whether the client logs in."""
        return self.protocol.startswith("SASL_")


def security_settings(client: Mapping[str, str]) -> dict[str, str]:
    """Returns the settings of `client` that are about security."""
    return {name: value for name, value in client.items() if name.startswith(PREFIXES)}


def check_security(client: Mapping[str, str]) -> None:
    """Refuses what a client would leave out without a word: a password without SASL, a certificate without TLS.

    Raises:
        ClientSettingError: the settings contradict each other; the text names the setting.
    """
    protocol = client.get("security.protocol", "PLAINTEXT").upper()
    if protocol not in get_args(Protocol):
        raise ClientSettingError(
            f"kafka.client: security.protocol: {protocol!r} is not one of {', '.join(get_args(Protocol))}"
        )
    for prefixes, what, is_used in (
        (("sasl.",), "SASL_PLAINTEXT or SASL_SSL", protocol.startswith("SASL_")),
        (("ssl.", "enable.ssl."), "SSL or SASL_SSL", protocol.endswith("SSL")),
    ):
        unused = sorted(name for name in client if name.startswith(prefixes))
        if unused and not is_used:
            raise ClientSettingError(
                f"kafka.client: {', '.join(unused)} would be ignored: security.protocol is {protocol}, not {what}"
            )


def read_security(client: Mapping[str, str], client_name: str) -> Security:
    """Returns the security settings of `client`, checked; `client_name` is who cannot do what is refused.

    Raises:
        ClientSettingError: a setting the client has no counterpart for, a missing or impossible one; the text names it.
    """
    check_security(client)
    given = security_settings(client)
    for name in sorted(given.keys() - set(KNOWN)):
        raise ClientSettingError(f"kafka.client: {name} is not supported by {client_name}; allowed: {', '.join(KNOWN)}")
    protocol: Any = given.get("security.protocol", "PLAINTEXT").upper()
    security = Security(
        protocol=protocol,
        mechanism=_mechanism(given, client_name) if protocol.startswith("SASL_") else None,
        username=given.get("sasl.username", ""),
        password=given.get("sasl.password", ""),
        ca_location=given.get("ssl.ca.location", ""),
        certificate_location=given.get("ssl.certificate.location", ""),
        key_location=given.get("ssl.key.location", ""),
        key_password=given.get("ssl.key.password", ""),
        checks_certificate=_choice(given, "enable.ssl.certificate.verification", ("true", "false")) == "true",
        checks_host=_choice(given, "ssl.endpoint.identification.algorithm", ("https", "none")) == "https",
    )
    for name, value in (("sasl.username", security.username), ("sasl.password", security.password)):
        if security.has_sasl and not value:
            raise ClientSettingError(f"kafka.client: {name} is missing; security.protocol {protocol} needs it")
    return security


def ssl_context(security: Security) -> ssl.SSLContext | None:
    """Returns what TLS connections are made with; None without TLS.

    Raises:
        ClientSettingError: a file cannot be read, or holds no certificate or key.
    """
    if not security.has_tls:
        return None
    context = ssl.create_default_context()
    if security.ca_location:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # what is named replaces what the system trusts
        is_folder = Path(security.ca_location).is_dir()
        where = {"capath": security.ca_location} if is_folder else {"cafile": security.ca_location}
        _load("ssl.ca.location", security.ca_location, lambda: context.load_verify_locations(**where))
    if security.certificate_location:
        _load(
            "ssl.certificate.location",
            security.certificate_location,
            lambda: context.load_cert_chain(
                security.certificate_location, security.key_location or None, security.key_password
            ),
        )
    context.check_hostname = security.checks_host and security.checks_certificate
    if not security.checks_certificate:
        context.verify_mode = ssl.CERT_NONE
    return context


def kafka_python_settings(client: Mapping[str, str]) -> dict[str, Any]:
    """Returns the security settings of `client` as arguments of kafka-python's clients.

    Raises:
        ClientSettingError: what kafka-python cannot do; the text names it.
    """
    security = read_security(client, "kafka-python")
    settings: dict[str, Any] = {"security_protocol": security.protocol}
    if security.has_tls:
        settings["ssl_context"] = ssl_context(security)
    if security.has_sasl:
        settings["sasl_mechanism"] = security.mechanism
        settings["sasl_plain_username"] = security.username
        settings["sasl_plain_password"] = security.password
    return settings


def faust_credentials(client: Mapping[str, str]) -> Any:
    """Returns the security settings of `client` as Faust's credentials; None for plain text without a login.

    Raises:
        ClientSettingError: what Faust cannot do; the text names it.
    """
    from faust.auth import SASLCredentials, SSLCredentials

    security = read_security(client, "Faust")
    context = ssl_context(security)
    if security.has_sasl:
        return SASLCredentials(
            username=security.username, password=security.password, mechanism=security.mechanism, ssl_context=context
        )
    return None if context is None else SSLCredentials(context)


def _mechanism(given: Mapping[str, str], client_name: str) -> Any:
    name = "sasl.mechanisms" if "sasl.mechanisms" in given else "sasl.mechanism"
    if name not in given:
        raise ClientSettingError(f"kafka.client: sasl.mechanism is missing; one of {', '.join(get_args(Mechanism))}")
    mechanism = given[name].upper()
    if mechanism not in get_args(Mechanism):
        raise ClientSettingError(
            f"kafka.client: {name}: {mechanism!r} is not supported by {client_name}; "
            f"one of {', '.join(get_args(Mechanism))}"
        )
    return mechanism


def _choice(given: Mapping[str, str], name: str, allowed: tuple[str, str]) -> str:
    """Returns one of two values; the first is the default."""
    value = str(given.get(name, allowed[0])).lower()
    if value not in allowed:
        raise ClientSettingError(f"kafka.client: {name}: {value!r} is not one of {', '.join(allowed)}")
    return value


def _load(name: str, location: str, load: Any) -> None:
    try:
        load()
    except OSError as error:  # also what ssl raises
        raise ClientSettingError(f"kafka.client: {name}: {location} cannot be used: {error}") from error
