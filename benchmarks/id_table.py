"""P10: how many ids per CPU-second does the id table look up?

A million ids in the table; batches of 10,000 ids, Zipf distributed with one in twenty unknown. Peers, in the same run:
`unique + dict`, the usual form (np.unique, then a Python dictionary once per distinct id), and `uniform`, ours on ids
drawn uniformly, where nearly every look-up is a cache miss.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.harness import Figure, cpu_rate
from model.hashing import Int64Array
from model.id_table import NO_ROW, IdTable

COMMAND = "python -m benchmarks.id_table"
NUM_IDS, BATCH, NUM_BATCHES = 1_000_000, 10_000, 40


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


if __name__ == "__main__":
    for key, one in measure().items():
        print(key, one.as_json())
