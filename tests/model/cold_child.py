"""A trainer whose rows leave memory, to be killed: `python -m tests.model.cold_child LOG_FOLDER CHECKPOINT_FOLDER`."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from freshrank.cold_store import ColdStore
from model.field_ids import FieldIdsConfig
from model.source import MemoryExampleSource
from model.trainer import Trainer
from tests.model.example_log import MODEL, Clock, new_trainer
from tests.model.train_child import CONFIG, read_log

LIMITED = replace(
    MODEL.embedding,
    max_rows=60,
    fields={"user_id": FieldIdsConfig(ttl_ms=6_000), "item_id": FieldIdsConfig(admission=2, max_rows=25)},
)
WHOLE = replace(MODEL, embedding=LIMITED)
TIERED = replace(MODEL, embedding=replace(LIMITED, hot_rows=12))


def trainer_on(log_folder: Path, checkpoint_dir: Path, store: ColdStore) -> Trainer:
    """A trainer over the whole log that writes a checkpoint every few batches."""
    return new_trainer(
        source=MemoryExampleSource(read_log(log_folder)),
        checkpoint_dir=checkpoint_dir,
        config=CONFIG,
        clock=Clock(step_ms=1),
        model=TIERED,
        cold_stores=store,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[2])
    trainer_on(Path(sys.argv[1]), folder, ColdStore(folder, 0, 1, 16)).run(lambda: False)
