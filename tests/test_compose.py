"""docker-compose.yml and its configuration: the demo's world on real services, containers watched and unprivileged."""

import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import yaml

from freshrank.cli import COMMANDS
from freshrank.config import load_config

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "freshrank:local"}
UNWATCHED = {"topics": "runs once and ends", "exploration": "runs once and ends"}


def test_compose_is_the_demo_but_for_places() -> None:
    demo, compose = (yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text()) for name in ("demo", "compose"))
    places = {"kafka", "redis", "checkpoint", "ranker", "monitor"}
    differing = {key for key in demo.keys() | compose.keys() if demo.get(key) != compose.get(key)}
    assert differing <= places, "copy these sections of configs/demo.yaml into configs/compose.yaml"
    assert compose["kafka"]["num_partitions"] >= 3, "or joiners beyond the first two have nothing to do"


def test_configuration_is_allowed() -> None:
    load_config(ROOT / "configs/compose.yaml").check()


def test_every_process_of_the_loop_runs_and_there_are_two_rankers() -> None:
    commands = [service["command"][0] for service in OURS.values()]
    assert set(commands) == {"topics", "blender", "join", "train", "agents", "rank", "simulate", "monitor"}
    assert set(commands) <= COMMANDS.keys()
    assert len(commands) == len(set(commands)), "replicas are a matter of scale"
    assert SERVICES["ranker"]["scale"] == 2


@pytest.mark.parametrize("name", ["joiner", "ranker"])
def test_any_number_of_replicas_may_run(name: str) -> None:
    """Nothing of the service is one container's alone: no name, no single port, no address to listen on."""
    service = SERVICES[name]
    assert "container_name" not in service and "hostname" not in service
    assert all(re.search(r":-\d+-\d+\}:\d+$", port) for port in service.get("ports", []))
    run = load_config(ROOT / "configs/compose.yaml", overrides(service))
    address = run.monitor.joiner if name == "joiner" else f"{run.ranker.server.host}:{run.ranker.server.port}"
    assert address.startswith("0.0.0.0:")


def overrides(service: dict[str, Any]) -> list[str]:
    """Returns the `--set` of a service's command, defaults filled in."""
    command = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in service["command"]]
    return [command[index + 1] for index, word in enumerate(command) if word == "--set"]


def test_the_balancer_comes_with_the_profile_and_asks_all_rankers() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {"balancer": ["scale"]}
    run = load_config(ROOT / "configs/compose.yaml")
    assert SERVICES["balancer"]["environment"]["RANKERS"] == run.monitor.ranker
    text = (ROOT / "docker/haproxy.cfg").read_text()
    checked_s = 0.5 + 2 * 0.1
    assert "inter 500ms fastinter 100ms fall 3" in text
    assert run.ranker.server.drain_s > checked_s + 1, "a ranker that drains must be seen to, before it closes"
    assert run.ranker.server.drain_s + run.ranker.server.shutdown_timeout_s < 30, "stop_grace_period"
    assert re.findall(r"retry-on (.*)", text) == ["conn-failure"], "/v1/rank logs what it shows: nothing is asked twice"


