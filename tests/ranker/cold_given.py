"""A model that really learns, most of whose rows are not in memory, and a ranker that fetches them from a Redis."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import torch

from model.canary import Canary, CanaryConfig
from model.gate import PublishGate
from model.gate_config import OFF
from model.labels import LabelBatch
from model.learner import Learner
from model.publish import Identity, Progress, Publisher, PublishStats
from model.row_publish import RowPublisher
from model.row_store import RowKeys
from model.row_store_redis import RedisRowStore
from model.serving import ServingModel
from model.snapshot import Manifest
from model.store import MemorySnapshotStore, SnapshotStore, StoreConfig
from ranker.api import RankResponse
from ranker.breaker import BreakerConfig
from ranker.rank import request_columns
from ranker.row_fetch import RedisRowReader
from ranker.row_fetch_config import RowFetchConfig
from stream.schema import Sequence
from tests.model.memory_bytes import MemoryBytes
from tests.ranker.given import MODEL, SCHEMA, Clock, Parts, parts

COLD_MODEL = replace(MODEL, embedding=replace(MODEL.embedding, hot_rows=12))
PATIENT = RowFetchConfig(timeout_ms=5_000)
STORE = StoreConfig(prefix="test", timeout_ms=1_000, keep_fulls=2)
NUM_USERS, NUM_ITEMS = 20, 60


def request_of(rng: np.random.Generator) -> dict[str, Any]:
    """Returns a request of a few of many users and items; some are known to nobody."""
    num_items = int(rng.integers(2, 9))
    items = rng.choice(NUM_ITEMS, num_items, replace=False).tolist()
    return {
        "user_id": f"u{rng.integers(NUM_USERS)}",
        "scenario": ["home", "search"][int(rng.integers(2))],
        "size": num_items,
        "user": {"city": f"city{rng.integers(8)}", "spend": 12.5},
        "context": {"device": ["ios", "web", "never seen"][int(rng.integers(3))]},
        "candidates": {
            "id": [f"i{item}" for item in items],
            "features": {
                "category": [f"c{item % 7}" for item in items],
                "price": [1.5 * item for item in items],
                "tags": [[f"t{item % 11}", "red"] if item % 2 else [] for item in items],
            },
        },
    }


def history_of(user_id: str) -> Sequence:
    """Returns what a user did last."""
    number = int(user_id[1:])
    return Sequence([f"i{(number * step) % NUM_ITEMS}" for step in range(1, 6)], ["click"] * 5, [9, 8, 7, 6, 5])


class Histories:
    """A `SequenceReader` that knows what every user did."""

    is_down = False

    async def read(self, user_id: str) -> Any:
        from ranker.sequences import SequenceRead

        return SequenceRead(history_of(user_id), is_degraded=False)

    def close(self) -> None:
        pass


class ColdLine:
    """A trainer with `hot_rows`, its two stores, and a ranker that follows them."""

    def __init__(
        self,
        redis_url: str,
        *,
        seed: int = 0,
        full_every: int = 4,
        rows: RowFetchConfig = PATIENT,
        reader: type[RedisRowReader] = RedisRowReader,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.learner = Learner(SCHEMA, COLD_MODEL, seed)
        self.learner.trained.table.use_cold(MemoryBytes())
        self.store: SnapshotStore = MemorySnapshotStore(STORE)
        self.row_store = RedisRowStore(redis_url, "test", STORE)
        self.stats = PublishStats()
        identity = Identity(
            model="test",
            schema_hash=SCHEMA.schema_hash(),
            config_hash="c",
            tasks=list(SCHEMA.tasks),
            model_config=msgspec.to_builtins(COLD_MODEL),
            run_id="run",
        )
        row_publisher = RowPublisher(self.row_store, self.learner.trained, width=4, stats=self.stats.cold)
        self.publisher = Publisher(
            self.store,
            identity,
            full_every=full_every,
            now_ms=Clock(),
            last_version=0,
            stats=self.stats,
            gate=PublishGate(OFF, SCHEMA, COLD_MODEL),
            canary=Canary(CanaryConfig(), tuple(SCHEMA.tasks)),
            rows=row_publisher,
        )
        self.given: Parts = parts(store=self.store)
        self.clock_ms = Clock(0)
        self.reader = reader(redis_url, RowKeys(STORE.prefix, "test"), rows, self.given.stats, self.clock_ms)
        self.given.ranker = replace(self.given.ranker, rows=self.reader, sequences=Histories())
        self.plain: dict[int, ServingModel] = {}
        """By version, what a ranker holds that holds all rows."""

    def learn(self) -> None:
        """Makes a step on some requests, so that other rows leave memory."""
        for _ in range(2):
            columns = self.columns(request_of(self.rng))
            shape = (len(columns.item_id), len(SCHEMA.tasks))
            labels = LabelBatch(
                label_BT=self.rng.integers(0, 2, shape).astype(np.float32),
                mask_BT=np.ones(shape, np.bool_),
                weight_BT=np.ones(shape, np.float32),
                first_BT=np.ones(shape, np.bool_),
            )
            self.learner.learn(self.learner.encode(columns), labels)

    def evict(self) -> None:
        """Takes some values their row, wherever it is."""
        model = self.learner.trained
        keys = np.concatenate([model.serving_full()["rows.keys"].numpy(), *(keys for keys, _ in model.cold_rows())])
        model.table.evict(self.rng.choice(keys, min(3, len(keys)), replace=False))

    def publish(self) -> Manifest | None:
        """Publishes what was learned, and remembers it as one who holds all rows."""
        progress = Progress(step=self.learner.num_steps, watermark_ms=0, offsets={}, metrics={})
        manifest = self.publisher.publish(self.learner.trained, progress)
        if manifest is not None:
            tensors = self.learner.trained.serving_full()
            cold = list(self.learner.trained.cold_rows())
            tensors["rows.keys"] = torch.cat([tensors["rows.keys"], *(torch.from_numpy(keys) for keys, _ in cold)])
            tensors["rows.weights"] = torch.cat([tensors["rows.weights"], *(weights for _, weights in cold)])
            self.plain[manifest.version] = ServingModel.from_full(SCHEMA, COLD_MODEL, tensors)
        return manifest

    def step(self) -> Manifest | None:
        """Learns and publishes."""
        self.learn()
        return self.publish()

    def columns(self, request: dict[str, Any]) -> Any:
        checked = self.given.ranker.decoder.rank(msgspec.json.encode(request))
        return request_columns(checked, history_of(checked.user_id), self.given.clock())

    async def ask(self, request: dict[str, Any]) -> RankResponse:
        return await self.given.ranker.rank(msgspec.json.encode(request))

    async def ask_and_compare(self, request: dict[str, Any], *, is_equal: bool = True) -> RankResponse:
        """Returns the answer, after comparing its scores, bit by bit, with those of one that holds all rows."""
        answer = await self.ask(request)
        assert (self.scores_of(answer) == self.expected(request, answer.snapshot)) == is_equal, answer.snapshot
        return answer

    def scores_of(self, answer: RankResponse) -> dict[str, list[float]]:
        return {item.id: [item.scores[task] for task in SCHEMA.tasks] for item in answer.items}

    def expected(self, request: dict[str, Any], version: int) -> dict[str, list[float]]:
        model = self.plain[version]
        columns = self.columns(request)
        return dict(zip(columns.item_id, model.score(model.encode(columns)).tolist(), strict=True))

    def follow(self) -> None:
        """Lets the ranker take up the newest version."""
        self.given.ranker.follower.round()

    def tell(self, story: Callable[["ColdLine"], Awaitable[None]]) -> None:
        """Runs a test's body in one event loop."""

        async def told() -> None:
            try:
                await story(self)
            finally:
                self.reader.close()
                self.row_store.close()
                await asyncio.sleep(0)

        asyncio.run(told())


HASTY = RowFetchConfig(timeout_ms=30, breaker=BreakerConfig(max_failures=2, open_ms=1_000))


def elapsed_ms() -> int:
    return time.monotonic_ns() // 1_000_000
