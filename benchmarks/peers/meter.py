"""A peer's side of the measurement: what it is asked to do, and CPU seconds and memory of its whole process tree."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a peer is to join, and where the results go."""

    folder: str
    """For whatever the peer must store: state, checkpoints."""
    events: str
    """The log as JSON lines."""
    num_events: int
    """How many lines it has."""
    num_items: int
    """How many labels it has: the items shown, each once."""
    rows: str
    """File for the labels: lines `key,label`. A peer that answers in a topic leaves it alone."""
    report: str
    """File for the `Report`."""
    broker: str = ""
    """Kafka, for the peers that need one: its topics `<prefix>events`, or `<prefix>impressions` and
    `<prefix>feedback`, hold the log, `<prefix>labels` takes the answer as JSON."""
    prefix: str = ""
    """In front of the names of the topics."""

    @classmethod
    def from_argv(cls) -> "Job":
        """Returns the job in the file that the only argument names."""
        return cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


@dataclass(slots=True, kw_only=True)
class Report:
    """What a peer measured of itself; one entry per run."""

    cpu_s: list[float] = field(default_factory=list)
    """User + system of the process tree."""
    wall_s: list[float] = field(default_factory=list)
    """From the first event read to the last label written."""
    rss_mib: float = 0.0
    """Peak resident memory of the process tree, start-up included."""


class Meter:
    """Measures what lies between `start` and `stop`; both may be called for several runs."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._report = Report()
        self._cpu_s = self._wall_s = 0.0

    def start(self) -> None:
        """Begins a run: start-up, imports and warm-up lie before it."""
        self._cpu_s, self._wall_s = tree_cpu_s(), time.perf_counter()

    def stop(self, *, less_cpu_s: float = 0.0, less_wall_s: float = 0.0) -> None:
        """Ends a run; `less_*` is start-up that lies within it, measured apart."""
        self._report.cpu_s.append(tree_cpu_s() - self._cpu_s - less_cpu_s)
        self._report.wall_s.append(time.perf_counter() - self._wall_s - less_wall_s)
        self._report.rss_mib = tree_peak_mib()
        Path(self._job.report).write_text(json.dumps(asdict(self._report)), encoding="utf-8")

    def time(self, work: Callable[[], None]) -> tuple[float, float]:
        """Returns CPU and wall seconds of a run that is not reported."""
        cpu_s, wall_s = tree_cpu_s(), time.perf_counter()
        work()
        return tree_cpu_s() - cpu_s, time.perf_counter() - wall_s


def write_rows(path: str, rows: list[tuple[str, int]]) -> None:
    """Writes labels as a `Job` wants them."""
    Path(path).write_text("".join(f"{key},{label}\n" for key, label in rows), encoding="utf-8")


def tree_cpu_s() -> float:
    """Returns user + system seconds of this process and everything it started, ended children that it waited for too.

    This process to the microsecond, the others to the kernel's tick of usually 10 ms.
    """
    own = os.times()
    others = sum(_cpu_ticks(stat) for pid, stat in tree(os.getpid()) if pid != os.getpid()) / _TICKS_PER_S
    return time.process_time() + own.children_user + own.children_system + others


def tree_peak_mib() -> float:
    """Returns the peak resident memory, in MiB, of the processes that are alive in the tree, added up."""
    peak_kib = 0
    for pid, _ in tree(os.getpid()):
        lines = _read(f"/proc/{pid}/status").splitlines()
        peak_kib += next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
    return peak_kib / 1024


def tree(root: int) -> Iterator[tuple[int, list[str]]]:
    """Yields process id and the fields of /proc/<pid>/stat from the state on, for a process and its descendants."""
    stats = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _read(f"/proc/{entry}/stat")):
            stats[int(entry)] = stat.rpartition(")")[2].split()
    found = [root] if root in stats else []
    for parent in found:
        yield parent, stats[parent]
        found += [pid for pid, stat in stats.items() if int(stat[1]) == parent]


def _cpu_ticks(stat: list[str]) -> int:
    return sum(int(ticks) for ticks in stat[11:15])


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended meanwhile
        return ""
