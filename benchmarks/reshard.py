"""What it costs to deal the rows of a checkpoint to another number of ranks.

`python -m benchmarks.reshard [--rows 1000000] [--json FILE]`. CPU seconds of the slowest rank, its files in the page
cache, without the check of their hashes. "2 -> 4": two ranks wrote, four read.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.__main__ import machine
from model.checkpoint import rows_name
from model.id_table import IdTable
from model.reshard import ranks_with, reshard
from model.row_arrays import RowArrays
from model.sharding import NUM_SHARDS

WAYS = ((1, 2), (2, 4), (4, 1), (3, 2), (8, 6))
_WIDTH, _RESERVED = 16, 20


def rows(num_rows: int) -> dict[str, Tensor]:
    """Returns the rows of one rank that has all keys, as a checkpoint keeps them."""
    rng = np.random.default_rng(0)
    ids = IdTable(num_reserved=_RESERVED)
    ids.insert(np.unique(rng.integers(-(2**63), 2**63 - 1, num_rows)))
    arrays = RowArrays(torch.randn(ids.num_rows, _WIDTH))
    counts = rng.integers(0, 9, (NUM_SHARDS, 1 << 12), dtype=np.uint8)
    state = {
        **{f"ids.{name}": torch.from_numpy(array) for name, array in ids.state().items()},
        **arrays.state(ids.num_rows),
        "admission.counts": torch.from_numpy(counts),
        "admission.num_counted": torch.zeros(NUM_SHARDS, dtype=torch.int64),
        "evicted": torch.empty(0, 2, dtype=torch.int64),
        "clock": torch.tensor(1),
        "has_exported": torch.tensor(False),
    }
    return {f"rows.{name}": tensor for name, tensor in state.items()}


def dealt_s(folder: Path, writers: int, readers: int) -> float:
    """Returns the CPU seconds of the slowest of the ranks that take up what others wrote."""
    took_s = []
    for rank in range(readers):
        began_s = time.process_time()
        parts = ranks_with(rank, readers, of=writers)
        reshard((load_file(folder / rows_name(part, writers)) for part in parts), rank, readers)
        took_s.append(time.process_time() - began_s)
    return max(took_s)


def main() -> None:
    """Measures, prints, and writes the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reshard", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    whole = rows(given.rows)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="freshrank-reshard-") as name:
        folder = Path(name)
        for writers in sorted({writers for writers, _ in WAYS}):
            for rank in range(writers):
                save_file(reshard([whole], rank, writers), folder / rows_name(rank, writers))
        num_bytes = (folder / rows_name(0, 1)).stat().st_size
        for writers, readers in WAYS:
            figures[f"{writers} -> {readers}"] = round(min(dealt_s(folder, writers, readers) for _ in range(3)), 3)
            print(f"{writers} -> {readers}: {figures[f'{writers} -> {readers}']} s")
    if given.json is not None:
        command = f"python -m benchmarks.reshard --rows {given.rows}"
        document = {"machine": machine(), "command": command, "rows": given.rows, "bytes": num_bytes, "cpu_s": figures}
        given.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
