"""One model from two ranks, as users start them: examples in Kafka, snapshots in Redis, stopped and started again."""

import os
import sys
import uuid
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from confluent_kafka import Producer

from freshrank.children import Child
from freshrank.exits import ExitCode
from model.checkpoint import checkpoint_paths
from model.checkpoint_load import check_checkpoint
from model.examples import ExampleDecoder
from model.features import FeatureEncoder
from model.hinet_config import HiNetConfig
from model.serving import ServingModel
from model.snapshot import open_snapshot
from model.store import StoreConfig, chain_to
from model.store_redis import RedisSnapshotStore
from stream.kafka_client import client_settings
from stream.log import EXAMPLES, KafkaConfig, topic_name
from stream.topics import create_topics
from tests.conftest import WaitUntil
from tests.model.example_log import MODEL, SCHEMA, partition_log

pytestmark = pytest.mark.integration
LOG = {partition: partition_log(seed=partition, num_messages=24) for partition in range(3)}
FRESHRANK = ("freshrank.cli", "train")


def write_run(path: Path, kafka: KafkaConfig, redis_url: str, store: StoreConfig) -> Path:
    """Writes the settings of the run as `--config` reads them; returns the path."""
    click, order = ({"action": name, "window_ms": 60_000} for name in ("click", "order"))
    assert MODEL.hinet is not None
    hinet, defaults = asdict(MODEL.hinet), asdict(HiNetConfig())
    settings = {
        "scenarios": list(SCHEMA.scenarios),
        "tasks": {"click": click, "order": order | {"policy": "wait"}},
        "features": asdict(SCHEMA.features),
        "kafka": {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topic_prefix": kafka.topic_prefix,
            "num_partitions": kafka.num_partitions,
        },
        "redis": {"url": redis_url},
        "store": {"prefix": store.prefix},
        "checkpoint": {"folder": str(path.parent / "checkpoints")},
        "trainer": {"batch_rows": 32, "publish_interval_ms": 100, "checkpoint_interval_ms": 500},
        "model": {
            "preset": "custom",
            "hinet": {name: value for name, value in hinet.items() if value != defaults[name]} | {"tower": [4]},
            "encoding": {"history_length": 4},
            "embedding": {"width": 4},
        },
        "monitor": {"trainer": "127.0.0.1:0"},
    }
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


class Job:
    """A training job of two ranks on a topic of its own."""

    def __init__(self, folder: Path, kafka: KafkaConfig, redis_url: str, wait_until: WaitUntil) -> None:
        self._folder, self._kafka, self._wait_until = folder, kafka, wait_until
        config = StoreConfig(prefix=f"test:{uuid.uuid4().hex[:8]}")
        self._run = write_run(folder / "run.yaml", kafka, redis_url, config)
        self.store = RedisSnapshotStore(redis_url, "main", config)
        self._producer = Producer(client_settings(kafka, {}, {}))
        self._ends = dict.fromkeys(LOG, 0)

    def send(self, messages: slice) -> None:
        """Writes some messages of each partition into the log."""
        for partition, values in LOG.items():
            for value in values[messages]:
                self._producer.produce(topic_name(self._kafka, EXAMPLES), value, partition=partition)
                self._ends[partition] += 1
        self._producer.flush(10.0)

    def train(self, *argv: str) -> tuple[int, str]:
        """Trains until a version with all that was sent is live, then stops. Returns the exit code and the output."""
        log = self._folder / f"{uuid.uuid4().hex[:4]}.log"
        argv = (sys.executable, "-m", *argv, "--config", str(self._run))
        child = Child(argv, log, dict(os.environ, OMP_NUM_THREADS="1"))
        try:
            self._wait_until(lambda: child.exit_code() is not None or self._is_served(), f"see {log}", 100.0)
            return child.stop(30.0), log.read_text()
        finally:
            child.kill()

    def _is_served(self) -> bool:
        live = self.store.pointer()
        return live is not None and live.offsets == self._ends

    def served(self) -> ServingModel:
        """What a ranker builds from the pointer alone."""
        live = self.store.pointer()
        assert live is not None
        model: ServingModel | None = None
        for manifest in chain_to(self.store, live):
            tensors = open_snapshot(manifest, self.store.payload(manifest), schema_hash=SCHEMA.schema_hash())
            model = ServingModel.from_full(SCHEMA, MODEL, tensors) if model is None else model.apply_delta(tensors)
        assert model is not None
        return model


def test_two_ranks_train_publish_stop_and_go_on(
    apache_broker: str, redis_server: str, wait_until: WaitUntil, tmp_path: Path
) -> None:
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    kafka = KafkaConfig(bootstrap_servers=apache_broker, topic_prefix=prefix, num_partitions=len(LOG))
    create_topics(kafka)
    job = Job(tmp_path, kafka, redis_server, wait_until)
    job.send(slice(0, 12))
    code, said = job.train("freshrank.cli", "train", "--ranks", "2")
    assert code == ExitCode.OK, said
    first = job.store.pointer()
    assert first is not None
    job.send(slice(12, None))
    _, said = job.train("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *FRESHRANK)
    assert said.count("Stopped after the last step.") == 2 and said.count("Resumed from a checkpoint") == 2, said
    manifest = check_checkpoint(checkpoint_paths(tmp_path / "checkpoints")[0])
    assert {p: (at.offset, at.row) for p, at in manifest.positions.items()} == dict.fromkeys(LOG, (24, 0))
    decoder = ExampleDecoder(SCHEMA, FeatureEncoder(SCHEMA, MODEL.encoding))
    rows = [decoder.decode(value).rows for values in LOG.values() for value in values]
    assert manifest.counters["examples"] == sum(one.num_rows for one in rows) and manifest.num_ranks == 2
    last = job.store.pointer()
    assert last is not None and last.version > first.version and last.epoch > first.epoch
    scores = job.served().score(rows[0].batch)
    assert scores.shape == (rows[0].num_rows, 2) and np.isfinite(scores).all() and (scores > 0).all()
