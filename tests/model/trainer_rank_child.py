"""One rank of a training job on logs in memory: `python -m tests.model.trainer_rank_child FOLDER`.

It goes through all of `JOBS`, one after the other, and writes what came of each into the folder.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file

from model.config import ModelConfig
from model.exceptions import ModelError
from model.gathered_rows import gathered
from model.losses import LossConfig
from model.progressive import Span
from model.ranks import Ranks
from model.source import ExampleMessage, MemoryExampleSource
from model.store import MemorySnapshotStore
from model.trainer import Trainer
from model.trainer_config import TrainerConfig
from stream.schema import SchemaConfig
from tests.model import delayed_log
from tests.model.example_log import METRICS, MODEL, SCHEMA, encode, new_trainer, partition_log, slate
from tests.model.growing_log import GROWING, GROWING_MODEL, deals_from, growing_log
from tests.model.rank_world import join

Log = Mapping[int, list[bytes]]
CONFIG = TrainerConfig(batch_rows=24, deterministic=True, poll_messages=3, metrics=METRICS)
LIVE = replace(CONFIG, deterministic=False, max_wait_ms=1)


COUNTED = ("messages", "examples", "steps", "dead_letters", "held", "unknown_rows", "scenarios_added", "labels_weighed")


def never() -> bool:
    return False


def mixed_log() -> dict[int, list[bytes]]:
    """Five partitions: one with dead letters among its messages, one of nothing else, an empty one, a long message."""
    rng = np.random.default_rng(7)
    first = partition_log(seed=1, num_messages=12)
    long = encode([slate(rng, 40 + n, num_items=6) for n in range(9)])  # 54 rows
    return {
        0: [*first[:4], b"bad", *first[4:]],
        1: partition_log(seed=2, num_messages=9),
        2: [b"bad", b""],
        3: [],
        4: [*partition_log(seed=3, num_messages=3), long],
    }


def one_sided_log() -> dict[int, list[bytes]]:
    """All traffic in one partition of four."""
    return {0: partition_log(seed=4, num_messages=15), 1: [], 2: [], 3: []}


def few_partitions_log() -> dict[int, list[bytes]]:
    """A single partition: other ranks read nothing."""
    return {0: partition_log(seed=5, num_messages=10)}


def scenarios_log() -> dict[int, list[bytes]]:
    """Two partitions with a scenario that is not listed."""
    return {partition: growing_log(partition, 14, deals_from(partition)) for partition in range(2)}


def corrected_log() -> dict[int, list[bytes]]:
    """Three partitions of labels that are corrected later, of different lengths."""
    return {n: delayed_log.messages(delayed_log.slates(n, 20 + 10 * n), CORRECTED) for n in range(3)}


CORRECTED = delayed_log.schema_of(order="es_dfm")
CORRECTED_MODEL = replace(delayed_log.MODEL, loss=LossConfig(aux_min_positives=4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A log and how it is trained."""

    log: Callable[[], dict[int, list[bytes]]]
    config: TrainerConfig = CONFIG
    schema: SchemaConfig = SCHEMA
    model: ModelConfig = MODEL
    is_held: bool = False
    """Whether the gate of the lead lets nothing be learned."""


JOBS = {
    "mixed": Job(log=mixed_log),
    "one-sided": Job(log=one_sided_log),
    "few-partitions": Job(log=few_partitions_log),
    "scenarios": Job(log=scenarios_log, schema=GROWING, model=GROWING_MODEL),
    "corrected": Job(log=corrected_log, schema=CORRECTED, model=CORRECTED_MODEL),
    "held": Job(log=few_partitions_log, is_held=True),
    "arrival": Job(log=mixed_log, config=LIVE),
}


def share(log: Log, ranks: Ranks) -> dict[int, list[bytes]]:
    """The partitions that a rank reads."""
    return {partition: messages for partition, messages in log.items() if partition % ranks.size == ranks.rank}


