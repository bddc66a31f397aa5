"""P10: how many ids per CPU-second does the id table look up?

A million ids in the table; batches of 10,000 ids, Zipf distributed with one in twenty unknown. Peers, in the same run:
`unique + dict`, the usual form (np.unique, then a Python dictionary once per distinct id), and `uniform`, ours on ids
drawn uniformly, where nearly every look-up is a cache miss.

Run by itself it also prints what eviction costs a step, at worst: 512 rows of two fields, every value a new one.
"""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.harness import Figure, cpu_rate
from model.assembly import InputLayout
from model.embedding import EmbeddingTable
from model.embedding_config import EmbeddingConfig
from model.features import EncodedBatch, EncodingConfig, FeatureEncoder
from model.field_ids import FieldIdsConfig
from model.hashing import Int64Array
from model.id_table import NO_ROW, IdTable
from model.optim import OptimConfig
from stream.schema import SchemaConfig, TaskConfig

COMMAND = "python -m benchmarks.id_table"
NUM_IDS, BATCH, NUM_BATCHES = 1_000_000, 10_000, 40
STEP_ROWS, NUM_STEPS, MAX_ROWS = 512, 200, 200_000


def measure() -> dict[str, Figure]:
    """Returns P10."""
    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(-(2**63), 2**63 - 1, NUM_IDS + 2_000))
    rng.shuffle(keys)
    known, unknown = keys[:NUM_IDS], keys[NUM_IDS:]
    table = IdTable(num_reserved=0)
    row_of = dict(zip(known.tolist(), table.insert(known).tolist(), strict=True))

    def mixed(ranks: Int64Array) -> Int64Array:
        batch = known[ranks]
        batch[rng.random(BATCH) < 0.05] = rng.choice(unknown)
        return batch

    zipf = [mixed(np.minimum(rng.zipf(1.2, BATCH), NUM_IDS) - 1) for _ in range(NUM_BATCHES)]
    uniform = [mixed(rng.integers(0, NUM_IDS, BATCH)) for _ in range(NUM_BATCHES)]

    def by_dictionary(batch: Int64Array) -> Int64Array:
        distinct, inverse = np.unique(batch, return_inverse=True)
        rows = np.fromiter((row_of.get(key, NO_ROW) for key in distinct.tolist()), np.int64, len(distinct))
        found: Int64Array = rows[inverse]
        return found

    for batch in (zipf[0], uniform[0]):
        assert np.array_equal(table.lookup(batch), by_dictionary(batch))

    def run(lookup: Callable[[Int64Array], Int64Array], batches: list[Int64Array]) -> Callable[[], int]:
        return lambda: sum(len(lookup(batch)) for batch in batches)

    ours = cpu_rate(run(table.lookup, zipf))
    return {
        "P10": Figure(
            value=ours.per_cpu_s,
            unit="ids/CPU-s",
            ci=ours.per_cpu_s_range,
            command=COMMAND,
            peers={
                "unique + dict": cpu_rate(run(by_dictionary, zipf)).per_cpu_s,
                "uniform": cpu_rate(run(table.lookup, uniform)).per_cpu_s,
                "unique + dict, uniform": cpu_rate(run(by_dictionary, uniform)).per_cpu_s,
            },
            note="1M ids, batches of 10,000, Zipf 1.2, 5 % unknown",
        )
    }


def step_cost(**limits: int) -> tuple[float, float]:
    """Returns CPU-ms and evictions per step of look-up and update of 512 rows of two fields, every value a new one.

    At a limit such a step evicts as many values as it admits: 1,024.
    """
    schema = SchemaConfig(scenarios=("home",), tasks={"click": TaskConfig(action="click", window_ms=1_000)})
    encoder = FeatureEncoder(schema, EncodingConfig(history_length=0))
    layout = InputLayout(encoder.fields, width=16, interaction=False)
    fields = {field: FieldIdsConfig(admission=1, **limits) for field in ("user_id", "item_id")}
    rows = EmbeddingTable(layout, EmbeddingConfig(fields=fields), seed=0)
    rng, optim, num_learned = np.random.default_rng(0), OptimConfig(), 0

    def step(num_rows: int) -> None:
        nonlocal num_learned
        batch = EncodedBatch(
            scenario_R=np.zeros(num_rows, np.int64),
            request_index_B=np.arange(num_rows),
            position_B=np.zeros(num_rows, np.int64),
            request_keys_FR=rng.integers(1, 2**62, (1, num_rows)),
            item_keys_FB=rng.integers(1, 2**62, (1, num_rows)),
            request_lists=(),
            item_lists=(),
        )
        num_learned += num_rows
        lookup = rows.lookup(batch, np.ones(num_rows, bool))
        rows.apply(lookup, torch.ones_like(lookup.weight_UW), optim, watermark_ms=num_learned)

    def steps() -> int:
        for _ in range(NUM_STEPS):
            step(STEP_ROWS)
        return NUM_STEPS

    for _ in range(MAX_ROWS // 5_000):
        step(5_000)
    cost = cpu_rate(steps, warmup=0)
    evicted = sum(counters.evictions.total() for counters in rows.counters.values())
    return 1_000 / cost.per_cpu_s, evicted / (5 * NUM_STEPS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for key, one in measure().items():
        print(key, one.as_json())
    for name, limits in (
        ("no limits", {}),
        (f"max_rows {MAX_ROWS:,}", {"max_rows": MAX_ROWS}),
        (f"ttl of {MAX_ROWS:,} rows", {"ttl_ms": MAX_ROWS}),
    ):
        cost_ms, evicted = step_cost(**limits)
        print(f"{name}: {cost_ms:.2f} CPU-ms per step, {evicted:.0f} evicted per step")
