"""`freshrank gates`: how a trained model's gates use their experts."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from freshrank.command import need_folders, run_options
from freshrank.config import RunConfig
from stream.schema import SchemaConfig

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint
    from model.config import ModelConfig
    from model.features import EncodedBatch
    from model.gate_usage import GateReport
    from model.learner import Learner

CHUNK_ROWS = 4_096
"""Examples that go through the network at a time."""
SCENARIO_GATES = ("san", "scenarios")
"""Gates whose experts are the scenarios (HiNet's attention, HMoE's), in their order."""
_FILE = click.Path(dir_okay=False, path_type=Path)


def gates_of(
    schema: SchemaConfig, model: "ModelConfig", checkpoint: "Checkpoint", messages: Sequence[bytes], num_rows: int
) -> dict[str, Any]:
    """Returns what the gates of a checkpoint do on the last `num_rows` examples of some messages, as plain JSON.

    Raises:
        CheckpointMismatchError: the checkpoint is of another configuration.
        ValueError: there are no examples, or the network has no gates.
    """
    from model.gate_usage import gate_reports

    learner = restored_learner(schema, model, checkpoint)
    batch = _last_rows(learner, schema, messages, num_rows)
    chunks = [batch.take(slice(start, start + CHUNK_ROWS)) for start in range(0, batch.num_rows, CHUNK_ROWS)]
    reports = gate_reports([usage for chunk in chunks for usage in learner.gate_usage(chunk)])
    if not reports:
        raise ValueError(f"model.architecture: {model.architecture} has no gates between experts")
    names = learner.trained.registry.names
    return {
        "architecture": model.architecture,
        "step": checkpoint.manifest.step,
        "rows": batch.num_rows,
        "gates": [_plain(report, names, tuple(schema.tasks)) for report in reports],
    }


def restored_learner(schema: SchemaConfig, model: "ModelConfig", checkpoint: "Checkpoint") -> "Learner":
    """Returns the learner whose state a checkpoint holds.

    Raises:
        CheckpointMismatchError: the checkpoint is of another configuration.
    """
    from model.compatibility import differences, weights_depend_on
    from model.exceptions import CheckpointMismatchError
    from model.learner import Learner

    changed = list(differences(checkpoint.manifest.depends_on, weights_depend_on(schema, model)))
    if changed:
        raise CheckpointMismatchError(
            f"the checkpoint of step {checkpoint.manifest.step} is of another config: {'; '.join(changed)}"
        )
    learner = Learner(schema, model, seed=0)
    learner.trained.load_state(checkpoint.tensors, checkpoint.manifest.learner_meta)
    return learner


def _last_rows(learner: "Learner", schema: SchemaConfig, messages: Sequence[bytes], num_rows: int) -> "EncodedBatch":
    """Returns the last rows by the order of the log, each shown item once."""
    from model.examples import ExampleDecoder
    from model.features import EncodedBatch

    decoder = ExampleDecoder(schema, learner.encoder)
    decoded = sorted((decoder.decode(message) for message in messages), key=lambda one: one.order_ms)
    parts: list[EncodedBatch] = []
    missing = num_rows
    for one in reversed(decoded):
        first = np.flatnonzero(one.rows.first_BT.any(axis=1))[-missing:]
        if len(first):
            parts.append(one.rows.batch.take(first))
            missing -= len(first)
        if missing == 0:
            break
    if not parts:
        raise ValueError("examples: there are none to look at")
    return EncodedBatch.concat(parts[::-1])


def _plain(report: "GateReport", scenarios: Sequence[str], tasks: Sequence[str]) -> dict[str, Any]:
    def head_names(scenario: int, task: int | None) -> dict[str, Any]:
        return {"scenario": scenarios[scenario], "task": None if task is None else tasks[task]}

    def expert_name(name: str) -> str:
        return scenarios[int(name)] if report.gate in SCENARIO_GATES else name

    return {
        "gate": report.gate,
        "experts": [expert_name(name) for name in report.experts],
        "heads": [
            head_names(head.scenario, head.task)
            | {
                "rows": head.num_rows,
                "mean": {expert_name(name): mean for name, mean in head.mean.items()},
                "entropy_of_mean": head.entropy_of_mean,
                "mean_entropy": head.mean_entropy,
                "max_share": head.max_share,
                "routing": head.routing,
            }
            for head in report.heads
        ],
        "dead": [
            {"scenario": None if dead.bank is None else scenarios[dead.bank], "expert": expert_name(dead.name)}
            for dead in report.dead
        ],
        "distances": [
            {
                "scenario": scenarios[found.scenario],
                "tasks": [tasks[task] for task in found.tasks],
                "distance": found.distance,
            }
            for found in report.distances
        ],
    }


def find_checkpoint(folder: Path) -> tuple[str, "Checkpoint"]:
    """Returns name and content of a checkpoint: `folder` itself, or the newest whole one in it.

    Raises:
        ValueError: there is none.
        CheckpointCorruptError: `folder` is a checkpoint, and broken.
    """
    from model.checkpoint_load import load_checkpoint, load_latest

    if (folder / "manifest.json").is_file():
        return folder.name, load_checkpoint(folder)
    checkpoint = load_latest(folder)
    if checkpoint is None:
        raise ValueError(f"{folder}: no whole checkpoint in it")
    return folder.name, checkpoint


@click.command()
@run_options()
@click.option(
    "--checkpoint",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="A checkpoint, or a folder whose newest is taken; the run's by default.",
)
@click.option(
    "--examples",
    type=click.Path(exists=True, path_type=Path),
    help="What the gates see: a file of `replay --examples-out`, a recorded log with one in it, or a log of "
    "`verify-join --save`; the run's topic by default.",
)
@click.option("--rows", type=click.IntRange(min=1), default=20_000, show_default=True, help="How many, the last ones.")
@click.option("--report", type=_FILE, help="Write an HTML page with heat maps.")
@click.option("--json", "json_out", type=_FILE, help="Write the figures as JSON.")
def gates(
    run: RunConfig, folder: Path | None, examples: Path | None, rows: int, report: Path | None, json_out: Path | None
) -> None:
    """Shows how a trained model's gates use their experts: mean weights, entropies, dead experts, distances of tasks.

    \b
    Example:
      freshrank gates --config configs/demo.yaml --examples recorded/examples.arrow --report gates.html
    """  # noqa: D301 - click wants the character
    import torch

    from freshrank.example_tail import tail_of_broker, tail_of_folder
    from freshrank.gates_page import gates_page, gates_tables

    need_folders(report, json_out)
    torch.set_num_threads(1)
    try:
        name, checkpoint = find_checkpoint(folder or run.checkpoint.folder)
        if examples is not None:
            messages = tail_of_folder(examples)
        else:
            from stream import kafka_adapter

            reader = kafka_adapter.reader(run.kafka)
            try:
                messages = tail_of_broker(reader, run.kafka)
            finally:
                reader.close()
        result = {"checkpoint": name} | gates_of(run.schema, run.model, checkpoint, messages, rows)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if report is not None:
        report.write_text(gates_page(result), encoding="utf-8")
    gates_tables(result, sys.stdout)
