"""P6: how many examples per second does a training step learn on a CUDA device?

Preset `small`, the data of `hinet_step` in larger batches, encoded beforehand; the step is all of `Learner.learn`, its
look-up and admission on the host. Peers: other batch sizes, bfloat16 products, and the same step on one CPU thread.
Without a CUDA device nothing is measured.

    python -m benchmarks.gpu_step
"""

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.harness import Figure
from benchmarks.hinet_step import learner_step
from model.config import ModelConfig
from model.features import EncodingConfig
from model.precision import Precision

COMMAND = "python -m benchmarks.gpu_step"
BATCH_ROWS = (512, 4_096, 32_768)
NUM_BATCHES, REPEATS = 4, 5


def step(num_rows: int, precision: Precision, device: torch.device) -> Callable[[], int]:
    """Returns a run of whole steps with slates of 20."""
    config = ModelConfig(precision=precision, encoding=EncodingConfig(history_length=0))
    return learner_step(config, num_rows // 20, num_rows=num_rows, num_batches=NUM_BATCHES, device=device)


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