def test_the_balancer_reads_its_file() -> None:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not on the PATH")
    argv = ["haproxy", "-c", "-f", str(ROOT / "docker/haproxy.cfg")]
    env = {**os.environ, "RANKERS": "ranker:8620"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_is_watched_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    if name in UNWATCHED:
        assert service["restart"] == "no"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_names_a_version_and_publishes_on_this_machine_only(name: str) -> None:
    service = SERVICES[name]
    assert ":" in service["image"]
    assert not service["image"].endswith(":latest")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_image_runs_as_a_numbered_user_whom_group_0_may_stand_in_for() -> None:
    stages = (ROOT / "Dockerfile").read_text().split("FROM ")
    assert "USER 10001:0" in stages[-1].splitlines()
    assert "install -d -o 10001 -g 0 -m 2775 /var/lib/freshrank" in stages[-1]
    assert {OURS[name]["user"] for name in OURS} == {"10001:0"}


def test_image_holds_what_it_needs_and_no_secret() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [line.split()[-2] for line in lines if line.startswith("COPY ") and "--from=" not in line]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) <= allowed
    assert not {".env", "checkpoints", "run"} & allowed


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_container_has_no_privileges_and_writes_only_where_it_says(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service["user"].startswith(("0", "root"))
    assert "privileged" not in service and "cap_add" not in service
    assert all(mount.endswith(":ro") for mount in service.get("volumes", []) if mount.startswith((".", "$")))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_container_has_bounds(name: str) -> None:
    service = SERVICES[name]
    assert mebibytes(service["mem_limit"]) > 0
    assert service["pids_limit"] > 0
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


def test_our_processes_together_have_two_gibibytes() -> None:
    running = [service for name, service in OURS.items() if name not in UNWATCHED]
    assert sum(mebibytes(service["mem_limit"]) * service.get("scale", 1) for service in running) <= 2048


def mebibytes(limit: str) -> int:
    return int(limit[:-1]) * {"m": 1, "g": 1024}[limit[-1]]


@pytest.mark.parametrize("name", sorted(OURS.keys() - UNWATCHED.keys()))
def test_health_is_asked_where_the_process_tells_it(name: str) -> None:
    command, address = OURS[name]["healthcheck"]["test"][1:]
    assert command == "healthy"
    place, _, path = address.partition("/")
    run = load_config(ROOT / "configs/compose.yaml")
    if OURS[name]["command"][0] == "rank":
        assert (place, path) == (f"localhost:{run.ranker.server.port}", "v1/health")
    elif name == "monitor":
        assert (place, path) == (f"localhost:{run.monitor.port}", "healthz")
    else:
        listens = getattr(load_config(ROOT / "configs/compose.yaml", overrides(OURS[name])).monitor, name)
        assert (place, path) == (listens.replace("0.0.0.0", "localhost"), "healthz")


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_healthy_succeeds_with_200_alone(status: int, code: int) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response(f"{status} -", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    with make_server("127.0.0.1", 0, app, handler_class=QuietHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        done = healthy(server.server_port)
        thread.join()
    assert done.returncode == code, done.stderr
    assert ("/v1/health" in done.stdout) == (code != 0), "what is wrong is told"


def test_healthy_fails_where_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert healthy(bound.getsockname()[1]).returncode != 0


def healthy(port: int) -> subprocess.CompletedProcess[str]:
    argv = [str(ROOT / "docker/healthy"), f"127.0.0.1:{port}/v1/health"]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


class QuietHandler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_example_of_the_environment_names_every_variable_and_its_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    asked = dict(re.findall(r"\$\{([A-Z0-9_]+):-([^}]*)\}", text))
    assert asked.keys() == set(re.findall(r"\$\{([A-Z0-9_]+)", text)), "each has a default"
    lines = (ROOT / ".env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert example == asked


def test_prometheus_scrapes_what_the_configuration_names() -> None:
    jobs = yaml.safe_load((ROOT / "docker/prometheus.yml").read_text())["scrape_configs"]
    found = {name: at["port"] for job in jobs for at in job["dns_sd_configs"] for name in at["names"]}
    assert found.keys() == {job["job_name"] for job in jobs} <= SERVICES.keys()
    assert found.pop("balancer") == 8404
    monitor = load_config(ROOT / "configs/compose.yaml").monitor
    named = [f"{name}:{port}" for name, port in found.items()]
    assert sorted(named) == sorted([*monitor.targets().values(), f"monitor:{monitor.port}"])


def test_one_service_builds_the_image_and_the_others_wait_for_it() -> None:
    assert [name for name, service in OURS.items() if "build" in service] == ["topics"]
    assert {service["pull_policy"] for name, service in OURS.items() if name != "topics"} == {"never"}
    assert all({"topics", "ranker"} & set(service["depends_on"]) for name, service in OURS.items() if name != "topics")


def test_volumes_keep_what_must_survive() -> None:
    mounted = {mount.partition(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert set(COMPOSE["volumes"]) <= mounted
    assert {"kafka", "redis", "checkpoints"} <= set(COMPOSE["volumes"])
