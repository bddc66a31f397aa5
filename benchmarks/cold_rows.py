"""What does it cost to train with more embedding rows than are kept in memory?

Rows of users and items, half each, all seen once in a random order. Then micro-batches of 512 rows whose users and
items follow a Zipf law over all of them (the exponent 1 is how popularity usually falls; 0.8 is flatter and harder);
one value in fifty is a new one, which gets its row at once. Look-up and update only, the network is not part of it.
First as many steps as fill the memory anew, then the steps that are measured. CPU-seconds are user + system of the
process with RocksDB's threads; each size of the hot set has a process of its own.

The short form has 200,000 rows; the long one is `python -m benchmarks.cold_rows --rows 2000000 --json FILE`.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Figure
from model.assembly import InputLayout
from model.embedding import EmbeddingTable
from model.embedding_config import EmbeddingConfig
from model.features import EncodedBatch, EncodingConfig, FeatureEncoder
from model.field_ids import FieldIdsConfig
from model.hashing import Int64Array
from model.optim import OptimConfig
from stream.local_store import LocalStore, StoreMemory
from stream.schema import SchemaConfig, TaskConfig

COMMAND = "python -m benchmarks.cold_rows"
SHARES = (1.0, 0.1, 0.03, 0.01)
EXPONENTS = (1.0, 0.8)
SHORT_ROWS = 200_000
BATCH, NUM_STEPS, NEW_SHARE, STORE_MIB = 512, 400, 0.02, 128
LOADED_AT_ONCE = 10_000


def memory_bytes() -> int:
    """Returns what this process has in memory, without files that the system caches."""
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) << 10


def key_of(number_N: Int64Array) -> Int64Array:
    """Returns hashes, one to one, as keys are."""
    mixed_N = (number_N.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed_N ^ (mixed_N >> np.uint64(32))).view(np.int64)


class Traffic:
    """Micro-batches over some users and as many items."""

    def __init__(self, num_rows: int) -> None:
        self._rng = np.random.default_rng(0)
        self.num_each = num_rows // 2
        self._popularity = self._rng.permutation(self.num_each)
        self.num_seen = num_rows
        """Values that came so far."""

    def load(self) -> list[Int64Array]:
        """Returns each user and item once, user n beside item n, in parts."""
        everybody = self._rng.permutation(self.num_each)
        return np.array_split(everybody, -(-self.num_each // LOADED_AT_ONCE))

    def batch(self, exponent: float) -> tuple[Int64Array, Int64Array]:
        """Returns the keys of users and of items of a micro-batch."""
        drawn_N = self._rng.random(2 * BATCH)
        if exponent == 1.0:
            rank_N = self.num_each**drawn_N
        else:
            power = 1 - exponent
            rank_N = (drawn_N * (self.num_each**power - 1) + 1) ** (1 / power)
        number_N = self._popularity[rank_N.astype(np.int64).clip(max=self.num_each) - 1]
        number_N[BATCH:] += self.num_each
        is_new_N = self._rng.random(2 * BATCH) < NEW_SHARE
        number_N[is_new_N] = self.num_seen + np.arange(is_new_N.sum())
        self.num_seen += int(is_new_N.sum())
        keys_N = key_of(number_N)
        return keys_N[:BATCH], keys_N[BATCH:]


def new_table(hot_rows: int | None) -> EmbeddingTable:
    schema = SchemaConfig(scenarios=("home",), tasks={"click": TaskConfig(action="click", window_ms=1_000)})
    encoder = FeatureEncoder(schema, EncodingConfig(history_length=0))
    layout = InputLayout(encoder.fields, width=16, interaction=False)
    fields = {field: FieldIdsConfig(admission=1) for field in ("user_id", "item_id")}
    # Random weights: on the disk equal ones would be compressed.
    return EmbeddingTable(layout, EmbeddingConfig(fields=fields, hot_rows=hot_rows, new_rows="random"), seed=0)


def step(table: EmbeddingTable, user_keys: Int64Array, item_keys: Int64Array) -> None:
    """Looks a micro-batch up and updates its rows."""
    num_rows = len(user_keys)
    batch = EncodedBatch(
        scenario_R=np.zeros(num_rows, np.int64),
        request_index_B=np.arange(num_rows),
        position_B=np.zeros(num_rows, np.int64),
        request_keys_FR=user_keys[None],
        item_keys_FB=item_keys[None],
        request_lists=(),
        item_lists=(),
    )
    lookup = table.lookup(batch, np.ones(num_rows, np.bool_))
    table.apply(lookup, torch.full_like(lookup.weight_UW, 0.01), OptimConfig())


def run(num_rows: int, share: float, directory: str) -> list[dict[str, Any]]:
    """Returns what steps cost with a share of the rows in memory, one row of the table per exponent."""
    torch.set_num_threads(1)
    traffic, folder = Traffic(num_rows), Path(directory)
    before_bytes = memory_bytes()
    table = new_table(int(share * num_rows) if share < 1 else None)
    if share < 1:
        table.use_cold(LocalStore(folder / "live", StoreMemory(STORE_MIB)))
    for numbers in traffic.load():
        step(table, key_of(numbers), key_of(numbers + traffic.num_each))
    cold, found = table.cold, []
    for exponent in EXPONENTS:
        for _ in range(max(NUM_STEPS, int(share * num_rows) // 400 if cold else 0)):
            step(table, *traffic.batch(exponent))
        num_hot, num_seen, cpu_s, wall_s = 0, traffic.num_seen, 0.0, 0.0
        asked, thawed, store_s = (cold.stats.asked, cold.stats.found, cold.stats.store_s) if cold else (0, 0, 0.0)
        for _ in range(NUM_STEPS):
            users, items = traffic.batch(exponent)
            num_hot += int((table.ids.lookup(np.concatenate([users, items])) >= 0).sum())
            start = time.process_time(), time.perf_counter()
            step(table, users, items)
            cpu_s += time.process_time() - start[0]
            wall_s += time.perf_counter() - start[1]
        row = {
            "exponent": exponent,
            "hot_share": share,
            "hit_share": num_hot / (2 * BATCH * NUM_STEPS - (traffic.num_seen - num_seen)),
            "cpu_ms": 1_000 * cpu_s / NUM_STEPS,
            "wall_ms": 1_000 * wall_s / NUM_STEPS,
            "mib": (memory_bytes() - before_bytes) / 2**20,
            "asked": 0.0,
            "thawed": 0.0,
            "store_ms": 0.0,
        }
        if cold is not None:
            row["asked"] = (cold.stats.asked - asked) / NUM_STEPS
            row["thawed"] = (cold.stats.found - thawed) / NUM_STEPS
            row["store_ms"] = 1_000 * (cold.stats.store_s - store_s) / NUM_STEPS
        found.append(row)
    if cold is not None:
        start = time.process_time(), time.perf_counter()
        cold.save(folder / "kept")
        cost = {"checkpoint_cpu_s": time.process_time() - start[0], "checkpoint_s": time.perf_counter() - start[1]}
        size = sum(file.stat().st_size for file in (folder / "kept").iterdir())
        found[-1] |= cost | {"disk_bytes_per_row": size / len(cold)}
        cold.close()
    return found


def table_of(num_rows: int) -> list[dict[str, Any]]:
    """Returns the costs of all sizes of the hot set."""
    rows = []
    for share in SHARES:
        with tempfile.TemporaryDirectory() as directory, multiprocessing.get_context("spawn").Pool(1) as pool:
            rows += pool.apply(run, (num_rows, share, directory))
    return rows


def measure(num_rows: int = SHORT_ROWS) -> dict[str, Figure]:
    """Returns CPU-ms per step with a tenth of the rows in memory, all sizes beside it."""
    table = table_of(num_rows)
    cost = {(row["exponent"], row["hot_share"]): row["cpu_ms"] for row in table}
    value = cost[1.0, 0.1]
    others = {f"{share:.0%}, Zipf {exponent:g}": cost[exponent, share] for exponent in EXPONENTS for share in SHARES}
    figure = Figure(
        value=value,
        unit="CPU-ms/step",
        ci=(value, value),
        command=f"{COMMAND} --rows {num_rows}",
        peers={name: cpu_ms for name, cpu_ms in others.items() if name != "10%, Zipf 1"},
        note=f"{num_rows:,} rows, a tenth in memory; look-up and update of 512 users and 512 items by a Zipf law",
        table=table,
    )
    return {"cold.step": figure}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=SHORT_ROWS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {name: figure.as_json() for name, figure in measure(arguments.rows).items()}
    for row in figures["cold.step"]["table"]:
        print({name: round(value, 3) for name, value in row.items()}, flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
