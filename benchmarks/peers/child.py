"""Runs one peer as a child process: its log written, its labels read back."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.peers import kafka_side
from benchmarks.peers.environment import NotRunError, interpreter
from benchmarks.peers.events import Event, write
from benchmarks.peers.meter import Job, Report, tree

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One row of the table."""

    name: str
    module: str
    """Its file in `peers/`."""
    package: str | None = None
    """Where its version comes from; None for ours, which runs in this environment."""
    form: kafka_side.Form | None = None
    """How it reads the log from Kafka; None: from a file."""
    arguments: tuple[str, ...] = ()
    exactly_once: str
    """Whether the labels it has written survive a crash exactly once, with the settings used: yes or no."""
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The events of a run, and what their labels must be."""

    events: Sequence[Event]
    expected: Mapping[str, int]


def run(peer: Peer, log: Log, address: str, *, limit_s: float) -> tuple[Report, list[tuple[str, int]]]:
    """Returns what a peer measured of itself, and the labels it gave.

    Raises:
        NotRunError: it is not installed, failed, or took too long.
    """
    python = interpreter(peer.module if peer.package else None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = Job(
            folder=name,
            events=str(folder / "events.jsonl"),
            num_events=len(log.events),
            num_items=len(log.expected),
            rows=str(folder / "rows"),
            report=str(folder / "report.json"),
            broker=address,
            prefix=f"{peer.module}-{os.getpid()}-",
        )
        if peer.form is None:
            write(Path(job.events), log.events)
        else:
            kafka_side.write(address, job.prefix, peer.form, log.events)
        (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
        argv = [str(python), "-m", f"benchmarks.peers.{peer.module}", str(folder / "job.json"), *peer.arguments]
        _run_child(argv, limit_s)
        report = Report(**json.loads(Path(job.report).read_text(encoding="utf-8")))
        if peer.form is not None:
            return report, kafka_side.labels(address, job.prefix, peer.form)
        return report, file_rows(Path(job.rows))


def file_rows(path: Path) -> list[tuple[str, int]]:
    """Returns the labels in a file, or in the files of a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return [(key, int(label)) for key, _, label in (line.rpartition(",") for line in lines)]


def _run_child(argv: Sequence[str], limit_s: float) -> None:
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        try:
            _, errors = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            for pid, _ in tree(child.pid):  # it stays in our process group, so that who ends us ends it
                os.kill(pid, signal.SIGKILL)
            raise NotRunError(f"stopped after {limit_s:g} s") from None
    if child.returncode != 0:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        raise NotRunError(f"exit code {child.returncode}: {last}")
