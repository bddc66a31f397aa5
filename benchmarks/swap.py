"""What does a new version cost the ranker that takes it up?

Stall of the event loop, memory, cold start. A model of 50 MB and deltas of 10,000 rows, a hundredth of them new and as
many evicted, over a real Redis. The ranker's side is a process of its own: its main thread stands for the event loop
and looks how long it is kept from running, the watcher's thread follows. Stalls are counted in CPU time of that
process, so that other processes do not count.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import torch

from benchmarks.harness import Figure
from benchmarks.rank_snapshots import DELTA_ROWS, Publisher, redis_server
from benchmarks.rank_world import SCHEMA
from model.features import RowColumns
from model.payload_view import view_payload
from model.snapshot import Manifest, encode_payload, payload_sha256
from model.store import FIRST_ANNOUNCEMENT
from model.store_redis import RedisSnapshotStore
from ranker.follow import SnapshotFollower
from ranker.freshness import FreshnessRecorder
from ranker.stats import RankerStats

COMMAND = "python -m benchmarks.swap"
MODEL = "bench-small"
NUM_KEYS = 650_000
"""Rows of 64 bytes and keys of 8: with the network, a payload of 50 MB."""
NUM_DELTAS, NUM_WARM_UP = 100, 5
NUM_COLD_STARTS = 5
TURNOVER = DELTA_ROWS // 100
TICK_S = 0.0005


class Deltas:
    """Deltas whose new keys are those that the next one evicts."""

    def __init__(self, publisher: Publisher, seed: int = 2) -> None:
        self._publisher = publisher
        self._rng = np.random.default_rng(seed)
        self._added = np.empty(0, np.int64)

    def build(self) -> tuple[Manifest, bytes]:
        """Returns the next one."""
        manifest, payload = self._publisher.build(DELTA_ROWS)
        tensors = view_payload(payload)
        evicted, self._added = self._added, self._rng.integers(1, 2**62, TURNOVER)
        tensors["rows.keys"][:TURNOVER] = torch.from_numpy(self._added)
        payload = encode_payload(tensors | {"rows.evicted": torch.from_numpy(evicted)})
        sha256 = payload_sha256(payload)
        return msgspec.structs.replace(manifest, payload_sha256=sha256, payload_bytes=len(payload)), payload


def measure() -> dict[str, Figure]:
    """Returns the figures of swaps and of cold starts."""
    torch.set_num_threads(1)
    keys = np.unique(np.random.default_rng(0).integers(-(2**62), -1, NUM_KEYS))
    with redis_server() as url:
        publisher = Publisher(url, "small", keys)
        full = publisher.build()
        publisher.publish(*full)
        cold = [_cold_start(url) for _ in range(NUM_COLD_STARTS)]
        deltas = Deltas(publisher)
        swaps: list[dict[str, float]] = []
        with _child("follow", url) as lines:
            before = json.loads(lines.readline())
            for _ in range(NUM_WARM_UP + NUM_DELTAS):
                publisher.publish(*deltas.build())
                swaps.append(json.loads(lines.readline()))
    settled = swaps[NUM_WARM_UP:]
    payload_mb = len(full[1]) / 1e6
    memory = [swap["resident_mb"] for swap in settled]
    return {
        "swap.stall": _figure(
            [swap["stall_ms"] for swap in settled],
            "ms",
            {"CPU of the whole swap": statistics.median(swap["cpu_ms"] for swap in settled)},
            f"longest stall of the event loop per swap; {NUM_DELTAS} deltas of {DELTA_ROWS} rows",
        ),
        "swap.memory": Figure(
            value=max(memory) - before["resident_mb"],
            unit="MB",
            ci=(min(memory) - before["resident_mb"], max(memory) - before["resident_mb"]),
            command=COMMAND,
            peers={
                "payload of the full one": payload_mb,
                "peak while swapping, over the end": max(swap["peak_mb"] for swap in settled) - memory[-1],
                "last delta over the first": memory[-1] - memory[0],
            },
            note=f"more than with the full one alone, over {NUM_DELTAS} deltas",
        ),
        "swap.cold_start": _figure(
            [start["answer_s"] for start in cold],
            "s",
            {
                "of it CPU": statistics.median(start["answer_cpu_s"] for start in cold),
                "process start and libraries before": statistics.median(start["imports_s"] for start in cold),
                "of that CPU": statistics.median(start["imports_cpu_s"] for start in cold),
            },
            f"libraries loaded -> first answer; payload of {payload_mb:.0f} MB",
        ),
    }


def _figure(values: list[float], unit: str, peers: dict[str, float], note: str) -> Figure:
    spread = min(values), max(values)
    return Figure(value=statistics.median(values), unit=unit, ci=spread, command=COMMAND, peers=peers, note=note)


@contextmanager
def _child(role: str, url: str, *args: str) -> Iterator[IO[str]]:
    """Runs a role in a process of its own and yields what it prints."""
    argv = [sys.executable, "-m", "benchmarks.swap", role, url, *args]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as child:
        assert child.stdout is not None
        try:
            yield child.stdout
        finally:
            child.terminate()


def _cold_start(url: str) -> dict[str, Any]:
    with _child("cold", url, str(time.monotonic())) as lines:
        return dict(json.loads(lines.readline()))


def _follower(url: str) -> tuple[RedisSnapshotStore, SnapshotFollower]:
    store = RedisSnapshotStore(url, MODEL)
    freshness = FreshnessRecorder(lambda: time.time_ns() // 1_000_000)
    return store, SnapshotFollower(store, SCHEMA, RankerStats(), freshness)


def _columns(num_rows: int = 500) -> RowColumns:
    return RowColumns(
        scenario=[SCHEMA.scenarios[0]],
        user_id=["user-1"],
        item_id=[f"item-{n}" for n in range(num_rows)],
        request_index_B=np.zeros(num_rows, np.int64),
    )


def cold(url: str, started_s: float) -> None:
    """Goes from nothing to one answer, and prints how long that took."""
    torch.set_num_threads(1)
    loaded_s, loaded_cpu_s = time.monotonic(), time.process_time()
    _, follower = _follower(url)
    follower.round()
    assert follower.live is not None
    follower.live.score(_columns())
    took = {"answer_s": time.monotonic() - loaded_s, "answer_cpu_s": time.process_time() - loaded_cpu_s}
    print(json.dumps(took | {"imports_s": loaded_s - started_s, "imports_cpu_s": loaded_cpu_s}), flush=True)


def follow(url: str) -> None:
    """Follows the store beside a main thread that only looks how long it is kept from running; prints each swap."""
    torch.set_num_threads(1)
    store, follower = _follower(url)
    follower.round()
    follower.recent_columns = _columns()
    print(json.dumps({"resident_mb": _resident_mb()}), flush=True)
    swapping, stalls_s = threading.Event(), [0.0]

    def watch() -> None:
        last_id = FIRST_ANNOUNCEMENT
        while True:
            for announcement in store.announcements(last_id, block_ms=1_000):
                last_id = announcement.id
            stalls_s[:] = [0.0]
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            cpu_s, before = time.thread_time(), follower.live
            swapping.set()
            follower.round()
            swapping.clear()
            cpu_ms = 1e3 * (time.thread_time() - cpu_s)
            if follower.live is not before:
                del before
                memory = {"resident_mb": _resident_mb(), "peak_mb": _resident_mb("VmHWM")}
                print(json.dumps({"stall_ms": 1e3 * max(stalls_s), "cpu_ms": cpu_ms} | memory), flush=True)

    threading.Thread(target=watch, daemon=True).start()
    while True:
        swapping.wait()
        others_s = time.process_time() - time.thread_time()
        time.sleep(TICK_S)
        stalls_s.append(time.process_time() - time.thread_time() - others_s)


def _resident_mb(field: str = "VmRSS") -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) * 1024 / 1e6


if __name__ == "__main__":
    if sys.argv[1:2] == ["follow"]:
        follow(sys.argv[2])
    elif sys.argv[1:2] == ["cold"]:
        cold(sys.argv[2], float(sys.argv[3]))
    else:
        for goal, figure in measure().items():
            print(goal, json.dumps(figure.as_json(), indent=2))
