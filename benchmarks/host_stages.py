"""P6.host: where does the host's time go on the way from a recorded message to a learned example?

Recorded Arrow messages (slates of 20, 20 fields) are decoded, encoded, joined to micro-batches and learned, as the
trainer does, in one thread; every example has been learned once before. The table is CPU nanoseconds per example and
stage, each stage without those it calls. What a device would do (`forward`, `backward`, ...) is marked: the sum of all
else is the host's own, and one over it the most examples per second that one thread can feed to any device.

    python -m benchmarks.host_stages [--rows 512 4096 16384] [--items-per-message 512]
"""

import argparse
import contextlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import model.embedding
import model.learner
from benchmarks.harness import Figure
from benchmarks.hinet_step import SCHEMA
from benchmarks.recorded_examples import SLATE, messages
from model.assembly import InputLayout
from model.config import ModelConfig
from model.embedding import EmbeddingTable
from model.examples import ExampleDecoder, TrainRows
from model.features import EncodedBatch, EncodingConfig, FeatureEncoder
from model.id_table import IdTable
from model.labels import LabelBatch
from model.learner import Learner

COMMAND = "python -m benchmarks.host_stages"
ROWS, NUM_BATCHES, REPEATS = (512, 4_096, 16_384), 4, 3
WHOLE = "all else"


class Stage(NamedTuple):
    """A function whose time is taken."""

    name: str
    owner: Any
    attribute: str
    on_device: bool = False
    """Whether a CUDA device would do most of it."""


STAGES = (
    Stage("decode (Arrow, checks)", ExampleDecoder, "decode"),
    Stage("encode (values to keys)", FeatureEncoder, "encode_columns"),
    Stage("join to a micro-batch", TrainRows, "concat"),
    Stage("sort by scenario", EncodedBatch, "by_scenario"),
    Stage("id table", IdTable, "lookup"),
    Stage("look-up: distinct rows, admission, counts", EmbeddingTable, "lookup"),
    Stage("apply: admission, ages, changes, eviction", EmbeddingTable, "apply"),
    Stage("inputs: gather and pool", InputLayout, "network_inputs", on_device=True),
    Stage("forward", model.learner, "training_forward", on_device=True),
    Stage("loss", model.learner, "step_loss", on_device=True),
    Stage("backward", torch.Tensor, "backward", on_device=True),
    Stage("Adam", torch.optim.Adam, "step", on_device=True),
    Stage("row-wise Adagrad", model.embedding, "rowwise_adagrad", on_device=True),
)


class StageTimes:
    """CPU time of each stage, without what it calls of the others."""

    def __init__(self) -> None:
        self.cpu_ns: dict[str, int] = defaultdict(int)
        self._running: list[str] = []
        self._since_ns = 0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts what is inside for a stage."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now_ns = time.process_time_ns()
        if self._running:
            self.cpu_ns[self._running[-1]] += now_ns - self._since_ns
        self._since_ns = now_ns

    @contextlib.contextmanager
    def of(self, stages: Sequence[Stage]) -> Iterator[None]:
        """Takes the time of these functions while it is open."""
        with contextlib.ExitStack() as stack:
            for stage in stages:
                found = stage.owner.__dict__[stage.attribute]
                setattr(stage.owner, stage.attribute, self._timed(stage.name, found))
                stack.callback(setattr, stage.owner, stage.attribute, found)
            yield

    def _timed(self, name: str, found: Any) -> Any:
        function = found.__func__ if isinstance(found, staticmethod) else found

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return staticmethod(timed) if isinstance(found, staticmethod) else timed


def grouped(values: Sequence[bytes], rows_of: Callable[[bytes], int], num_rows: int) -> list[list[bytes]]:
    """Returns the messages in groups of at least `num_rows` rows; what is left over is dropped."""
    groups: list[list[bytes]] = [[]]
    filled = 0
    for value in values:
        groups[-1].append(value)
        filled += rows_of(value)
        if filled >= num_rows:
            groups.append([])
            filled = 0
    return groups[:-1]


