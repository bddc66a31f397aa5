"""What the live page and the status line show, made from scraped metrics alone. Pure: no clock, no network.

Every second the monitor hands in one scrape per process; rates are differences between scrapes, curves are a bounded
history. A figure nobody measured yet is None, never zero.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from prometheus_client.parser import text_string_to_metric_families

from model.gate_report import State

Labels = tuple[str, ...]
"""Values of a sample's labels, ordered by the labels' names."""
JOINER = "freshrank_joiner_"
RATES: Mapping[str, tuple[str, ...]] = {
    "rankings_per_s": ("freshrank_ranker_requests_total",),
    "impressions_per_s": ("freshrank_ranker_impressions_total",),
    "feedback_per_s": ("freshrank_ranker_feedback_total",),
    "events_per_s": ("freshrank_joiner_items_total", "freshrank_joiner_feedback_total"),
    "examples_per_s": ("freshrank_trainer_examples_total",),
    "steps_per_s": ("freshrank_trainer_steps_total",),
    "snapshots_per_s": ("freshrank_trainer_snapshots_total",),
}
"""Throughput at each arrow of the loop, and the counters whose sum it is the slope of."""
RATE_WINDOW_MS = 5_000
"""Rates are slopes over this long, so that a second with one snapshot less does not flicker."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """All samples of one process at one moment."""

    samples: Mapping[tuple[str, Labels], float]

    @classmethod
    def parse(cls, text: str) -> "Scrape":
        """Returns the samples of a Prometheus text exposition.

        >>> Scrape.parse('requests_total{reason="late"} 3.0').value("requests_total", "late")
        3.0
        """
        return cls(
            {
                (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    def value(self, name: str, *labels: str) -> float | None:
        """Returns one sample; None if the process does not have it or it is not a number."""
        found = self.samples.get((name, labels))
        return None if found is None or math.isnan(found) else found


@dataclass(slots=True)
class ProcessState:
    """What is known of one process."""

    name: str
    scrape: Scrape | None = None
    """The last one it answered; what it said then stays on the page. None before the first."""
    is_up: bool = False
    """Whether it answered the last time."""
    started_s: float | None = None
    restarts: int = 0
    """Times it came back with another start time."""
    cpu: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=6))


class Board:
    """The state of a run, from scrapes."""

    def __init__(self, processes: Sequence[str], tasks: Sequence[str], scenarios: Sequence[str], history: int) -> None:
        """Starts empty; keeps `history` points of each curve."""
        self._tasks, self._scenarios = list(tasks), list(scenarios)
        self._processes = {name: ProcessState(name) for name in processes}
        self._totals: deque[tuple[int, dict[str, float]]] = deque(maxlen=64)
        self._history: dict[str, deque[float | None]] = {
            name: deque(maxlen=history) for name in ("t_ms", *self._curves())
        }
        self._now_ms = 0

    def observe(self, now_ms: int, scrapes: Mapping[str, Scrape | None]) -> None:
        """Takes up one round of scrapes; None for a process that did not answer."""
        self._now_ms = now_ms
        for name, scrape in scrapes.items():
            process = self._processes[name]
            process.is_up = scrape is not None
            if scrape is None:
                continue
            process.scrape = scrape
            started_s = scrape.value("process_start_time_seconds")
            if process.started_s is not None and started_s is not None and started_s > process.started_s + 1:
                process.restarts += 1
                process.cpu.clear()
            process.started_s = started_s
            process.cpu.append((now_ms, scrape.value("process_cpu_seconds_total") or 0.0))
        totals = {name: sum(self._total(counter) or 0.0 for counter in counters) for name, counters in RATES.items()}
        self._totals.append((now_ms, totals))
        while len(self._totals) > 2 and self._totals[1][0] < now_ms - RATE_WINDOW_MS:
            self._totals.popleft()
        self._history["t_ms"].append(now_ms)
        for name, value in self._curves().items():
            self._history[name].append(value)

    def state(self) -> dict[str, Any]:
        """Returns everything the page shows, as JSON can say it."""
        processes = [self._process(process) for process in self._processes.values()]
        return {
            "now_ms": self._now_ms,
            "schema": {"tasks": self._tasks, "scenarios": [*self._scenarios, *self._added()], "added": self._added()},
            "processes": processes,
            "memory_bytes": sum(process["resident_bytes"] or 0 for process in processes) or None,
            "freshness": self._freshness(),
            "model": self._model(),
            "gate": self._gate(),
            "blender": self._blender(),
            "quality": self._quality(),
            "lift": self._lift(),
            "flow": self._flow(),
            "join": self._join(),
            "examples": self._number("freshrank_trainer_examples_total"),
        }

    def history(self) -> dict[str, list[float | None]]:
        """Returns the curves as columns of equal length, oldest first."""
        return {name: list(values) for name, values in self._history.items()}

    def _curves(self) -> dict[str, float | None]:
        freshness, lift = self._freshness(), self._lift()
        return {
            "freshness_p50_ms": freshness["p50_ms"],
            "freshness_p99_ms": freshness["p99_ms"],
            "model_age_ms": self._model()["age_ms"],
            "ne": self._quality()[self._tasks[0]]["all"]["ne"],
            "lift_served": lift["served"],
            "lift_random": lift["random"],
            "lift_oracle": lift["oracle"],
        }

    def _values(self, name: str, *labels: str) -> list[float]:
        found = (process.scrape.value(name, *labels) for process in self._processes.values() if process.scrape)
        return [value for value in found if value is not None]

    def _number(self, name: str, *labels: str) -> float | None:
        """Returns a metric summed over the processes that have it; None if none has."""
        values = self._values(name, *labels)
        return sum(values) if values else None

    def _worst(self, name: str, *labels: str) -> float | None:
        """Returns the largest value over several rankers, e.g. of an age; None without any."""
        return max(self._values(name, *labels), default=None)

    def _total(self, name: str) -> float | None:
        """Returns a counter summed over its labels and over the processes that have it; None if none has."""
        found = [
            value
            for process in self._processes.values()
            if process.scrape
            for (sample, _), value in process.scrape.samples.items()
            if sample == name
        ]
        return sum(found) if found else None

    def _freshness(self) -> dict[str, float | None]:
        def quantile(which: str) -> float | None:
            return _times(self._worst("freshrank_ranker_freshness_quantile_seconds", which), 1_000)

        return {
            "p50_ms": quantile("0.5"),
            "p99_ms": quantile("0.99"),
            "n": self._number("freshrank_ranker_freshness_seconds_count"),
        }

    def _model(self) -> dict[str, float | None]:
        return {
            "version": self._worst("freshrank_ranker_version"),
            "age_ms": _times(self._worst("freshrank_ranker_model_age_seconds"), 1_000),
            "top1_changed": self._worst("freshrank_ranker_churn_ratio", "top1_changed"),
            "rbo": min(self._values("freshrank_ranker_churn_ratio", "rbo"), default=None),
            "steps": self._number("freshrank_trainer_steps_total"),
            "snapshots": self._total("freshrank_trainer_snapshots_total"),
        }

    def _gate(self) -> dict[str, float | str | None]:
        """Returns what the publish gate says now; `state` is one of its states, None without a trainer."""
        name = "freshrank_trainer_gate_state_ratio"
        return {
            "state": next((state for state in get_args(State) if self._number(name, state) == 1), None),
            "rejected": self._number("freshrank_trainer_publish_failures_total", "rejected"),
            "frozen": self._number("freshrank_trainer_gate_frozen_ratio"),
            "holding": self._number("freshrank_trainer_gate_holding_ratio"),
        }

    def _blender(self) -> dict[str, float | None]:
        """Returns which weights serve, whether requests explore, and what the last candidate promised."""
        return {
            "version": self._worst("freshrank_ranker_blender_version"),
            "share": self._worst("freshrank_ranker_blender_share_ratio"),
            "exploring": self._worst("freshrank_ranker_exploring_ratio"),
            "round_requests": self._number("freshrank_blender_round_requests"),
            "round_missing": self._number("freshrank_blender_round_missing_requests"),
            "lift": self._number("freshrank_blender_lift_ratio", "estimate"),
            "lift_low": self._number("freshrank_blender_lift_ratio", "lower"),
        }

    def _quality(self) -> dict[str, dict[str, dict[str, float | None]]]:
        def figures(task: str, scenario: str) -> dict[str, float | None]:
            labels = (scenario, task)  # by the labels' names: scenario, task
            return {
                "n": self._number("freshrank_trainer_window_rows", *labels),
                "positives": self._number("freshrank_trainer_window_positives", *labels),
                "ne": self._number("freshrank_trainer_normalized_entropy_ratio", *labels),
                "auc": self._number("freshrank_trainer_auc_ratio", *labels),
                "calibration": self._number("freshrank_trainer_calibration_ratio", *labels),
            }

        names = ("all", *self._scenarios, *self._added())
        return {task: {name: figures(task, name) for name in names} for task in self._tasks}

    def _added(self) -> list[str]:
        """Returns the scenarios that the trainer reports beside the listed ones, in its order."""
        reported = (
            labels[0]
            for process in self._processes.values()
            if process.scrape
            for name, labels in process.scrape.samples
            if name == "freshrank_trainer_window_rows"
        )
        return [name for name in dict.fromkeys(reported) if name not in ("all", *self._scenarios)]

    def _lift(self) -> dict[str, float | None]:
        utility = {
            name: self._number("freshrank_simulator_utility_ratio", name) for name in ("served", "random", "oracle")
        }
        return utility | {
            "share": self._number("freshrank_simulator_lift_ratio", "recent"),
            "lifetime_share": self._number("freshrank_simulator_lift_ratio", "lifetime"),
        }

    def _flow(self) -> dict[str, float | None]:
        if len(self._totals) < 2:
            return dict.fromkeys(RATES)
        (start_ms, first), (end_ms, last) = self._totals[0], self._totals[-1]
        seconds = max((end_ms - start_ms) / 1_000, 1e-3)
        return {name: max(last[name] - first[name], 0.0) / seconds for name in RATES}

    def _join(self) -> dict[str, float]:
        names = {
            name
            for process in self._processes.values()
            if process.scrape
            for name, labels in process.scrape.samples
            if name.startswith(JOINER) and name.endswith("_total") and not labels
        }
        return {name.removeprefix(JOINER).removesuffix("_total"): self._total(name) or 0.0 for name in sorted(names)}

    def _process(self, process: ProcessState) -> dict[str, Any]:
        scrape = process.scrape
        cpu_share = None
        if len(process.cpu) > 1:
            (start_ms, start_s), (end_ms, end_s) = process.cpu[0], process.cpu[-1]
            cpu_share = max(end_s - start_s, 0.0) / max((end_ms - start_ms) / 1_000, 1e-3)
        return {
            "name": process.name,
            "up": process.is_up,
            "uptime_ms": self._now_ms - process.started_s * 1_000 if process.is_up and process.started_s else None,
            "restarts": process.restarts,
            "cpu_share": cpu_share if process.is_up else None,
            "resident_bytes": scrape.value("process_resident_memory_bytes") if process.is_up and scrape else None,
        }


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
