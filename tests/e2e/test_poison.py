"""Poison through the front doors of a running loop: garbage changes nothing, what poisoned labels taught goes back.

One run of `freshrank up`: healthy versions, garbage in the topics, clicks that no user made, and health again.
"""

import json
import signal
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from freshrank.config import load_config
from model.store import Rollback
from model.store_redis import RedisSnapshotStore
from stream import kafka_adapter
from stream.codec import EventDecoder, encode
from stream.exceptions import DecodeError
from stream.log import FEEDBACK, IMPRESSIONS, KafkaConfig, Producer, Reader, TopicPartition
from stream.schema import Feedback, Impression
from tests.e2e.conftest import REPO_ROOT, UpRun, wait_for_state
from tests.utility_blender.some_versions import some_version
from utility_blender.store_redis import RedisBlenderStore

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]
YEAR_2099_MS = 4_086_000_000_000
WARM_ROWS, WINDOW_MS = 6_000, 5_000
UP_ARGUMENTS = (
    "--for", "400",
    "--set", "sim.requests_per_s=20",
    "--set", "tasks.order.window_ms=2000",
    "--set", f"trainer.gate.warm_up_rows={WARM_ROWS}",
    "--set", f"trainer.gate.window_ms={WINDOW_MS}",
    "--set", "trainer.gate.on_failure=rollback",
    "--set", "trainer.checkpoint_interval_ms=3000",
    "--set", "trainer.keep_checkpoints=20",
    "--set", "trainer.full_every=5",
    "--set", "store.keep_fulls=20",
)  # fmt: skip
"""Short windows, and a way back that is fine. Ended by SIGTERM."""
CONFIG = load_config(REPO_ROOT / "configs/demo.yaml", (), {})


