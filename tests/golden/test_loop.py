"""A seeded world through the whole circle leaves the trace it always left.

A refactor must not move it. A change of numerics moves it on purpose: look at the difference, write the reason into
`docs/decisions.md`, and write the file anew with `python -m tests.golden.test_loop`.
"""

import tempfile
from pathlib import Path

import torch

from freshrank.in_process import InProcessLoop
from model.config import ModelConfig
from model.hinet_config import HiNetConfig
from model.trainer_config import TrainerConfig
from sim.config import SimConfig
from sim.record import write_recorded_log
from sim.world import FEATURES
from stream.join import JoinConfig
from stream.recorded import RecordedLog
from stream.schema import SchemaConfig, TaskConfig

TRACE = Path(__file__).parent / "loop.txt"
REQUESTS, EVERY_STEPS = 300, 5
TOLERANCE = 2e-3
"""Kernels of other processors sum in another order."""
SCHEMA = SchemaConfig(
    scenarios=("home", "search", "deals"),
    tasks={
        "click": TaskConfig(action="click", window_ms=8_000, policy="eager"),
        "order": TaskConfig(action="order", window_ms=20_000, policy="wait"),
    },
    features=FEATURES,
)
SMALL = HiNetConfig(expert_hidden=16, expert_width=8, task_hidden=16, task_width=8, tower=(8,))


def trace(folder: Path) -> list[str]:
    """Returns a line per `EVERY_STEPS` steps: step, examples, labels, last version, loss, pre-step NE of each task."""
    torch.set_num_threads(1)
    write_recorded_log(folder, REQUESTS, 7, SimConfig(num_users=40, num_items=100, requests_per_s=4.0))
    lines = ["# step examples labels version loss ne.click ne.order"]
    with RecordedLog(folder, SCHEMA) as log:
        loop: InProcessLoop | None = None
        for event, clock_ms in log:
            loop = loop or InProcessLoop(
                SCHEMA,
                JoinConfig(commit_interval_ms=200),
                ModelConfig(preset="custom", hinet=SMALL),
                TrainerConfig(batch_rows=64, publish_interval_ms=2_000),
                start_ms=clock_ms,
            )
            steps = loop.trainer.stats.steps
            loop.observe(event, clock_ms)
            if loop.trainer.stats.steps // EVERY_STEPS > steps // EVERY_STEPS:
                lines.append(_line(loop))
        assert loop is not None
        loop.finish()
    return [*lines, _line(loop)]


def _line(loop: InProcessLoop) -> str:
    trainer = loop.trainer
    report = trainer.metrics.report("lifetime", "pre_step")
    entropies = [report[task]["all"]["ne"] if task in report else None for task in SCHEMA.tasks]
    counts = [trainer.stats.steps, trainer.stats.examples, loop.core.counters.labels, trainer.publish_stats.version]
    figures = [trainer.gauges.loss, *(float("nan") if ne is None else ne for ne in entropies)]
    return " ".join([*map(str, counts), *(f"{figure:.4f}" for figure in figures)])


def test_the_trace_is_the_one_it_always_was(tmp_path: Path) -> None:
    now, then = trace(tmp_path), TRACE.read_text().splitlines()
    assert len(now) == len(then)
    for line, golden in zip(now[1:], then[1:], strict=True):
        assert line.split()[:4] == golden.split()[:4]
        for figure, known in zip(line.split()[4:], golden.split()[4:], strict=True):
            assert abs(float(figure) - float(known)) <= TOLERANCE or figure == known, f"{line}   was   {golden}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        TRACE.write_text("\n".join(trace(Path(name))) + "\n")
