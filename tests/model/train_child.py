"""A trainer in a process of its own, to be killed: `python -m tests.model.train_child LOG_FOLDER CHECKPOINT_FOLDER`."""

import sys
from pathlib import Path

import torch

from model.progressive import MetricsConfig
from model.source import MemoryExampleSource
from model.trainer import Trainer
from model.trainer_config import TrainerConfig
from tests.model.example_log import Clock, new_trainer

CONFIG = TrainerConfig(
    batch_rows=16,
    deterministic=True,
    checkpoint_interval_ms=40,
    keep_checkpoints=2,
    poll_messages=5,
    metrics=MetricsConfig(window_labels=200, window_buckets=4),
)


def write_log(folder: Path, log: dict[int, list[bytes]]) -> None:
    """One file per message: `<partition>-<offset>.arrow`."""
    folder.mkdir()
    for partition, messages in log.items():
        for offset, value in enumerate(messages):
            (folder / f"{partition}-{offset:06d}.arrow").write_bytes(value)


def read_log(folder: Path) -> dict[int, list[bytes]]:
    """What `write_log` wrote."""
    log: dict[int, list[bytes]] = {}
    for path in sorted(folder.glob("*.arrow")):
        log.setdefault(int(path.stem.partition("-")[0]), []).append(path.read_bytes())
    return log


def trainer_on(log_folder: Path, checkpoint_dir: Path | None) -> Trainer:
    """A trainer over the whole log that writes a checkpoint every few batches."""
    source = MemoryExampleSource(read_log(log_folder))
    return new_trainer(source=source, checkpoint_dir=checkpoint_dir, config=CONFIG, clock=Clock(step_ms=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer_on(Path(sys.argv[1]), Path(sys.argv[2])).run(lambda: False)