def trainer_of(job: Job, ranks: Ranks, source: MemoryExampleSource, **changes: Any) -> Trainer:
    """A trainer on its share of the job; the lead publishes into a store in memory."""
    store = MemorySnapshotStore() if ranks.is_lead else None
    return new_trainer(
        source=source, store=store, config=job.config, schema=job.schema, model=job.model, ranks=ranks, **changes
    )


def result_of(trainer: Trainer, ranks: Ranks) -> dict[str, Any]:
    """What all ranks agree on: how far they are and what they count."""
    return {
        "positions": {str(p): [at.offset, at.row] for p, at in sorted(trainer.positions.items())},
        "stats": {name: getattr(trainer.stats, name) for name in COUNTED},
        "watermark_ms": trainer.gauges.watermark_ms,
    }


def run_job(job: Job, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Trains to the end of the log and publishes; the lead writes the model, and returns more than the others."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer = trainer_of(job, ranks, MemoryExampleSource(share(job.log(), ranks)))
    if ranks.is_lead:
        trainer.gate_means.ask()
        if job.is_held:
            trainer.gate.hold()
    trainer.run(never)
    manifest = trainer.publish()
    model = gathered(ranks, trainer.learner.trained.serving_full())
    result = result_of(trainer, ranks)
    if ranks.is_lead:
        assert manifest is not None
        save_file(model, folder / "model.safetensors")
        result["report"] = {span: trainer.metrics.report(span) for span in get_args(Span)}
        result["scenarios"] = manifest.scenarios
        result["has_gates"] = bool(trainer.gate_means.ask())
        result["served"] = trainer.metrics.report("lifetime", "served")
        result["manifest"] = [manifest.version, manifest.step, manifest.offsets, manifest.kind, manifest.metrics]
        result["snapshots"] = dict(trainer.publish_stats.snapshots)
    return result


class StoppedSource(MemoryExampleSource):
    """Breaks at its third poll."""

    num_polls = 0

    def poll(self, max_messages: int, timeout_ms: int) -> list[ExampleMessage]:
        """See `ExampleSource.poll`."""
        self.num_polls += 1
        if self.num_polls == 3:
            raise OSError("the disk is gone")
        return super().poll(max_messages, timeout_ms)


def stopped_and_resumed(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """The last rank is told to stop in its eighth round: all stop there, and later go on from one checkpoint."""
    job, num_rounds = JOBS["mixed"], 0

    def eight_rounds() -> bool:
        nonlocal num_rounds
        num_rounds += 1
        return num_rounds > 8 and ranks.rank == ranks.size - 1

    stopped = trainer_of(job, ranks, MemoryExampleSource(share(job.log(), ranks)), checkpoint_dir=folder)
    stopped.run(eight_rounds)
    resumed = trainer_of(job, ranks, MemoryExampleSource(share(job.log(), ranks)), checkpoint_dir=folder)
    resumed.run(never)
    return {"stopped": result_of(stopped, ranks), "resumed": result_of(resumed, ranks)}


def said(act: Callable[[], object]) -> str:
    """What an act fails with."""
    try:
        act()
    except (ModelError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(folder: Path) -> None:
    """Goes through everything, and ends with what ends a job."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
    ranks = join(str(folder))
    result: dict[str, Any] = {name: run_job(job, ranks, folder / name) for name, job in JOBS.items()}
    result["stop"] = stopped_and_resumed(ranks, folder / "checkpoints")
    log = mixed_log()
    other = replace(SCHEMA, scenarios=(*SCHEMA.scenarios, "deals")) if ranks.rank == 1 else SCHEMA
    odd = Job(log=mixed_log, schema=other)
    result["schema"] = said(lambda: trainer_of(odd, ranks, MemoryExampleSource(share(log, ranks))).run(never))
    result["partitions"] = said(lambda: trainer_of(JOBS["mixed"], ranks, MemoryExampleSource(log)).run(never))
    broken = StoppedSource if ranks.rank == ranks.size - 1 else MemoryExampleSource
    result["broken"] = said(lambda: trainer_of(JOBS["mixed"], ranks, broken(share(log, ranks))).run(never))
    (folder / f"result-{ranks.rank}.json").write_bytes(msgspec.json.encode(result))
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
