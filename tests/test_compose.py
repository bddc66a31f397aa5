"""docker-compose.yml and its configuration: the demo's world on real services, containers watched and unprivileged."""

from pathlib import Path
from typing import Any

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
    assert compose["kafka"]["num_partitions"] == demo["kafka"]["num_partitions"]


def test_configuration_is_allowed() -> None:
    load_config(ROOT / "configs/compose.yaml").check()


def test_every_process_of_the_loop_runs_and_there_are_two_rankers() -> None:
    commands = [service["command"][0] for service in OURS.values()]
    assert set(commands) == {"topics", "blender", "join", "train", "agents", "rank", "simulate", "monitor"}
    assert set(commands) <= COMMANDS.keys()
    assert commands.count("rank") == 2


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


def test_image_runs_as_a_user_of_its_own() -> None:
    instructions = (ROOT / "Dockerfile").read_text().splitlines()
    assert "USER freshrank" in instructions
    assert instructions.index("USER freshrank") < next(
        i for i, x in enumerate(instructions) if x.startswith("ENTRYPOINT")
    )


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_containers_have_no_privileges(name: str) -> None:
    assert OURS[name]["cap_drop"] == ["ALL"]
    assert OURS[name]["security_opt"] == ["no-new-privileges:true"]


def test_prometheus_scrapes_what_the_configuration_names() -> None:
    [job] = yaml.safe_load((ROOT / "docker/prometheus.yml").read_text())["scrape_configs"]
    [static] = job["static_configs"]
    monitor = load_config(ROOT / "configs/compose.yaml").monitor
    assert set(static["targets"]) == {*monitor.targets().values(), f"monitor:{monitor.port}"}


def test_one_service_builds_the_image_and_the_others_wait_for_it() -> None:
    assert [name for name, service in OURS.items() if "build" in service] == ["topics"]
    assert {service["pull_policy"] for name, service in OURS.items() if name != "topics"} == {"never"}
    assert all(
        {"topics", "ranker-1"} & set(service["depends_on"]) for name, service in OURS.items() if name != "topics"
    )


def test_volumes_keep_what_must_survive() -> None:
    mounted = {mount.partition(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert set(COMPOSE["volumes"]) <= mounted
    assert {"kafka", "redis", "checkpoints"} <= set(COMPOSE["volumes"])