def labels_of(rows: TrainRows) -> LabelBatch:
    """Returns the labels as the trainer gives them to the learner."""
    return LabelBatch(
        label_BT=rows.label_BT,
        mask_BT=rows.mask_BT,
        weight_BT=rows.weight_BT,
        first_BT=rows.first_BT,
        sampling_B=rows.sampling_B,
        delayed=rows.delayed,
    )


def stage_times(values: Sequence[bytes], num_rows: int) -> dict[str, float]:
    """Returns CPU nanoseconds per example and stage, for micro-batches of about `num_rows` rows."""
    learner = Learner(SCHEMA, ModelConfig(encoding=EncodingConfig(history_length=0)), seed=0)
    decoder = ExampleDecoder(SCHEMA, learner.encoder)
    groups = grouped(values, lambda value: decoder.decode(value).rows.num_rows, num_rows)[:NUM_BATCHES]

    def learn_all() -> int:
        learned = 0
        for group in groups:
            rows = TrainRows.concat([decoder.decode(value).rows for value in group])
            report = learner.learn(rows.batch, labels_of(rows))
            assert report.made and math.isfinite(report.loss)
            learned += rows.num_rows
        return learned

    for _ in range(3):  # an id is admitted with its third example
        learn_all()
    times, learned = StageTimes(), 0
    with times.of(STAGES):
        for _ in range(REPEATS):
            with times.stage(WHOLE):
                learned += learn_all()
    return {name: cpu_ns / learned for name, cpu_ns in times.cpu_ns.items()}


def table(sizes: Sequence[int], items_per_message: int) -> list[dict[str, Any]]:
    """Returns a row per stage: CPU nanoseconds per example at each size of the micro-batch."""
    num_slates = NUM_BATCHES * ((max(sizes) + items_per_message) // SLATE)
    values = messages(num_slates, items_per_message=items_per_message)
    by_size = {num_rows: stage_times(values, num_rows) for num_rows in sizes}
    devices = {stage.name: stage.on_device for stage in STAGES} | {WHOLE: False}
    rows: list[dict[str, Any]] = [
        {"stage": name, "on_device": on_device}
        | {str(size): round(times.get(name, 0.0)) for size, times in by_size.items()}
        for name, on_device in devices.items()
    ]
    for total, on_device in (("the host's own", False), ("what a device does", True)):
        sums = {str(size): sum(row[str(size)] for row in rows if row["on_device"] == on_device) for size in sizes}
        rows.append({"stage": total, "on_device": None} | sums)
    return rows


def measure(sizes: Sequence[int] = ROWS[:2], items_per_message: int = 512) -> dict[str, Figure]:
    """Returns the most examples per second that one thread of the host can feed, and the stages behind it."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = table(sizes, items_per_message)
    finally:
        torch.set_num_threads(num_threads)
    own = next(row for row in rows if row["stage"] == "the host's own")
    rates = {size: 1e9 / own[str(size)] for size in sizes}
    return {
        "P6.host": Figure(
            value=max(rates.values()),
            unit="examples/CPU-s",
            ci=(min(rates.values()), max(rates.values())),
            command=COMMAND,
            peers={f"micro-batches of {size:,}": rate for size, rate in rates.items()},
            note=f"one thread, preset small, slates of 20, messages of {items_per_message} items, without what a device"
            " would do; table in CPU ns per example",
            table=rows,
        )
    }


def main() -> None:
    """Prints the table; `--json` also writes it."""
    parser = argparse.ArgumentParser(description="CPU time per stage from a recorded message to a learned example.")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="sizes of a micro-batch")
    parser.add_argument("--items-per-message", type=int, default=512, help="the joiner's join.batch_items")
    parser.add_argument("--json", type=Path, help="file to write")
    given = parser.parse_args()
    figure = measure(given.rows, given.items_per_message)["P6.host"]
    for row in figure.table:
        cells = "".join(f"{row[str(size)]:>9,}" for size in given.rows)
        print(f"{row['stage']:44}{'device' if row['on_device'] else '':8}{cells}")
    print(f"most examples per second of one host thread: {figure.value:,.0f}")
    if given.json:
        given.json.write_text(json.dumps(figure.as_json(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
