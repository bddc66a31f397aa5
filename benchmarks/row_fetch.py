"""What does a ranker pay for rows that are not in its memory?

Requests of 500 candidates, 0 to 500 of which have an id whose row is in the row store alone, over a real Redis: one
round trip each, nothing kept from one request to the next. Beside them, in turn, the same requests to a model that
holds all rows. Then what is kept under Zipf traffic; and the memory of a row in Redis, in a ranker, among what is kept.

CPU is user + system of this process, and of Redis where it says so; wall times are of a request alone on the machine.
"""

import asyncio
import json
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import redis
import torch
from torch import Tensor

from benchmarks.harness import Figure
from benchmarks.rank_snapshots import redis_server
from benchmarks.rank_world import NUM_CANDIDATES, NUM_ITEMS, SCHEMA, World
from model.config import ModelConfig
from model.hashing import Int64Array
from model.id_table import IdTable
from model.learner import Learner
from model.row_publish import RowPublisher, RowStats
from model.row_store import RowKeys
from model.row_store_redis import RedisRowStore
from model.serving_rows import RowTable
from model.snapshot import Manifest, encode_payload, payload_sha256
from model.store import StoreConfig
from ranker.live import LiveModel, next_live
from ranker.rank import request_columns
from ranker.request import CheckedRequest, RequestDecoder, RequestLimits
from ranker.row_cache import RowCache
from ranker.row_fetch import RedisRowReader
from ranker.row_fetch_config import RowFetchConfig
from ranker.stats import RankerStats
from stream.schema import Sequence

COMMAND = "python -m benchmarks.row_fetch benchmarks/results/row_fetch.json"
MISSES = (0, 10, 100, 500)
NUM_REQUESTS, NUM_ROUNDS = 20, 6
NUM_ROWS, NUM_COOLED = 500_000, 10_000
ZIPF_EXPONENT, ZIPF_ITEMS, HOT_SHARE, ZIPF_REQUESTS = 0.9, 1_000_000, 0.1, 8_000
WIDTH = ModelConfig(preset="small").embedding.width