class Doors:
    """The topics of a run, as anybody with access to the broker may use them."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self._reader: Reader = kafka_adapter.reader(kafka)
        self._producer: Producer = kafka_adapter.producer(kafka)
        self._decoder = EventDecoder(CONFIG.schema)
        partitions = [TopicPartition(IMPRESSIONS, n) for n in range(kafka.num_partitions)]
        self._reader.assign(self._reader.end_offsets(partitions))

    def impressions(self) -> Iterator[Impression]:
        """Yields what has been shown since the last call."""
        for message in self._reader.poll(1_000, 200):
            try:
                yield self._decoder.impression(message.value)
            except DecodeError:  # our own garbage
                continue

    def send(self, topic: str, user_id: str, value: bytes) -> None:
        assert self._producer.produce(topic, user_id.encode(), value)

    def close(self) -> None:
        assert self._producer.flush(20_000) == 0
        self._reader.close()


@contextmanager
def doors_of(run: UpRun) -> Iterator[Doors]:
    doors = Doors(KafkaConfig(bootstrap_servers=run.kafka, num_partitions=CONFIG.kafka.num_partitions))
    try:
        yield doors
    finally:
        doors.close()


@pytest.fixture(scope="module")
def store(up_run: UpRun) -> Iterator[RedisSnapshotStore]:
    opened = RedisSnapshotStore(up_run.redis_url, CONFIG.trainer.model_name, CONFIG.store)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def healthy(up_run: UpRun, store: RedisSnapshotStore) -> int:
    """The version that serves after five windows of data and labels were in order."""

    def is_judged(state: dict[str, Any]) -> bool:
        return state["model"]["version"] and orderly_windows(up_run) >= 5

    return int(wait_for_state(up_run, is_judged, "five windows were in order", 200)["model"]["version"])


def orderly_windows(run: UpRun) -> float:
    return run.metric("trainer", "freshrank_trainer_gate_windows_total", "pass")


def served_version(run: UpRun) -> int:
    """Returns what the ranker says it serves."""
    with urllib.request.urlopen(f"{run.ranker_url}v1/model", timeout=5) as answer:
        return int(json.load(answer)["version"])


def ranked(run: UpRun) -> dict[str, Any]:
    """Returns the answer to one request."""
    asked = urlencode({"user_id": "u1", "scenario": "home"})
    with urllib.request.urlopen(f"{run.page_url}api/candidates?{asked}", timeout=5) as answer:
        world = json.load(answer)
    body = {"user_id": "u1", "scenario": "home", "size": 5} | {k: world[k] for k in ("candidates", "user", "context")}
    request = urllib.request.Request(
        f"{run.ranker_url}v1/rank", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        found: dict[str, Any] = json.load(answer, parse_constant=pytest.fail)
    return found


def until(run: UpRun, holds: Callable[[], object], what: str, timeout_s: float) -> None:
    """Waits for something; a process that is down for a moment is waited for."""

    def answers(state: dict[str, Any]) -> object:
        try:
            return holds()
        except OSError:
            return False

    wait_for_state(run, answers, what, timeout_s)


def test_health_is_promoted_and_raises_no_alarm(up_run: UpRun, store: RedisSnapshotStore, healthy: int) -> None:
    assert healthy > 10
    assert store.rollbacks() == [] and store.denied() == set()
    assert up_run.metric("trainer", "freshrank_trainer_gate_windows_total", "block") == 0
    assert up_run.metric("trainer", "freshrank_trainer_gate_holding_ratio") == 0
    assert up_run.metric("trainer", "freshrank_trainer_publish_failures_total", "rejected") <= 2


def test_garbage_goes_to_the_dead_letters_and_versions_go_on(
    up_run: UpRun, store: RedisSnapshotStore, healthy: int
) -> None:
    malformed = up_run.metric("joiner", "freshrank_joiner_malformed_total")
    num_sent = 0
    with doors_of(up_run) as doors:
        while num_sent < 300:
            for shown in list(doors.impressions()):
                for value in garbage(shown):
                    doors.send(IMPRESSIONS, shown.user_id, value)
                    num_sent += 1
                late = Feedback(shown.request_id, shown.user_id, shown.items.id[0], "click", YEAR_2099_MS)
                doors.send(FEEDBACK, shown.user_id, encode(late))
                num_sent += 1
    before = served_version(up_run)
    until(
        up_run,
        lambda: up_run.metric("joiner", "freshrank_joiner_malformed_total") >= malformed + num_sent,
        f"{num_sent} messages are dead letters",
        30,
    )
    until(up_run, lambda: served_version(up_run) > before + 5, "versions go on", 30)
    answer = ranked(up_run)
    assert answer["degraded"] == [] and len(answer["items"]) == 5
    assert all(0 < score < 1 for item in answer["items"] for score in item["scores"].values())
    assert store.rollbacks() == []


def garbage(shown: Impression) -> Iterator[bytes]:
    """Yields a slate again, under ids of its own: with prices that are no numbers, and dated in the year 2099."""
    shown.request_id += "-again"
    price = encode(shown).index(b'"price":[') + len(b'"price":[')
    wire = encode(shown)
    end = wire.index(b"]", price)
    for value in (b"NaN", b"1e999"):
        yield wire[:price] + b",".join([value] * len(shown.items.id)) + wire[end:]
    shown.ts = YEAR_2099_MS
    yield encode(shown)


@pytest.fixture(scope="module")
def poisoned(up_run: UpRun, store: RedisSnapshotStore, healthy: int) -> tuple[int, Rollback]:
    """Clicks on everything that 30 % of the requests show, until something is rolled back.

    Returns when the first of these was shown, and the rollback.
    """
    first_ms = 0
    deadline_s = time.monotonic() + 90
    with doors_of(up_run) as doors:
        while not store.rollbacks():
            assert time.monotonic() < deadline_s, "nothing was rolled back"
            for shown in doors.impressions():
                if zlib.crc32(shown.request_id.encode()) % 10 < 3:
                    first_ms = first_ms or shown.ts
                    for item in shown.items.id:
                        click = Feedback(shown.request_id, shown.user_id, item, "click", shown.ts + 300)
                        doors.send(FEEDBACK, shown.user_id, encode(click))
    return first_ms, store.rollbacks()[0]


def test_what_poisoned_labels_taught_is_rolled_back_and_not_served(
    up_run: UpRun, store: RedisSnapshotStore, poisoned: tuple[int, Rollback]
) -> None:
    first_ms, record = poisoned
    time.sleep(2)
    denied = store.denied()
    served = []
    for _ in range(20):
        served.append(served_version(up_run))
        time.sleep(0.1)
    assert not denied & set(served), "a version that was rolled back serves nobody after two seconds"
    assert min(served) >= record.version
    assert "label_rate" in record.reason
    made = [manifest for version in store.versions() if (manifest := store.manifest(version))]
    taught = {
        manifest.version
        for manifest in made
        if manifest.version < record.version and manifest.watermark_ms >= first_ms + WINDOW_MS
    }
    assert taught <= denied, "whatever had learned an interval of it"


def test_after_a_rollback_it_learns_again_and_says_what_happened(
    up_run: UpRun, store: RedisSnapshotStore, poisoned: tuple[int, Rollback]
) -> None:
    _, record = poisoned
    until(
        up_run,
        lambda: (
            not up_run.metric("trainer", "freshrank_trainer_gate_holding_ratio")
            and orderly_windows(up_run) >= 1
            and served_version(up_run) > record.version + 5
        ),
        "versions go live again",
        90,
    )
    assert len(store.rollbacks()) == 1
    assert not store.denied() & set(store.versions()[-3:])
    assert all(0 < score < 1 for item in ranked(up_run)["items"] for score in item["scores"].values())


def test_weights_that_failed_their_gate_cannot_be_promoted_by_hand(up_run: UpRun, healthy: int) -> None:
    store = RedisBlenderStore(up_run.redis_url, CONFIG.trainer.model_name, CONFIG.blender.store)
    store.put(some_version(1, gate={"passed": False, "reasons": ["lift: -3 %"], "rules": []}))
    argv = [sys.executable, "-m", "freshrank.cli", "blender", "promote", "1", "--share", "1"]
    argv += ["--config", "configs/demo.yaml", "--set", f"redis.url={up_run.redis_url}", "--log-level", "error"]
    done = subprocess.run(argv, check=False, cwd=REPO_ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "the gate of version 1 did not pass" in done.stderr and "Traceback" not in done.stderr
    assert store.pointer() is None
    store.close()
    assert ranked(up_run)["blender"] == 0


def test_the_run_ends_cleanly(up_run: UpRun, poisoned: tuple[int, Rollback]) -> None:
    up_run.child.send_signal(signal.SIGTERM)
    assert up_run.end(60) == 0, up_run.lines[-15:]
    report = up_run.report()
    assert report["restarts"] == 1, "the trainer's, after the rollback"
    assert not any("Traceback" in line for line in up_run.lines)
    log = Path(up_run.folder / "logs" / "trainer.log").read_text()
    assert "Traceback" not in log and "Going on from before a rollback" in log
