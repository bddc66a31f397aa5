"""A rank to be killed: `torchrun ... -m tests.drills.rank_child FOLDER`, where FOLDER/log is a log of examples.

First of all the job trains the log undisturbed; then it trains it with checkpoints, and goes on where the last one
says each time that torchrun starts it again. Slowly, for as long as FOLDER/slow is there.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.admission import AdmissionConfig
from model.embedding_config import EmbeddingConfig
from model.field_ids import FieldIdsConfig
from model.ranks import Ranks
from model.source import MemoryExampleSource
from model.trainer import Trainer
from tests.model import example_log
from tests.model.example_log import Clock, new_trainer
from tests.model.train_child import CONFIG, read_log

MODEL = replace(
    example_log.MODEL,
    embedding=EmbeddingConfig(
        width=4,
        admission=AdmissionConfig(counter_bits=14),
        max_rows=40,
        fields={"item_id": FieldIdsConfig(admission=3), "user_id": FieldIdsConfig(ttl_ms=20_000)},
    ),
)
"""A model whose rows are counted, admitted, evicted and expire."""
CHECKPOINT_MS = 250
_PACE_S = 0.05


def main(folder: Path) -> None:
    """Trains the log of the folder as one of the ranks."""
    torch.set_num_threads(1)
    restart = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    ranks = Ranks.join(timeout_s=60.0)
    log = {p: messages for p, messages in read_log(folder / "log").items() if p % ranks.size == ranks.rank}
    if restart == 0:
        clock = Clock(step_ms=1)
        trainer = new_trainer(source=MemoryExampleSource(log), config=CONFIG, model=MODEL, clock=clock, ranks=ranks)
        trainer.run(lambda: False)
        keep(trainer, folder / f"undisturbed-{ranks.rank}")
    tell(folder / f"started-{ranks.rank}", {"restart": restart, "pid": os.getpid()})
    trainer = new_trainer(
        source=MemoryExampleSource(log),
        checkpoint_dir=folder / "checkpoints",
        model=MODEL,
        config=replace(CONFIG, checkpoint_interval_ms=CHECKPOINT_MS, poll_messages=10_000),
        clock=lambda: time.time_ns() // 1_000_000,
        ranks=ranks,
    )
    resumed_at: int | None = None

    def look() -> bool:
        """Tells when the first step after a start is made; the loop asks once per round whether to stop."""
        nonlocal resumed_at
        if (folder / "slow").exists():
            time.sleep(_PACE_S)
        steps = trainer.learner.num_steps
        if resumed_at is None:
            resumed_at = steps
        elif resumed_at >= 0 and steps > resumed_at and ranks.is_lead:
            tell(folder / f"training-{restart}", {"at": time.time(), "from_step": resumed_at})
            resumed_at = -1
        return False

    trainer.run(look)
    keep(trainer, folder / f"killed-{ranks.rank}")
    ranks.close()


def tell(path: Path, what: Mapping[str, object]) -> None:
    """Writes a file that is either whole or not there."""
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(what))
    aside.rename(path)


def keep(trainer: Trainer, path: Path) -> None:
    """Writes all that must not depend on kills: the model's state, what was counted, and the lead's metrics."""
    tensors = trainer.learner.trained.state()
    if trainer.ranks.is_lead:
        tensors |= {f"metrics.{name}": torch.from_numpy(array) for name, array in trainer.metrics.state().items()}
    save_file(tensors, path.with_suffix(".safetensors"))
    counts = {name: getattr(trainer.stats, name) for name in ("messages", "examples", "steps", "skipped")}
    positions = {partition: position.offset for partition, position in sorted(trainer.positions.items())}
    tell(path.with_suffix(".json"), counts | {"positions": positions})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
