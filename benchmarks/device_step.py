"""P6: how many examples per second does one device learn, and what limits it?

Three ways to the same step (20 fields of width 16, slates of 20, 3 scenarios, 2 tasks), each value seen before:

- `step`: the batch is on the device, and nothing waits for it (`benchmarks.resident_step`);
- `learn`: all of `Learner.learn` on batches encoded beforehand: ids, admission and bookkeeping on the host;
- `messages`: recorded Arrow messages in memory -> decode -> encode -> micro-batch -> `Learner.learn`.

Beside it the limit: the step's matrix products alone on the same shapes and layouts, plus what all its other operations
read and write at the bandwidth of a copy, both measured in the same run. `share` is the limit over the time of `step`:
wall time on a device, which is waited for; CPU time of one thread on the CPU.

    python -m benchmarks.device_step [--device cuda|cpu] [--batch-rows 512 4096] [--profile FILE] [--json FILE]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from benchmarks.device_limits import (
    StepCounts,
    best_s,
    copy_bytes_per_s,
    counted,
    products_alone,
    send_bytes_per_s,
    wait_for,
)
from benchmarks.harness import Figure
from benchmarks.hinet_step import NUM_TASKS, SCHEMA, batches
from benchmarks.host_stages import grouped, labels_of
from benchmarks.recorded_examples import SLATE, messages
from benchmarks.resident_step import ResidentStep, check
from model.config import ModelConfig, Preset
from model.device import DeviceName, device_of
from model.examples import ExampleDecoder, TrainRows
from model.features import EncodedBatch, EncodingConfig
from model.labels import LabelBatch
from model.learner import Learner
from model.precision import Precision

COMMAND = "python -m benchmarks.device_step"
BATCH_ROWS = {"cpu": (512, 4_096), "cuda": (512, 4_096, 16_384, 65_536)}
PRESETS: tuple[Preset, ...] = ("small", "published")
NUM_BATCHES, REPEATS = 4, 5
FARTHEST = {"float32": 1e-3, "bfloat16": 0.1}
"""How far a resident step may be from the learner's, see `resident_step.check`; sums in another order."""


class Case(NamedTuple):
    """One model on one device with one size of a micro-batch."""

    preset: Preset
    precision: Precision
    num_rows: int
    device: torch.device

    def learner(self) -> Learner:
        """Returns a new model."""
        encoding = EncodingConfig(history_length=0, admission_ids=1)
        config = ModelConfig(preset=self.preset, precision=self.precision, encoding=encoding)
        return Learner(SCHEMA, config, seed=0, device=self.device)


class Timing(NamedTuple):
    """One run: rows learned, seconds by the clock, of the process's CPU time, and between events on the device."""

    num_rows: int
    wall_s: float
    cpu_s: float
    device_s: float | None


def timed(work: Callable[[], int], device: torch.device) -> Timing:
    """Runs `work`, which returns how many rows it learned, and waits for the device."""
    events: list[Any] = []
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    wait_for(device)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    for event in events[:1]:
        event.record()
    num_rows = work()
    for event in events[1:]:
        event.record()
    wait_for(device)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return Timing(num_rows, wall_s, cpu_s, events[0].elapsed_time(events[1]) / 1e3 if events else None)


def figures_of(work: Callable[[], int], device: torch.device) -> dict[str, Any]:
    """Returns rate and range, and nanoseconds per example of wall, CPU and device; after a warm-up.

    The rate is per second, on the CPU per CPU-second of one thread.
    """
    work()
    runs = [timed(work, device) for _ in range(REPEATS)]
    rates = sorted(run.num_rows / (run.cpu_s if device.type == "cpu" else run.wall_s) for run in runs)
    found: dict[str, Any] = {
        "examples_per_s": round(statistics.median(rates)),
        "range": [round(rates[0]), round(rates[-1])],
        "wall_ns": round(1e9 * statistics.median(run.wall_s / run.num_rows for run in runs)),
        "cpu_ns": round(1e9 * statistics.median(run.cpu_s / run.num_rows for run in runs)),
    }
    device_s = [run.device_s / run.num_rows for run in runs if run.device_s is not None]
    return found | {"device_ns": round(1e9 * statistics.median(device_s)) if device_s else None}


