"""The agents in a process of their own, so that they can be killed."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from freshrank.children import Child
from stream.agents_config import AgentsConfig
from stream.log import KafkaConfig
from stream.schema import SchemaConfig

PROGRAM = """
import signal, sys, threading
from pathlib import Path
import msgspec
from stream.agents import Agents
from stream.agents_config import AgentsConfig
from stream.log import KafkaConfig
from stream.schema import SchemaConfig

told = msgspec.json.decode(sys.argv[1])
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
Agents(
    KafkaConfig(**told["kafka"]),
    msgspec.convert(told["config"], AgentsConfig),
    told["redis_url"],
    msgspec.convert(told["schema"], SchemaConfig),
).run(Path(told["folder"]), stopped.is_set, instance_id=told["instance_id"])
"""


def start_agents(
    name: str,
    *,
    kafka: KafkaConfig,
    redis_url: str,
    config: AgentsConfig,
    schema: SchemaConfig,
    folder: Path,
    instance_id: str | None = None,
) -> Child:
    """Starts the agents; their log is `<name>.log` in `folder`, and `<name>` there is Faust's."""
    told: dict[str, Any] = {
        "kafka": asdict(kafka),
        "config": asdict(config),
        "schema": asdict(schema),
        "redis_url": redis_url,
        "folder": str(folder / name),
        "instance_id": instance_id,
    }
    return Child([sys.executable, "-c", PROGRAM, msgspec.json.encode(told).decode()], folder / f"{name}.log")
