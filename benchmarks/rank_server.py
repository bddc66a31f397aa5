"""The ranker of the benchmarks: a process of its own on one core, all of it but Kafka."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from benchmarks.rank_world import BLENDER, SCHEMA
from model.store_redis import RedisSnapshotStore
from ranker.answer import Ranker
from ranker.door import DoorConfig
from ranker.event_log import EventLog
from ranker.follow import SnapshotFollower
from ranker.freshness import FreshnessRecorder
from ranker.request import RequestDecoder, RequestLimits
from ranker.score_shift import ScoreShift
from ranker.sequences import RedisSequenceReader, SequenceConfig
from ranker.server import HttpServer, ServerConfig
from ranker.service import create_app
from ranker.stats import RankerStats
from ranker.watcher import SnapshotWatcher, WatcherConfig
from stream.log import KafkaConfig
from utility_blender.blend import Blender

SERVER_CORE, LOAD_CORE = 0, 1
"""Places among the cores there are. The load has a core of its own; where there is one core only, they share it."""


class Served(NamedTuple):
    """A ranker that serves."""

    port: int
    pid: int

    def cpu_s(self) -> float:
        """Returns the CPU time it has taken so far, in seconds, all threads."""
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stay_on(place: int) -> None:
    """Keeps this process and its children to one core."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[place % len(cores)]})


class Sink:
    """A log that takes everything: the broker is not the question here."""

    num_failed = 0

    def produce(self, topic: str, key: bytes | None, value: bytes, headers: Any = ()) -> bool:
        """Takes it."""
        return True

    def poll(self) -> None:
        """Has nothing to report."""

    def flush(self, timeout_ms: int) -> int:
        """Holds nothing."""
        return 0


def serve(redis_url: str, model: str) -> None:
    """Runs a ranker on one core until SIGTERM; prints its port as soon as it serves a model."""
    stay_on(SERVER_CORE)
    torch.set_num_threads(1)
    now_ms = lambda: time.time_ns() // 1_000_000  # noqa: E731
    stats, freshness, limits = RankerStats(), FreshnessRecorder(now_ms), RequestLimits()
    store = RedisSnapshotStore(redis_url, model)
    follower = SnapshotFollower(store, SCHEMA, stats, freshness)
    blender = Blender(tuple(SCHEMA.tasks), SCHEMA.scenarios, BLENDER)
    ranker = Ranker(
        decoder=RequestDecoder(SCHEMA, limits, stats),
        sequences=RedisSequenceReader(redis_url, SequenceConfig(), stats, now_ms),
        follower=follower,
        blender=blender,
        log=EventLog(Sink(), KafkaConfig(), stats),
        stats=stats,
        freshness=freshness,
        score_shift=ScoreShift(blender, stats),
        now_ms=now_ms,
        elapsed_s=time.perf_counter,
        new_request_id=lambda: os.urandom(12).hex(),
    )
    follower.round()
    watcher = SnapshotWatcher(store, follower, WatcherConfig(), stats)
    app = create_app(
        ranker,
        watcher,
        limits,
        metrics_text=lambda: b"",
        version="0",
        door=DoorConfig(max_in_progress=100_000),  # a ranker that cannot keep up shall show as latency
    )
    server = HttpServer(app, ServerConfig(port=0))
    print(server.port, flush=True)
    server.run()


@contextmanager
def ranker_server(redis_url: str, model: str) -> Iterator[Served]:
    """Runs `serve` in a process of its own and yields it once it serves."""
    argv = [sys.executable, "-m", "benchmarks.rank_server", redis_url, model]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as child:
        assert child.stdout is not None
        try:
            yield Served(int(child.stdout.readline()), child.pid)
        finally:
            child.terminate()


if __name__ == "__main__":
    serve(*sys.argv[1:])