class ColdKeys:
    """A model in training of which these rows are not in memory."""

    def __init__(self, keys: Int64Array, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._keys, self._weights = keys, torch.from_numpy(rng.normal(0, 0.2, (len(keys), WIDTH)).astype(np.float32))
        self.num_cold = len(keys)
        self.num_cooled = 0

    def cold_rows(self) -> Iterator[tuple[Int64Array, Tensor]]:
        """See `ColdModel`, as the others."""
        for start in range(0, len(self._keys), 10_000):
            yield self._keys[start : start + 10_000], self._weights[start : start + 10_000]

    def cooled(self) -> tuple[Int64Array, Tensor]:
        """Returns the first `num_cooled` rows in an order of their own."""
        order = np.random.default_rng(7).permutation(len(self._keys))[: self.num_cooled]
        return self._keys[order], self._weights[torch.from_numpy(order)]

    def evicted(self) -> Int64Array:
        """Returns no keys."""
        return np.empty(0, np.int64)


class Bench:
    """Requests with candidates of their own each, and models that lack some of their rows."""

    def __init__(self, url: str) -> None:
        self.url, world = url, World()
        order = np.random.default_rng(3).permutation(NUM_ITEMS)
        decoder = RequestDecoder(SCHEMA, RequestLimits(), RankerStats())
        self.lots = order[: NUM_REQUESTS * NUM_CANDIDATES].reshape(NUM_REQUESTS, NUM_CANDIDATES)
        self.history = Sequence([world.item_ids[row] for row in order[-50:].tolist()], ["click"] * 50, [0] * 50)
        bodies = []
        for lot in self.lots.tolist():
            features = {name: [column[row] for row in lot] for name, column in world.items.items()}
            candidates = {"id": [world.item_ids[row] for row in lot], "features": features}
            bodies.append(json.dumps(world.request() | {"candidates": candidates}).encode())
        self.requests: list[CheckedRequest] = [decoder.rank(body) for body in bodies]
        learner = Learner(SCHEMA, ModelConfig(preset="small"), seed=0)
        self.tensors, encoder = learner.trained.serving_full(), learner.encoder
        self.keys = world.keys(bodies, encoder)
        self.item_keys_RN = [encoder.encode_columns(self.columns(request)).item_keys_FB[0] for request in self.requests]

    def columns(self, request: CheckedRequest) -> Any:
        """Returns a request as the model encodes it."""
        return request_columns(request, self.history, 1)

    def model(self, num_missing: int | None) -> tuple[LiveModel, RedisRowReader]:
        """Returns a model that lacks the rows of so many candidates of each request, and who reads them; None: none."""
        cold = np.unique(np.concatenate([keys[: num_missing or 0] for keys in self.item_keys_RN]))
        hot = np.setdiff1d(self.keys, cold)
        weights = torch.from_numpy(np.random.default_rng(1).normal(0, 0.2, (len(hot), WIDTH)).astype(np.float32))
        rows = {"rows.keys": torch.from_numpy(hot), "rows.weights": weights, "rows.cooled": torch.from_numpy(cold)}
        payload, name, stats = encode_payload(self.tensors | rows), f"bench-{num_missing}", RankerStats()
        store = RedisRowStore(self.url, name)
        at = RowPublisher(store, ColdKeys(cold), width=WIDTH, stats=RowStats()).write(epoch=1, version=1, is_full=True)
        store.close()
        manifest = Manifest(
            model=name,
            version=1,
            base_version=0,
            kind="full",
            step=1,
            created_ms=1,
            watermark_ms=1,
            offsets={},
            schema_hash=SCHEMA.schema_hash(),
            config_hash="bench",
            metrics={},
            payload_sha256=payload_sha256(payload),
            payload_bytes=len(payload),
            epoch=1,
            scenarios=list(SCHEMA.scenarios),
            tasks=list(SCHEMA.tasks),
            model_config=msgspec.to_builtins(ModelConfig(preset="small")),
            cold_rows=None if num_missing is None else at,
        )
        config = RowFetchConfig(timeout_ms=10_000, cache_rows=1)
        reader = RedisRowReader(self.url, RowKeys(StoreConfig().prefix, name), config, stats, lambda: 0)
        return next_live(SCHEMA, None, manifest, payload), reader

    async def score(self, live: LiveModel, reader: RedisRowReader, request: CheckedRequest) -> None:
        """Does what `Ranker` does between sequence and blender."""
        looked = live.model.look_up(live.model.encode(self.columns(request)))
        if live.manifest.cold_rows is None:
            live.model.score_rows(looked)
            return
        keys_N = live.model.keys_without_row(looked)
        rows, is_degraded = await reader.fetch(live, keys_N) if len(keys_N) else (None, False)
        assert not is_degraded
        live.model.score_rows(looked, rows)

    async def times(self) -> dict[int | None, dict[str, list[float]]]:
        """Returns ms per request by number of missing rows, None for a model without a row store; rounds in turn."""
        client = redis.Redis.from_url(self.url)
        models = {num: self.model(num) for num in (None, *MISSES)}
        ms: dict[int | None, dict[str, list[float]]] = {num: {"cpu": [], "wall": [], "redis": []} for num in models}
        for round_number in range(NUM_ROUNDS):
            for request in self.requests:
                for num, (live, reader) in models.items():
                    redis_s, cpu_s, start_s = _redis_cpu_s(client), time.process_time(), time.perf_counter()
                    await self.score(live, reader, request)
                    if round_number:  # the first one warms up
                        ms[num]["wall"].append((time.perf_counter() - start_s) * 1000)
                        ms[num]["cpu"].append((time.process_time() - cpu_s) * 1000)
                        ms[num]["redis"].append((_redis_cpu_s(client) - redis_s) * 1000)
        for _, reader in models.values():
            reader.close()
        client.close()
        return ms


def _redis_cpu_s(client: Any) -> float:
    info = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def hit_rates() -> list[dict[str, Any]]:
    """Returns the share of rows that are not in memory whose answer is known, by size of the cache."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, ZIPF_ITEMS + 1) ** ZIPF_EXPONENT
    ends = np.cumsum(weights) / weights.sum()
    requests = [np.unique(np.searchsorted(ends, rng.random(NUM_CANDIDATES))) for _ in range(ZIPF_REQUESTS)]
    missing = [request[request >= HOT_SHARE * ZIPF_ITEMS] for request in requests]
    table = []
    for capacity in (10_000, 100_000):
        cache, num_asked, num_known = RowCache(capacity, width=1), 0, 0
        for number, rows in enumerate(missing):
            keys = (rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)
            _, is_known = cache.find(keys)
            cache.add(
                keys[~is_known], np.zeros((int((~is_known).sum()), 1), np.float32), np.ones((~is_known).sum(), bool)
            )
            if number >= ZIPF_REQUESTS // 2:
                num_asked, num_known = num_asked + len(rows), num_known + int(is_known.sum())
        per_request = num_asked / (ZIPF_REQUESTS // 2)
        table.append({"cache rows": capacity, "missing per request": per_request, "known": num_known / num_asked})
    return table


def memory_and_writes(url: str) -> dict[str, float]:
    """Returns bytes per row, and microseconds of CPU time of the trainer per row written."""
    keys = np.unique(np.random.default_rng(5).integers(-(2**63), 2**63 - 1, NUM_ROWS))
    model, store, stats = ColdKeys(keys), RedisRowStore(url, "bench-memory"), RowStats()
    with redis.Redis.from_url(url) as client:
        before = client.info("memory")["used_memory"]
        writer = RowPublisher(store, model, width=WIDTH, stats=stats)
        start_s = time.process_time()
        writer.write(epoch=1, version=1, is_full=True)
        full_us = (time.process_time() - start_s) / len(keys) * 1e6
        redis_bytes = (client.info("memory")["used_memory"] - before) / len(keys)
    model.num_cooled = NUM_COOLED
    start_s = time.process_time()
    writer.write(epoch=1, version=2, is_full=False)
    cooled_us = (time.process_time() - start_s) / NUM_COOLED * 1e6
    store.close()
    tracemalloc.start()
    cache = RowCache(100_000, width=WIDTH)
    cache.add(keys[:100_000], np.zeros((100_000, WIDTH), np.float32), np.ones(100_000, np.bool_))
    cache_bytes = tracemalloc.get_traced_memory()[0] / 100_000
    before = tracemalloc.get_traced_memory()[0]
    ids = IdTable(num_reserved=2)
    ids.insert(keys)
    table = RowTable(ids, torch.empty(0, WIDTH))
    table_bytes = (tracemalloc.get_traced_memory()[0] - before) / len(table.ids) + 4 * WIDTH
    tracemalloc.stop()
    return {
        "Redis": redis_bytes,
        "ranker, one of its two tables": table_bytes,
        "what is kept": cache_bytes,
        "writing all, us": full_us,
        "writing what cooled, us": cooled_us,
    }


def measure() -> dict[str, Figure]:
    """Returns the figures of requests, of what is kept, and of memory."""
    torch.set_num_threads(1)
    with redis_server() as url:
        ms = asyncio.run(Bench(url).times())
        memory = memory_and_writes(url)
    table = [
        {
            "rows to fetch": "no row store" if num is None else num,
            "CPU ms": statistics.median(found["cpu"]),
            "more than without, CPU ms": statistics.median(np.subtract(found["cpu"], ms[None]["cpu"]).tolist()),
            "of Redis, CPU ms": statistics.mean(found["redis"]),
            "p50 ms": float(np.quantile(found["wall"], 0.5)),
            "p99 ms": float(np.quantile(found["wall"], 0.99)),
        }
        for num, found in ms.items()
    ]
    most, rates = ms[MISSES[-1]]["cpu"], hit_rates()
    known = [row["known"] for row in rates]
    per_row = [value for name, value in memory.items() if not name.endswith("us")]
    return {
        "row_fetch.request": Figure(
            value=statistics.median(most),
            unit="CPU ms",
            ci=(float(np.quantile(most, 0.05)), float(np.quantile(most, 0.95))),
            command=COMMAND,
            note=f"encode and score {NUM_CANDIDATES} candidates, {MISSES[-1]} of them without a row in memory",
            table=table,
        ),
        "row_fetch.known": Figure(
            value=known[-1],
            unit="share",
            ci=(min(known), max(known)),
            command=COMMAND,
            note=f"Zipf {ZIPF_EXPONENT} over {ZIPF_ITEMS} items, the {HOT_SHARE:.0%} most popular in memory",
            table=rates,
        ),
        "row_fetch.memory": Figure(
            value=memory["Redis"],
            unit="bytes per row",
            ci=(min(per_row), max(per_row)),
            command=COMMAND,
            note=f"rows of {WIDTH} floats, {NUM_ROWS} of them; us: of the trainer's CPU time per row",
            peers=memory,
        ),
    }


if __name__ == "__main__":
    figures = {name: figure.as_json() for name, figure in measure().items()}
    text = json.dumps({"load of the machine": os.getloadavg()[0], "figures": figures}, indent=2)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n")
    else:
        print(text)
