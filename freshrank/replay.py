"""`freshrank replay`: a recorded log through the whole circle in one process, as fast as it goes."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import click
import pyarrow as pa

from freshrank.command import run_options
from freshrank.config import RunConfig
from freshrank.in_process import InProcessLoop
from model.config import ModelConfig
from model.progressive import Report
from model.trainer_config import TrainerConfig
from stream.join import JoinConfig
from stream.recorded import RecordedLog, ReplayOrder
from stream.schema import SchemaConfig

NUM_CURVE_POINTS = 100


class ReplayProgress(NamedTuple):
    """How far a replay is."""

    events: int
    """Events read, those that could not be decoded included."""
    total: int
    window: Report
    """Progressive figures over the sliding window."""


@dataclass(slots=True, kw_only=True)
class ReplayOutputs:
    """Which files a replay writes; those left out are not written."""

    report: Path | None = None
    """HTML page with plots and tables."""
    json: Path | None = None
    """What `replay_folder` returns."""
    examples: Path | None = None
    """Arrow IPC file with every example batch."""
    dead_letter: Path | None = None
    """Lines that could not be decoded; `dead-letter.jsonl` in the folder if left out."""


@dataclass(slots=True)
class _Curve:
    """The progressive figures over the sliding window, at even steps of the log."""

    points: list[dict[str, Any]] = field(default_factory=list)

    def add(self, loop: InProcessLoop, window: Report) -> None:
        examples = loop.trainer.stats.examples
        if examples and (not self.points or self.points[-1]["examples"] < examples):
            self.points.append({"examples": examples, "tasks": window})


def replay_folder(
    folder: Path,
    *,
    schema: SchemaConfig,
    join: JoinConfig,
    model: ModelConfig,
    trainer: TrainerConfig,
    config_hash: str = "",
    order: ReplayOrder = "ts",
    outputs: ReplayOutputs | None = None,
    on_progress: Callable[[ReplayProgress], None] = lambda _: None,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Replays a recorded log and returns its figures.

    Every slate is scored, when it is shown, by the snapshot that is live then (unless the log brings scores of its
    own), and those are the scores that `tasks` judges: progressive validation as served. `pre_step` has the same of the
    trainer's own scores just before learning. Two replays return the same but for `timing`.

    Raises:
        ValueError: the folder is not a recorded log, or holds no event that can be decoded.
    """
    outputs = outputs or ReplayOutputs()
    started_s = monotonic_s()
    curve = _Curve()
    with ExitStack() as stack:
        log = stack.enter_context(RecordedLog(folder, schema, order=order, dead_letter=outputs.dead_letter))
        on_message = stack.enter_context(_examples_file(outputs.examples))
        total = len(log)
        every = max(1, total // NUM_CURVE_POINTS)
        loop: InProcessLoop | None = None
        for event, clock_ms in log:
            if loop is None:
                loop = InProcessLoop(
                    schema,
                    join,
                    model,
                    trainer,
                    start_ms=clock_ms,
                    config_hash=config_hash,
                    on_message=on_message,
                )
            loop.observe(event, clock_ms)
            done = log.counters.total
            if done % every == 0:
                window = loop.trainer.metrics.report("window")
                curve.add(loop, window)
                on_progress(ReplayProgress(done, total, window))
        if loop is None:
            raise ValueError(f"{folder}: none of its {total} lines is an event; see {log.dead_letter}")
        loop.finish()
        window = loop.trainer.metrics.report("window")
        curve.add(loop, window)
        on_progress(ReplayProgress(total, total, window))
        loop.core.counters.malformed += log.counters.malformed
        unknown_fields = dict(sorted(log.unknown_fields.items()))
    result = _figures(loop) | {
        "folder": str(folder),
        "order": order,
        "unknown_fields": unknown_fields,
        "config_hash": config_hash,
        "schema_hash": schema.schema_hash(),
        "curve": curve.points,
    }
    wall_s = monotonic_s() - started_s
    result["timing"] = {
        "wall_s": round(wall_s, 3),
        "events_per_s": round(total / wall_s, 1),
        "examples_per_s": round(result["examples"] / wall_s, 1),
    }
    if outputs.json is not None:
        _write_aside(outputs.json, json.dumps(result, indent=1))
    if outputs.report is not None:
        from freshrank.report import replay_page

        _write_aside(outputs.report, replay_page(result))
    return result


def _figures(loop: InProcessLoop) -> dict[str, Any]:
    trainer, publisher = loop.trainer, loop.trainer.publish_stats
    return {
        "examples": trainer.stats.examples,
        "join": loop.core.counters.as_dict(),
        "tasks": trainer.metrics.report("lifetime"),
        "pre_step": trainer.metrics.report("lifetime", "pre_step"),
        "skew": {"n": trainer.metrics.num_skew, "mean": trainer.metrics.mean_skew},
        "steps": trainer.stats.steps,
        "skipped_steps": trainer.stats.skipped,
        "scenarios_added": dict(trainer.learner.trained.registry.parents),
        "unknown_rows": trainer.stats.unknown_rows,
        "snapshots": publisher.snapshots.total(),
        "versions": {"last": publisher.version, **publisher.snapshots, **publisher.failures},
    }


@contextmanager
def _examples_file(path: Path | None) -> Iterator[Callable[[bytes], None]]:
    """Gives a function that appends the batch of a message to an Arrow IPC file; without a path it does nothing."""
    if path is None:
        yield lambda _: None
        return
    aside = path.with_name(path.name + ".part")
    writers: list[pa.RecordBatchFileWriter] = []

    def append(message: bytes) -> None:
        with pa.ipc.open_stream(message) as batches:
            if not writers:
                writers.append(pa.ipc.new_file(sink, batches.schema))
            for batch in batches:
                writers[0].write_batch(batch)

    try:
        with aside.open("wb") as sink:
            yield append
            if writers:
                writers[0].close()
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    aside.replace(path)


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@run_options()
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page with plots.")
@click.option("--json", "json_out", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures as JSON.")
@click.option(
    "--examples-out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every example batch into one Arrow IPC file.",
)
@click.option(
    "--dead-letter",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where lines go that cannot be decoded; FOLDER/dead-letter.jsonl by default.",
)
@click.option(
    "--order",
    type=click.Choice(get_args(ReplayOrder)),
    default="ts",
    show_default=True,
    help="By event time, or as it arrived (by arrival_ts where a line has it).",
)
def replay(
    run: RunConfig,
    folder: Path,
    report: Path | None,
    json_out: Path | None,
    examples_out: Path | None,
    dead_letter: Path | None,
    order: ReplayOrder,
) -> None:
    """Replays the recorded log in FOLDER: the same joiner and trainer as live, in one process, driven by event time.

    Shows progressive AUC, NE and calibration: every slate is scored before its labels are learned.

    \b
    Example:
      freshrank replay recorded/ranklens --config configs/ranklens.yaml --report report.html --json report.json
    """  # noqa: D301 - click wants the character
    import torch

    from freshrank.replay_view import ProgressView, figures_table

    outputs = ReplayOutputs(report=report, json=json_out, examples=examples_out, dead_letter=dead_letter)
    torch.set_num_threads(1)  # the last bits depend on their number, and small steps gain little from more
    try:
        with ProgressView(list(run.schema.tasks)) as view:
            result = replay_folder(
                folder,
                schema=run.schema,
                join=run.join,
                model=run.model,
                trainer=run.trainer,
                config_hash=run.config_hash(),
                order=order,
                outputs=outputs,
                on_progress=view.update,
            )
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    figures_table(result, sys.stdout)