def encoded(case: Case, learner: Learner) -> list[tuple[EncodedBatch, LabelBatch]]:
    """Returns random batches of slates, encoded, with labels."""
    rng = np.random.default_rng(0)
    drawn = batches(-(-case.num_rows // SLATE), rng, num_rows=case.num_rows, num_batches=NUM_BATCHES)
    on_BT = np.ones((case.num_rows, NUM_TASKS), np.bool_)
    weight_BT = on_BT.astype(np.float32)
    return [
        (
            learner.resolved(learner.encode(columns)),
            LabelBatch(
                label_BT=(rng.random(on_BT.shape) < 0.1).astype(np.float32),
                mask_BT=on_BT,
                weight_BT=weight_BT,
                first_BT=on_BT,
            ),
        )
        for columns in drawn
    ]


def from_batches(learner: Learner, given: Sequence[tuple[EncodedBatch, LabelBatch]]) -> Callable[[], int]:
    """Returns a run of `Learner.learn` over batches."""

    def work() -> int:
        for batch, labels in given:
            assert learner.learn(batch, labels).made
        return sum(batch.num_rows for batch, _ in given)

    return work


def from_messages(case: Case, values: Sequence[bytes]) -> Callable[[], int]:
    """Returns a run from messages to learned examples, in micro-batches of about the case's rows."""
    learner = case.learner()
    decoder = ExampleDecoder(SCHEMA, learner.encoder)
    groups = grouped(values, lambda value: decoder.decode(value).rows.num_rows, case.num_rows)[:NUM_BATCHES]

    def work() -> int:
        num_rows = 0
        for group in groups:
            rows = TrainRows.concat([decoder.decode(value).rows for value in group])
            assert learner.learn(rows.batch, labels_of(rows)).made
            num_rows += rows.num_rows
        return num_rows

    return work


def limit_of(case: Case, counts: StepCounts, sent_bytes: int, copy_rate: float) -> dict[str, Any]:
    """Returns what a step must do, and the time that this takes at the measured rates, per example."""
    products_s = best_s(products_alone(counts, case.device), case.device)
    bytes_s = counts.other_bytes / copy_rate
    return {
        "flops": counts.flops // case.num_rows,
        "product_bytes": counts.product_bytes // case.num_rows,
        "other_bytes": counts.other_bytes // case.num_rows,
        "sent_bytes": sent_bytes // case.num_rows,
        "operations": counts.num_operations,
        "gflop_per_s": round(counts.flops / products_s / 1e9, 1),
        "products_ns": round(1e9 * products_s / case.num_rows),
        "bytes_ns": round(1e9 * bytes_s / case.num_rows),
    }


def row_of(case: Case, values: Sequence[bytes], copy_rate: float, profile: Path | None = None) -> dict[str, Any]:
    """Returns the figures of one case."""
    one, other = case.learner(), case.learner()
    given = encoded(case, one)
    for learner in (one, other):  # every value gets its row
        from_batches(learner, given)()
    farthest = check(one, other, *given[0], case.device)
    if not farthest < FARTHEST[case.precision]:
        raise RuntimeError(f"{case}: the resident step is {farthest:.2g} away from the learner's")
    resident = ResidentStep(other, case.device)
    staged = [resident.stage(*pair) for pair in given]

    def step() -> int:
        for batch in staged:
            loss = resident.step(batch)
        assert 0.0 < loss.item() < 10.0
        return sum(batch.num_rows for batch in staged)

    ways = {
        "step": figures_of(step, case.device),
        "learn": figures_of(from_batches(one, given), case.device),
        "messages": figures_of(from_messages(case, values), case.device),
    }
    limit = limit_of(case, counted(lambda: resident.step(staged[0])), staged[0].num_bytes, copy_rate)
    if profile is not None:
        write_profile(step, case, profile)
    share = (limit["products_ns"] + limit["bytes_ns"]) * ways["step"]["examples_per_s"] / 1e9
    named = {"preset": case.preset, "precision": case.precision, "batch_rows": case.num_rows}
    return named | ways | {"limit": limit, "share": round(share, 3), "distance_to_learner": farthest}


def write_profile(work: Callable[[], object], case: Case, path: Path) -> None:
    """Appends the operations, or kernels, that took longest to a file."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if case.device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds) as profiled:
        work()
        wait_for(case.device)
    order = "self_cuda_time_total" if case.device.type == "cuda" else "self_cpu_time_total"
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{case}\n{profiled.key_averages().table(sort_by=order, row_limit=25)}\n")


def run(
    device: torch.device,
    sizes: Sequence[int],
    presets: Sequence[Preset] = PRESETS,
    precisions: Sequence[Precision] = get_args(Precision),
    profile: Path | None = None,
) -> dict[str, Any]:
    """Returns all figures of a device."""
    values = messages(NUM_BATCHES * (max(sizes) // SLATE + 25))
    copy_rate = copy_bytes_per_s(device)
    rows: list[dict[str, Any]] = []
    for preset in presets:
        for precision in precisions:
            for num_rows in sizes:
                rows.append(row_of(Case(preset, precision, num_rows, device), values, copy_rate, profile))
                print(line(rows[-1]), file=sys.stderr, flush=True)
    return {
        "command": COMMAND,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, one thread",
        "torch": torch.__version__,
        "copy_gb_per_s": round(copy_rate / 1e9, 1),
        "send_gb_per_s": {
            kind: None if rate is None else round(rate / 1e9, 1)
            for kind, pinned in (("pinned", True), ("pageable", False))
            for rate in [send_bytes_per_s(device, pinned=pinned)]
        },
        "rows": rows,
    }


def line(row: dict[str, Any]) -> str:
    """Returns one case for people."""
    rates = "  ".join(f"{way} {row[way]['examples_per_s']:>9,}/s" for way in ("step", "learn", "messages"))
    limit = row["limit"]
    parts = f"products {limit['products_ns']:,} + bytes {limit['bytes_ns']:,} ns"
    return f"{row['preset']:9} {row['precision']:8} {row['batch_rows']:>6,}  {rates}  {row['share']:.0%}: {parts}"


def measure() -> dict[str, Figure]:
    """Returns P6; nothing where there is no CUDA device."""
    if not torch.cuda.is_available():
        return {}
    found = run(torch.device("cuda"), (4_096, 32_768), presets=("small",))
    best = max(found["rows"], key=lambda row: row["step"]["examples_per_s"])
    rates = {
        f"{way}, {row['precision']}, batch {row['batch_rows']:,}": float(row[way]["examples_per_s"])
        for row in found["rows"]
        for way in ("step", "learn", "messages")
    }
    return {
        "P6": Figure(
            value=best["step"]["examples_per_s"],
            unit="examples/s",
            ci=(best["step"]["range"][0], best["step"]["range"][1]),
            command=COMMAND,
            peers=rates,
            note=f"{found['device']}, preset small, {best['precision']}, batch {best['batch_rows']:,},"
            f" data on the device; {best['share']:.0%} of the limit",
        )
    }


def main() -> int:
    """Measures and prints. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Examples per second of a training step on one device, and its limit.")
    parser.add_argument("--device", choices=get_args(DeviceName), default="auto")
    parser.add_argument("--batch-rows", type=int, nargs="+", help="rows of a micro-batch; several sizes")
    parser.add_argument("--preset", choices=PRESETS, nargs="+", default=PRESETS)
    parser.add_argument("--precision", choices=get_args(Precision), nargs="+", default=get_args(Precision))
    parser.add_argument("--profile", type=Path, help="file for the operations that take longest")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    try:
        device = device_of(given.device)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if device.type == "cpu":
        torch.set_num_threads(1)
    if given.profile:
        given.profile.write_text("", encoding="utf-8")
    sizes = given.batch_rows or BATCH_ROWS[device.type]
    found = run(device, sizes, given.preset, given.precision, given.profile)
    text = json.dumps(found, indent=2)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
