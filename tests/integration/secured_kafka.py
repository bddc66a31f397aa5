"""A real Apache Kafka that asks who is there: one node with a listener for each way to secure a connection.

| listener | protocol | client | mechanism |
|---|---|---|---|
| `login` | SASL_PLAINTEXT | name and password | PLAIN |
| `tls` | SSL | its own certificate | |
| `both` | SASL_SSL | name and password | SCRAM-SHA-512 |
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from freshrank.children import Child

USERNAME, PASSWORD = "me", "hush"
_CLUSTER_ID = "ZnJlc2hyYW5rLWxvY2FsMQ"
_PROPERTIES = r"""
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listeners=PLAINTEXT://127.0.0.1:{plain},LOGIN://127.0.0.1:{login},TLS://127.0.0.1:{tls},BOTH://127.0.0.1:{both},\
  CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},\
  LOGIN://localhost:{login},TLS://localhost:{tls},BOTH://localhost:{both}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOGIN:SASL_PLAINTEXT,TLS:SSL,BOTH:SASL_SSL
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
  user_{username}="{password}";
listener.name.both.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.login.sasl.enabled.mechanisms=PLAIN
listener.name.both.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.tls.ssl.client.auth=required
ssl.keystore.type=PEM
ssl.keystore.location={folder}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=4
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecuredKafka:
    """Where each listener is, and what a client needs to get in."""

    servers: dict[str, str]
    """`host:port` of each listener."""
    client: dict[str, dict[str, str]]
    """`kafka.client` for each listener."""
    stranger_ca: Path
    """A certificate authority that has not signed the broker's certificate."""


def make_certificates(folder: Path) -> None:
    """Writes `ca.pem`, `broker.pem` (for localhost), `client.pem` (each with its key) and `stranger.pem`."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for authority in ("ca", "stranger"):
        subject = f"/CN={authority}"
        openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", subject),
            *("-keyout", f"{authority}.key", "-out", f"{authority}.pem"),
        )
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for owner in ("broker", "client"):
        openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={owner}"),
            *("-keyout", f"{owner}.key", "-out", f"{owner}.csr"),
        )
        openssl(
            *("x509", "-req", "-days", "2", "-in", f"{owner}.csr", "-out", f"{owner}.crt", "-extfile", "names"),
            *("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        )
        (folder / f"{owner}.pem").write_text(
            (folder / f"{owner}.key").read_text() + (folder / f"{owner}.crt").read_text()
        )


def start_secured_kafka(
    kafka_home: Path, folder: Path, free_port: Callable[[], int], wait_until: Callable[..., None]
) -> Iterator[SecuredKafka]:
    """Yields the broker when it answers, and stops it."""
    make_certificates(folder)
    ports = {name: free_port() for name in ("plain", "controller", "login", "tls", "both")}
    properties = folder / "server.properties"
    properties.write_text(_PROPERTIES.format(**ports, folder=folder, username=USERNAME, password=PASSWORD))
    env = {"KAFKA_HEAP_OPTS": "-Xms256m -Xmx256m", "LOG_DIR": str(folder / "logs"), **os.environ}
    scram = f"SCRAM-SHA-512=[name={USERNAME},password={PASSWORD}]"
    subprocess.run(
        [kafka_home / "bin" / "kafka-storage.sh", "format", "-t", _CLUSTER_ID, "-c", properties, "--add-scram", scram],
        env=env,
        check=True,
        capture_output=True,
    )
    child = Child([str(kafka_home / "bin" / "kafka-server-start.sh"), str(properties)], folder / "broker.log", env)
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{ports['plain']}", "log_level": 0})

    def answers() -> bool:
        assert child.exit_code() is None, child.last_words()
        try:
            return bool(admin.list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    login = {"sasl.username": USERNAME, "sasl.password": PASSWORD}
    ca = {"ssl.ca.location": str(folder / "ca.pem")}
    certificate = {name: str(folder / "client.pem") for name in ("ssl.certificate.location", "ssl.key.location")}
    try:
        wait_until(answers, f"the secured broker answers, see {folder}/broker.log", timeout_s=120)
        yield SecuredKafka(
            servers={name: f"localhost:{ports[name]}" for name in ("login", "tls", "both")},
            client={
                "login": {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", **login},
                "tls": {"security.protocol": "SSL", **ca, **certificate},
                "both": {"security.protocol": "SASL_SSL", "sasl.mechanisms": "SCRAM-SHA-512", **login, **ca},
            },
            stranger_ca=folder / "stranger.pem",
        )
    finally:
        child.stop(20)
