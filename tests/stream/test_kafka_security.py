"""One set of security settings, translated for every client; no broker is needed here."""

import ssl
import subprocess
from pathlib import Path

import pytest

from stream.kafka_python_client import client_settings as kafka_python_client_settings
from stream.kafka_security import check_security, faust_credentials, kafka_python_settings, read_security
from stream.log import KafkaConfig

LOGIN = {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "me", "sasl.password": "hush"}
SASL = {"security.protocol": "SASL_PLAINTEXT", **LOGIN}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=us"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def test_without_settings_it_is_plain_text() -> None:
    assert kafka_python_settings({}) == {"security_protocol": "PLAINTEXT"}
    assert faust_credentials({"linger.ms": "5"}) is None


def test_a_login_reaches_every_client() -> None:
    check_security(SASL)
    assert kafka_python_settings(SASL) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "me",
        "sasl_plain_password": "hush",
    }
    credentials = faust_credentials({**SASL, "sasl.mechanisms": "PLAIN"})
    assert (credentials.protocol.value, credentials.mechanism.value) == ("SASL_PLAINTEXT", "PLAIN")
    assert (credentials.username, credentials.password, credentials.ssl_context) == ("me", "hush", None)


def test_certificates_reach_every_client(certificate: tuple[Path, Path]) -> None:
    client = {
        "security.protocol": "ssl",
        "ssl.ca.location": str(certificate[0]),
        "ssl.certificate.location": str(certificate[0]),
        "ssl.key.location": str(certificate[1]),
    }
    context = kafka_python_settings(client)["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert [dict(rdn[0] for rdn in known["subject"]) for known in context.get_ca_certs()] == [{"commonName": "us"}]
    assert faust_credentials(client).protocol.value == "SSL"
    both = faust_credentials({**client, **LOGIN, "security.protocol": "SASL_SSL"})
    assert (both.protocol.value, both.username) == ("SASL_SSL", "me")
    assert both.ssl_context.get_ca_certs() == context.get_ca_certs()


@pytest.mark.parametrize(
    ("given", "verify_mode", "checks_host"),
    [
        ({}, ssl.CERT_REQUIRED, True),
        ({"ssl.endpoint.identification.algorithm": "none"}, ssl.CERT_REQUIRED, False),
        ({"enable.ssl.certificate.verification": "false"}, ssl.CERT_NONE, False),
    ],
)
def test_checks_are_left_out_only_where_it_is_said(
    given: dict[str, str], verify_mode: ssl.VerifyMode, checks_host: bool
) -> None:
    context = kafka_python_settings({"security.protocol": "SSL", **given})["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (verify_mode, checks_host)


@pytest.mark.parametrize(
    ("client", "told"),
    [
        ({"sasl.password": "hush"}, "sasl.password would be ignored: security.protocol is PLAINTEXT"),
        ({"security.protocol": "SSL", **LOGIN}, "sasl.mechanism, sasl.password, sasl.username would be ignored"),
        ({**SASL, "ssl.ca.location": "/ca"}, "ssl.ca.location would be ignored: security.protocol is SASL_PLAINTEXT"),
        ({"enable.ssl.certificate.verification": "false"}, "enable.ssl.certificate.verification would be ignored"),
        ({"security.protocol": "TLS"}, "security.protocol: 'TLS' is not one of PLAINTEXT, SSL, SASL_PLAINTEXT"),
    ],
)
def test_what_a_client_would_ignore_is_refused(client: dict[str, str], told: str) -> None:
    for check in (check_security, kafka_python_settings, faust_credentials):
        with pytest.raises(ValueError, match=r"kafka\.client: ") as error:
            check(client)
        assert told in str(error.value)
        assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    ("client", "told"),
    [
        ({"security.protocol": "SSL", "ssl.keystore.location": "/k"}, "ssl.keystore.location is not supported by us"),
        ({**SASL, "sasl.mechanism": "GSSAPI"}, "sasl.mechanism: 'GSSAPI' is not supported by us; one of PLAIN, SCRAM"),
        ({"security.protocol": "SASL_SSL"}, "sasl.mechanism is missing; one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
        ({**SASL, "sasl.password": ""}, "sasl.password is missing"),
        (
            {"security.protocol": "SSL", "ssl.endpoint.identification.algorithm": "maybe"},
            "ssl.endpoint.identification.algorithm: 'maybe' is not one of https, none",
        ),
    ],
)
def test_what_only_librdkafka_can_do_is_refused_by_name(client: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=r"kafka\.client: ") as error:
        read_security(client, "us")
    assert told in str(error.value)


@pytest.mark.parametrize("setting", ["ssl.ca.location", "ssl.certificate.location"])
def test_a_file_that_is_missing_or_no_certificate_is_named(setting: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no certificate")
    for path in (tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(ValueError, match=rf"kafka\.client: {setting}: {path} cannot be used"):
            kafka_python_settings({"security.protocol": "SSL", setting: str(path)})


def test_settings_that_tune_librdkafka_are_refused_with_kafka_python() -> None:
    with pytest.raises(ValueError, match=r"kafka\.client: linger\.ms is not a setting of kafka-python"):
        kafka_python_client_settings(KafkaConfig(adapter="kafka-python", client={"linger.ms": "5"}), {})
