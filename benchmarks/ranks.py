"""How many examples per second do one rank and two learn of the same log, and what limits them?

Messages recorded by our join core (slates of 20 with 20 fields of Zipf distributed ids) are in memory, dealt to four
partitions. Each rank is a process with one thread of arithmetic: it reads its partitions, decodes, learns; the lead
also keeps the metrics and the gate, and publishes once a second into a store in memory. The rate is that of the
examples after the first fifth. Shares are of the wall time: `collectives` holds all waiting, for the transport and for
the rank that has more to do; the others are without it. `publish_ms` is a whole publish, which all ranks wait for.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Figure
from benchmarks.hinet_step import SCHEMA
from benchmarks.recorded_examples import SLATE, messages
from model.config import ModelConfig
from model.features import EncodingConfig
from model.ranks import Ranks
from model.source import MemoryExampleSource
from model.store import MemorySnapshotStore
from model.trainer import Trainer
from model.trainer_config import TrainerConfig, TrainerParts

COMMAND = "python -m benchmarks.ranks"
NUM_PARTITIONS = 4
WARM_SHARE = 0.2
TIMEOUT_S = 300.0
STAGES = {
    "decode": ("_intake", "take"),
    "learn": ("learner", "learn"),
    "gate": ("_watch", "observe"),
    "metrics": ("metrics", "update"),
    "publish": ("_publishing", "publish"),
}
"""Stage and the part of a trainer that does it."""


class Stopwatch:
    """Time spent in some calls, with and without what they spent in collectives."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.clear()

    def watch(self, stage: str, owner: object, name: str) -> None:
        """Notes from now on how long a method takes."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start_s, waited_s = time.perf_counter(), self._ranks.collectives_s
            try:
                return method(*args, **kwargs)
            finally:
                took_s = time.perf_counter() - start_s
                self.total_s[stage] += took_s
                self.own_s[stage] += took_s - (self._ranks.collectives_s - waited_s)
                self.num_calls[stage] += 1

        setattr(owner, name, timed)

    def clear(self) -> None:
        """Starts anew."""
        self.total_s: defaultdict[str, float] = defaultdict(float)
        self.own_s: defaultdict[str, float] = defaultdict(float)
        self.num_calls: defaultdict[str, int] = defaultdict(int)


def rank(world: str, num_slates: int, batch_rows: int) -> dict[str, Any]:
    """Trains as one rank of the world that finds itself through the file `world`. Returns what it took."""
    torch.set_num_threads(1)
    ranks = Ranks.join(init_method=f"file://{world}")
    values = messages(num_slates)
    mine = [partition for partition in range(NUM_PARTITIONS) if partition % ranks.size == ranks.rank]
    trainer = Trainer(
        SCHEMA,
        TrainerConfig(batch_rows=batch_rows, poll_messages=4),
        ModelConfig(encoding=EncodingConfig(history_length=0)),
        now_ms=lambda: time.time_ns() // 1_000_000,
        parts=TrainerParts(
            source=MemoryExampleSource({partition: values[partition::NUM_PARTITIONS] for partition in mine}),
            store=MemorySnapshotStore() if ranks.is_lead else None,
            ranks=ranks,
        ),
    )
    watch = Stopwatch(ranks)
    begun: list[tuple[int, float, float, float]] = []
    for stage, (owner, name) in STAGES.items():
        watch.watch(stage, getattr(trainer, owner), name)

    def has_begun() -> bool:
        if not begun and trainer.stats.examples >= WARM_SHARE * num_slates * SLATE:
            watch.clear()
            begun.append((trainer.stats.examples, time.perf_counter(), time.process_time(), ranks.collectives_s))
        return False

    trainer.run(has_begun)
    [(examples, wall_s, cpu_s, collectives_s)] = begun
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    num_examples, num_steps = trainer.stats.examples - examples, watch.num_calls["learn"]
    ranks.close()
    return {
        "rank": ranks.rank,
        "examples_per_s": num_examples / wall_s,
        "cpu_us_per_example": 1e6 * cpu_s / num_examples,
        "collectives_share": (ranks.collectives_s - collectives_s) / wall_s,
        "own_share": {stage: watch.own_s[stage] / wall_s for stage in STAGES},
        "lead_us_per_example": 1e6 * (watch.own_s["gate"] + watch.own_s["metrics"]) / num_examples,
        "publish_ms": 1e3 * watch.total_s["publish"] / max(1, watch.num_calls["publish"]),
        "num_publishes": watch.num_calls["publish"],
        "step_ms": 1e3 * wall_s / num_steps,
    }


def world(size: int, num_slates: int, batch_rows: int) -> list[dict[str, Any]]:
    """Returns what each rank of a world of this size took."""
    environment = os.environ | {"WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "benchmarks.ranks", "--world", f"{folder}/world"]
        argv += ["--num-slates", str(num_slates), "--batch-rows", str(batch_rows)]
        children = [
            subprocess.Popen(argv, env=environment | {"RANK": str(number)}, stdout=subprocess.PIPE, text=True)
            for number in range(size)
        ]
        try:
            found = [child.communicate(timeout=TIMEOUT_S)[0] for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()
    return [json.loads(text) for text in found]


def compare(num_slates: int, repeats: int, batch_rows: int) -> dict[str, Figure]:
    """Returns the rate of two ranks, that of one beside it, and where the time goes."""
    table: list[dict[str, Any]] = []
    rates: dict[int, list[float]] = {1: [], 2: []}
    for size, found in rates.items():
        for _ in range(repeats):
            ranks = world(size, num_slates, batch_rows)
            found.append(ranks[0]["examples_per_s"])
            table += [{"ranks": size, "batch_rows": batch_rows} | one for one in ranks]
    return {
        "ranks": Figure(
            value=statistics.median(rates[2]),
            unit="examples per second of two ranks on this machine",
            ci=(min(rates[2]), max(rates[2])),
            command=COMMAND,
            peers={"one rank": statistics.median(rates[1])},
            note=f"batch_rows {batch_rows}, gloo over loopback, load average {os.getloadavg()[0]:.1f}",
            table=table,
        )
    }


def main() -> None:
    """Measures with small and large micro-batches; writes `benchmarks/results/ranks.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", help="be a rank of this world")
    parser.add_argument("--num-slates", type=int, default=3_000)
    parser.add_argument("--batch-rows", type=int, action="append")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    sizes = args.batch_rows or [512, 4_096]
    if args.world:
        print(json.dumps(rank(args.world, args.num_slates, sizes[0])))
        return
    figures = [compare(args.num_slates, args.repeats, batch_rows)["ranks"].as_json() for batch_rows in sizes]
    for figure in figures:
        print(f"{figure['note']}: {figure['value']:,.0f} of two ranks, {figure['peers']['one rank']:,.0f} of one")
    path = Path(__file__).parent / "results" / "ranks.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
