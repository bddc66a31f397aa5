"""A small recorded log of the simulator and the configuration that reads it, for searches and frontiers."""

from pathlib import Path

import yaml

from sim.config import SimConfig
from sim.record import write_recorded_log

TASKS = ("click", "order", "hide")


def write(folder: Path, *, requests: int = 80) -> tuple[Path, Path]:
    """Returns the paths of the log and of the configuration."""
    log, config = folder / "log", folder / "config.yaml"
    world = SimConfig(num_users=30, num_items=60, requests_per_s=4.0, slate=8, candidates=20)
    write_recorded_log(log, requests, 1, world)
    tiny = {"num_shared_experts": 1, "num_scenario_experts": 1, "expert_hidden": 8, "expert_width": 8}
    settings = {
        "scenarios": ["home", "search", "deals"],
        "tasks": {task: {"action": task, "window_ms": 20_000, "policy": "wait"} for task in TASKS},
        "features": {"item": {"category": "categorical", "price": "numeric"}},
        "join": {"grace_ms": 2_500},
        "model": {
            "preset": "custom",
            "hinet": tiny | {"task_hidden": 8, "task_width": 8, "tower": [8]},
            "embedding": {"width": 4},
            "priors": {"click": 0.2, "order": 0.04, "hide": 0.02},
        },
        "trainer": {"batch_rows": 64},
    }
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return log, config
