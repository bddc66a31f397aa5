"""P6: how many examples per second does a training step learn on a CUDA device?

Preset `small`, the data of `hinet_step` in larger batches, encoded beforehand; the step is all of `Learner.learn`, its
look-up and admission on the host. Peers: other batch sizes, bfloat16 products, and the same step on one CPU thread.
Without a CUDA device nothing is measured.

    python -m benchmarks.gpu_step
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks import hinet_step
from benchmarks.harness import Figure
from model.config import ModelConfig
from model.features import EncodingConfig
from model.labels import LabelBatch
from model.learner import Learner
from model.precision import Precision

COMMAND = "python -m benchmarks.gpu_step"
BATCH_ROWS = (512, 4_096, 32_768)
NUM_BATCHES, REPEATS = 4, 5


def step(num_rows: int, precision: Precision, device: torch.device) -> Callable[[], int]:
    """Returns a run of whole steps; every batch has been learned once before."""
    config = ModelConfig(precision=precision, encoding=EncodingConfig(history_length=0))
    rng, learner = np.random.default_rng(0), Learner(hinet_step.SCHEMA, config, seed=0, device=device)
    batches = hinet_step.batches(num_rows // 20, rng, num_rows=num_rows, num_batches=NUM_BATCHES)
    encoded = [learner.encode(columns) for columns in batches]
    on_BT = np.ones((num_rows, hinet_step.NUM_TASKS), bool)
    labels = [
        LabelBatch(
            label_BT=(rng.random(on_BT.shape) < 0.1).astype(np.float32),
            mask_BT=on_BT,
            weight_BT=on_BT.astype(np.float32),
            first_BT=on_BT,
        )
        for _ in encoded
    ]

    def work() -> int:
        for batch, truth in zip(encoded, labels, strict=True):
            if not learner.learn(batch, truth).made:
                raise RuntimeError("a step was not finite")
        return NUM_BATCHES * num_rows

    return work


def per_second(work: Callable[[], int]) -> list[float]:
    """Returns the rate of each run; the reports of a step bring its scores to the host, which waits for the device."""
    work()
    rates = []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        num_rows = work()
        rates.append(num_rows / (time.perf_counter() - start_s))
    return rates


def measure() -> dict[str, Figure]:
    """Returns P6; nothing where there is no CUDA device."""
    if not torch.cuda.is_available():
        return {}
    cuda, most = torch.device("cuda"), BATCH_ROWS[-1]
    rates = per_second(step(most, "float32", cuda))
    peers = {f"batch {rows:,}": statistics.median(per_second(step(rows, "float32", cuda))) for rows in BATCH_ROWS[:-1]}
    peers["bfloat16 products"] = statistics.median(per_second(step(most, "bfloat16", cuda)))
    torch.set_num_threads(1)
    peers["one CPU thread, batch 512"] = statistics.median(per_second(step(512, "float32", torch.device("cpu"))))
    return {
        "P6": Figure(
            value=statistics.median(rates),
            unit="examples/s",
            ci=(min(rates), max(rates)),
            command=COMMAND,
            peers=peers,
            note=f"{torch.cuda.get_device_name()}, preset small, batch {most:,}, slates of 20, ids on the host",
        )
    }


if __name__ == "__main__":
    figures = measure()
    for key, one in figures.items():
        print(key, one.as_json())
    if not figures:
        print("this machine has no CUDA device: nothing measured")
