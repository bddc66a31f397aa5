"""What does planning need beside the goals' figures: bytes on the wire, the fixed part of a step, the lead's work?

All of it is bytes or CPU time (user + system of this process, one thread), so a busy machine costs it little.

- `plan.wire`: bytes of the messages of one slate of 20 with 20 fields, as they lie in Kafka before compression.
- `plan.step`: a training step as a part that does not depend on its rows (the dense optimiser among it) and one per
  row: the slope between 256 and 2,048 rows in slates of 20.
- `plan.trainer`: where a trainer's CPU goes, per row: reading (decode, encode), the step, and the rest, which with
  several ranks only the lead does (metrics, gate, what is noted of each row).
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Figure, cpu_rate
from benchmarks.hinet_step import SCHEMA, learner_step
from benchmarks.recorded_examples import SLATE, messages
from model.config import ModelConfig, Preset
from model.examples import ExampleDecoder
from model.features import EncodingConfig
from model.learner import Learner
from model.store import MemorySnapshotStore
from model.trainer import Trainer
from model.trainer_config import TrainerConfig, TrainerParts
from stream.codec import encode, encode_sequence
from stream.schema import Feedback, Impression, Items, Sequence, Served

COMMAND = "python -m benchmarks.plan_costs"
FEW_ROWS, MANY_ROWS = 256, 2_048
NO_HISTORY = EncodingConfig(history_length=0)


def slate(rng: np.random.Generator) -> Impression:
    """Returns a slate as a ranker logs it, with scores, utility, weights and the user's last ten actions."""
    ids = [f"item-{n}" for n in rng.integers(1_000_000, 9_999_999, SLATE)]
    items = Items(ids, features={name: _values(rng, SLATE) for name in SCHEMA.features.item})
    items.scores = {task: rng.random(SLATE).round(6).tolist() for task in SCHEMA.tasks}
    items.utility = rng.random(SLATE).round(6).tolist()
    impression = Impression("r-1234567890ab", "user-12345678", "home", 1_790_000_000_123, items)
    impression.user = {name: _values(rng, 1)[0] for name in SCHEMA.features.user}
    impression.context = {name: _values(rng, 1)[0] for name in SCHEMA.features.context}
    impression.served = Served(snapshot=123_456, weights={"click": 1.0, "order": 5.0}, model_age_ms=412)
    impression.sequence = sequence(rng, 10)
    return impression


def sequence(rng: np.random.Generator, length: int) -> Sequence:
    """Returns a user's last actions."""
    stamps = (1_790_000_000_000 - np.cumsum(rng.integers(100, 100_000, length))).tolist()
    return Sequence([f"item-{n}" for n in rng.integers(1_000_000, 9_999_999, length)], ["click"] * length, stamps)


def _values(rng: np.random.Generator, count: int) -> list[str]:
    return [f"value-{n}" for n in rng.integers(1_000, size=count)]


def wire() -> Figure:
    """Returns the bytes per shown item, and those of each message."""
    rng = np.random.default_rng(0)
    action = Feedback("r-1234567890ab", "user-12345678", "item-1234567", "click", 1_790_000_003_456, event_id="e-91af")
    num_slates = 400
    examples = messages(num_slates)
    bytes_of = {
        "impression": statistics.mean(len(encode(slate(rng))) for _ in range(100)),
        "feedback": float(len(encode(action))),
        "examples of a slate": sum(map(len, examples)) / num_slates,
        "sequence of 100": float(len(encode_sequence(sequence(rng, 100)))),
    }
    per_item = bytes_of["impression"] / SLATE
    return Figure(
        value=per_item,
        unit="bytes/item",
        ci=(per_item, per_item),
        command=COMMAND,
        peers=bytes_of,
        note=f"JSON and Arrow without compression, slates of {SLATE}, 20 fields; value: impression per item",
    )


def step(preset: Preset) -> tuple[float, float]:
    """Returns what a step costs beside its rows, in CPU ms, and what a row costs, in CPU us."""
    ms = []
    for num_rows in (FEW_ROWS, MANY_ROWS):
        config = ModelConfig(preset=preset, encoding=NO_HISTORY)
        work = learner_step(config, num_rows // SLATE, num_rows=num_rows, num_batches=4)
        ms.append(1e3 * num_rows / cpu_rate(work, repeats=3).per_cpu_s)
    per_row_ms = (ms[1] - ms[0]) / (MANY_ROWS - FEW_ROWS)
    return ms[0] - FEW_ROWS * per_row_ms, 1e3 * per_row_ms


def trainer_us(num_slates: int = 3_000) -> dict[str, float]:
    """Returns CPU us per row of a trainer in this process that publishes into memory, by what it does."""
    start_ms = 1_790_000_000_000
    values, spent_s = messages(num_slates), {"reading": 0.0, "step": 0.0}
    warm = len(values) // 5
    with _timed(ExampleDecoder, "decode", spent_s, "reading"), _timed(Learner, "learn", spent_s, "step"):
        trainer = Trainer(
            SCHEMA,
            TrainerConfig(publish_interval_ms=3_600_000),
            ModelConfig(encoding=NO_HISTORY),
            now_ms=lambda: start_ms,
            parts=TrainerParts(store=MemorySnapshotStore(lambda: start_ms)),
        )
        for offset, value in enumerate(values[:warm]):
            trainer.train_message(value, 0, offset)
        spent_s.update(reading=0.0, step=0.0)
        started_s, started_rows = time.process_time(), trainer.stats.examples
        for offset, value in enumerate(values[warm:], warm):
            trainer.train_message(value, 0, offset)
        whole_s, rows = time.process_time() - started_s, trainer.stats.examples - started_rows
    if min(spent_s.values()) <= 0:
        raise RuntimeError(f"what is measured is not called any more: {spent_s}")
    us = {name: 1e6 * seconds / rows for name, seconds in spent_s.items()}
    return us | {"the rest": 1e6 * whole_s / rows - sum(us.values())}


@contextmanager
def _timed(owner: type, method: str, spent_s: dict[str, float], name: str) -> Iterator[None]:
    """Adds up the CPU time that a method takes meanwhile."""
    whole: Callable[..., Any] = getattr(owner, method)

    def timed(*args: Any, **given: Any) -> Any:
        started_s = time.process_time()
        try:
            return whole(*args, **given)
        finally:
            spent_s[name] += time.process_time() - started_s

    setattr(owner, method, timed)
    try:
        yield
    finally:
        setattr(owner, method, whole)


def measure() -> dict[str, Figure]:
    """Returns all of it."""
    torch.set_num_threads(1)
    small, published = step("small"), step("published")
    runs = [trainer_us() for _ in range(3)]
    us = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    rests = [run["the rest"] for run in runs]
    return {
        "plan.wire": wire(),
        "plan.step": Figure(
            value=small[0], unit="CPU ms", ci=(small[0], small[0]), command=COMMAND,
            peers={"per row us": small[1], "published": published[0], "published per row us": published[1]},
            note=f"of a step beside its rows, preset small, {FEW_ROWS} against {MANY_ROWS} rows in slates of {SLATE}",
        ),
        "plan.trainer": Figure(
            value=us["the rest"], unit="CPU us/row", ci=(min(rests), max(rests)), command=COMMAND, peers=us,
            note="what the lead of several ranks does for each row; reading and step beside it; preset small",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    for key, figure in measure().items():
        print(key, figure.as_json())
