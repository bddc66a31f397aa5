"""What the live page and the status line show, made from scraped metrics alone. Pure: no clock, no network.

Every second the monitor hands in one scrape per process; rates are differences between scrapes, curves are a bounded
history. A figure nobody measured yet is None, never zero.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from freshrank import panels
from freshrank.scrape import Figures, Scrape
from freshrank.stages import StageWindow
from freshrank.timeline import Timeline

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

    def observe(self, now_ms: int, scrape: Scrape | None) -> None:
        """Takes up what it answered; None if it did not."""
        self.is_up = scrape is not None
        if scrape is None:
            return
        self.scrape = scrape
        started_s = scrape.value("process_start_time_seconds")
        if self.started_s is not None and started_s is not None and started_s > self.started_s + 1:
            self.restarts += 1
            self.cpu.clear()
        self.started_s = started_s
        self.cpu.append((now_ms, scrape.value("process_cpu_seconds_total") or 0.0))

    def shown(self, now_ms: int) -> dict[str, Any]:
        """Returns its row."""
        cpu_share = None
        if len(self.cpu) > 1:
            (start_ms, start_s), (end_ms, end_s) = self.cpu[0], self.cpu[-1]
            cpu_share = max(end_s - start_s, 0.0) / max((end_ms - start_ms) / 1_000, 1e-3)
        resident_bytes = self.scrape.value("process_resident_memory_bytes") if self.scrape else None
        return {
            "name": self.name,
            "up": self.is_up,
            "uptime_ms": now_ms - self.started_s * 1_000 if self.is_up and self.started_s else None,
            "restarts": self.restarts,
            "cpu_share": cpu_share if self.is_up else None,
            "resident_bytes": resident_bytes if self.is_up else None,
        }


class Board:
    """The state of a run, from scrapes."""

    def __init__(self, processes: Sequence[str], tasks: Sequence[str], scenarios: Sequence[str], history: int) -> None:
        """Starts empty; keeps `history` points of each curve."""
        self._tasks, self._scenarios = list(tasks), list(scenarios)
        self._processes = {name: ProcessState(name) for name in processes}
        self._totals: deque[tuple[int, dict[str, float]]] = deque(maxlen=64)
        self._stages = StageWindow()
        self._history: deque[tuple[int, panels.Numbers]] = deque(maxlen=history)
        self.timeline = Timeline()
        self._state = self._look(0, Figures())

    def observe(self, now_ms: int, scrapes: Mapping[str, Scrape | None]) -> None:
        """Takes up one round of scrapes; None for a process that did not answer."""
        for name, scrape in scrapes.items():
            self._processes.setdefault(name, ProcessState(name)).observe(now_ms, scrape)
        figures = Figures(process.scrape for process in self._processes.values() if process.scrape)
        totals = {name: sum(figures.total(counter) or 0.0 for counter in counters) for name, counters in RATES.items()}
        self._totals.append((now_ms, totals))
        while len(self._totals) > 2 and self._totals[1][0] < now_ms - RATE_WINDOW_MS:
            self._totals.popleft()
        self._stages.observe(now_ms, figures)
        self._state = self._look(now_ms, figures)
        self._history.append((now_ms, panels.curves(self._said_now(now_ms))))
        self.timeline.observe(now_ms, self._state)

    def keep(self, names: Sequence[str]) -> None:
        """Forgets all other processes, and shows these in this order; new ones have not answered yet."""
        self._processes = {name: self._processes.get(name, ProcessState(name)) for name in names}

    def state(self) -> dict[str, Any]:
        """Returns everything the page shows but the curves, as JSON can say it."""
        return self._state | {"events": self.timeline.events()}

    def history(self, since_ms: int = -1) -> dict[str, list[float | None]]:
        """Returns the curves after a moment as columns of equal length, oldest first; `t_ms` says when."""
        points = [(t_ms, point) for t_ms, point in self._history if t_ms > since_ms]
        names = dict.fromkeys(name for _, point in points for name in point)
        columns: dict[str, list[float | None]] = {"t_ms": [t_ms for t_ms, _ in points]}
        return columns | {name: [point.get(name) for _, point in points] for name in names}

    def _said_now(self, now_ms: int) -> dict[str, Any]:
        """Returns the state without what processes said that do not answer now: their curves have gaps."""
        states = self._processes.values()
        if all(process.is_up for process in states):
            return self._state
        return self._look(now_ms, Figures(process.scrape for process in states if process.is_up and process.scrape))

    def _look(self, now_ms: int, figures: Figures) -> dict[str, Any]:
        added = panels.added(figures, self._scenarios)
        scenarios = [*self._scenarios, *added]
        processes = [process.shown(now_ms) for process in self._processes.values()]
        return {
            "now_ms": now_ms,
            "schema": {"tasks": self._tasks, "scenarios": scenarios, "added": added},
            "processes": processes,
            "memory_bytes": sum(process["resident_bytes"] or 0 for process in processes) or None,
            "freshness": panels.freshness(figures),
            "stages": self._stages.quantiles_ms((0.5, 0.99)),
            "model": panels.model(figures),
            "gate": panels.gate(figures),
            "blender": panels.blender(figures),
            "weights": panels.weights(figures),
            "quality": panels.quality(figures, self._tasks, scenarios),
            "attention": panels.attention(figures),
            "gates": panels.gates(figures),
            "lift": panels.lift(figures),
            "flow": self._flow(),
            "join": panels.join(figures),
            "lag": panels.lag(figures),
            "online": panels.online(figures),
            "traffic": panels.traffic(figures),
            "examples": figures.number("freshrank_trainer_examples_total"),
        }

    def _flow(self) -> panels.Numbers:
        if len(self._totals) < 2:
            return dict.fromkeys(RATES)
        (start_ms, first), (end_ms, last) = self._totals[0], self._totals[-1]
        seconds = max((end_ms - start_ms) / 1_000, 1e-3)
        return {name: max(last[name] - first[name], 0.0) / seconds for name in RATES}
