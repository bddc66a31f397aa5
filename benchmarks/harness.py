"""Repeated runs with CPU-seconds beside wall time, and the one shape every figure is reported in."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Units of work per CPU-second and per wall second over several runs: median, lowest, highest."""

    per_cpu_s: float
    per_cpu_s_range: tuple[float, float]
    per_wall_s: float


def cpu_rate(work: Callable[[], int], *, repeats: int = 5, warmup: int = 1) -> Rate:
    """Returns how many units `work` does per CPU-second (user + system of this process, all its threads).

    `work` does one run and returns how many units it did. Warm-up runs are not counted.
    """
    for _ in range(warmup):
        work()
    by_cpu, by_wall = [], []
    for _ in range(repeats):
        cpu_start_s, wall_start_s = time.process_time(), time.perf_counter()
        num_units = work()
        by_cpu.append(num_units / max(time.process_time() - cpu_start_s, 1e-9))
        by_wall.append(num_units / max(time.perf_counter() - wall_start_s, 1e-9))
    return Rate(
        per_cpu_s=statistics.median(by_cpu),
        per_cpu_s_range=(min(by_cpu), max(by_cpu)),
        per_wall_s=statistics.median(by_wall),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of `docs` and of `results/latest.json`; its key there is the goal it measures, e.g. `P2`."""

    value: float
    unit: str
    ci: tuple[float, float]
    """Lowest and highest of the runs behind `value`."""
    command: str
    peers: dict[str, float] = field(default_factory=dict)
    """The same work by another program or by the ceiling, in the same run and unit."""
    note: str = ""
    table: list[dict[str, Any]] = field(default_factory=list)
    """Where a figure is one of a table: its rows, by column."""

    def as_json(self) -> dict[str, Any]:
        """Returns the entry of `results/latest.json`."""
        entry: dict[str, Any] = {
            "value": self.value,
            "unit": self.unit,
            "ci": list(self.ci),
            "peers": self.peers,
            "command": self.command,
        }
        return entry | {name: value for name in ("note", "table") if (value := getattr(self, name))}
