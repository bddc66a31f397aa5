"""`freshrank train`: the trainer on Kafka and Redis."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from freshrank.command import now_ms, run_options, stop_signal
from freshrank.config import RunConfig
from freshrank.exits import CommandError, ExitCode
from freshrank.health import Heartbeat
from freshrank.launch_ranks import is_rank, launch_ranks
from freshrank.places import addresses
from freshrank.strict import ConfigError

if TYPE_CHECKING:
    from freshrank.metrics import Reading
    from model.ranks import Ranks
    from model.source import ExampleMessage
    from model.trainer import Trainer
    from stream.log import KafkaConfig, Producer

_logger = logging.getLogger(__name__)
FLUSH_TIMEOUT_MS = 5_000


@click.command()
@run_options()
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of the arithmetic, per rank."
)
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes of this machine that train the one model together.",
)
def train(run: RunConfig, threads: int, ranks: int) -> None:
    """Learns from examples and publishes snapshots.

    Goes on where its newest checkpoint says; SIGTERM finishes the batch, writes a checkpoint and exits 0. On several
    machines torchrun starts it, once per rank.

    \b
    Example:
      freshrank train --config configs/demo.yaml --ranks 2
      torchrun --nnodes 2 --nproc-per-node 2 -m freshrank.cli train --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    if ranks > 1 and not is_rank():
        launch_ranks(run, ranks, threads)
        return
    import torch

    from freshrank.cold_store import ColdStore
    from freshrank.example_source import LogExampleSource
    from freshrank.metrics import serve_metrics
    from model.row_store_redis import RedisRowStore
    from model.store_redis import RedisSnapshotStore
    from model.trainer import Trainer
    from model.trainer_config import TrainerParts
    from stream import kafka_adapter

    heartbeat = Heartbeat(stop_signal())
    torch.set_num_threads(threads)
    together = join_ranks(run)
    folder = writable(run.checkpoint.folder)
    reader, dead_letters = kafka_adapter.reader(run.kafka), kafka_adapter.producer(run.kafka)
    store = row_store = None
    if together.is_lead:
        store = RedisSnapshotStore(run.redis.address, run.trainer.model_name, run.store)
        row_store = RedisRowStore(run.redis.address, run.trainer.model_name, run.store)
    run_id = uuid.uuid4().hex
    cold = ColdStore(folder, together.rank, together.size, run.checkpoint.cold_store_mib)
    try:
        trainer = Trainer(
            run.schema,
            run.trainer,
            run.model,
            now_ms=now_ms,
            parts=TrainerParts(
                source=LogExampleSource(reader, run.kafka, rank=together.rank, num_ranks=together.size),
                store=store,
                checkpoint_dir=folder,
                dead_letter=set_aside(dead_letters, run.kafka),
                weights=production_weights(run),
                ranks=together,
                row_store=row_store,
                cold_stores=cold,
            ),
            config_hash=run.config_hash(),
            run_id=run_id,
        )
        address = address_of_rank(run.monitor.trainer, together.rank)
        serve_metrics("trainer", address, lambda: readings(trainer), heartbeat.problem)
        _logger.info("Training. model=%s run_id=%s checkpoints=%s", run.trainer.model_name, run_id, folder)
        trainer.run(heartbeat.should_stop)
        saved = is_saved(trainer)
        _logger.info("Stopped after the last step. examples=%s steps=%s", trainer.stats.examples, trainer.stats.steps)
    finally:
        dead_letters.flush(FLUSH_TIMEOUT_MS)
        reader.close()
        cold.close()
        if store is not None and row_store is not None:
            store.close()
            row_store.close()
        together.close()
    if not saved:
        raise CommandError(ExitCode.DISK, f"The last checkpoint could not be written into {folder}; the log says why")


def join_ranks(run: RunConfig) -> "Ranks":
    """Returns this process's place among those that torchrun has started, or a world of one."""
    import torch

    from model.device import device_of
    from model.ranks import Ranks

    device = device_of(run.trainer.device)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return Ranks.join(device=device)


def address_of_rank(setting: str, rank: int) -> str:
    """Returns where a rank shows its metrics: at its own place in the list, or so many ports after the first.

    >>> address_of_rank("127.0.0.1:8612", 0), address_of_rank("127.0.0.1:8612", 2), address_of_rank("a:1, b:1", 1)
    ('127.0.0.1:8612', '127.0.0.1:8614', 'b:1')
    """
    listed = addresses(setting)
    if rank < len(listed):
        return listed[rank]
    host, _, port = listed[0].rpartition(":")
    return f"{host}:{int(port) + rank if int(port) else 0}"


def production_weights(run: RunConfig) -> dict[str, tuple[float, ...]]:
    """Returns each scenario's production weights over their scales, by task; empty where the run has no blender."""
    from utility_blender.blend import DEFAULT, Blender

    if not run.blender.weights:
        return {}
    tasks, scenarios = list(run.schema.tasks), run.schema.scenarios
    try:
        blender = Blender(tasks, scenarios, run.blender)
    except ValueError as error:
        raise ConfigError(f"blender.{error}") from error
    scale = [run.blender.scale.get(task, 1.0) for task in tasks]
    weights = {
        scenario: tuple(
            weight / unit for weight, unit in zip(blender.production(scenario).tolist(), scale, strict=True)
        )
        for scenario in scenarios
    }
    return weights | {DEFAULT: weights[run.schema.default_scenario or scenarios[0]]}


def is_saved(trainer: "Trainer") -> bool:
    """Tells whether everything learned is in a checkpoint; tries once more if the last attempt failed."""
    before = trainer.stats.checkpoint_failures
    trainer.checkpoint()  # does nothing if the last one was written
    return trainer.stats.checkpoint_failures == before


def writable(folder: Path) -> Path:
    """Returns the folder, made if it was not there.

    Raises:
        CommandError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(ExitCode.DISK, f"checkpoint.folder: {folder} cannot be made: {error.strerror}") from error
    return folder


def set_aside(
    producer: "Producer", kafka: "KafkaConfig", topic: str = "examples"
) -> "Callable[[ExampleMessage, str], None]":
    """Returns what sends an undecodable message of a topic to the topic `dead-letter`."""
    from stream.dead_letter import dead_letter
    from stream.log import DEAD_LETTER, Message, topic_name

    def send(message: "ExampleMessage", error: str) -> None:
        source = Message(topic_name(kafka, topic), message.partition, message.offset, None, message.value)
        letter = dead_letter(source, ValueError(error))
        producer.produce(topic_name(kafka, DEAD_LETTER), letter.key, letter.value, letter.headers)
        producer.poll()

    return send


def gate_readings(trainer: "Trainer") -> "Iterator[Reading]":
    """Yields what the gate says."""
    from freshrank.metrics import Reading
    from model.gate_report import State

    gate = trainer.gate
    for state, count in gate.stats.windows.items():
        yield Reading("freshrank_trainer_gate_windows_total", count, (state,))
    for check, count in dict(gate.stats.blocks).items():
        yield Reading("freshrank_trainer_gate_blocks_total", count, (check,))
    for state in get_args(State):
        yield Reading("freshrank_trainer_gate_state_ratio", gate.state == state, (state,))
    yield Reading("freshrank_trainer_gate_holding_ratio", gate.is_holding)
    yield Reading("freshrank_trainer_gate_frozen_ratio", gate.is_frozen)


def expert_readings(trainer: "Trainer") -> "Iterator[Reading]":
    """Yields what the gates between experts give to them: attention to other scenarios, and mean weights."""
    from freshrank.gates import SCENARIO_GATES
    from freshrank.metrics import Reading
    from model.gate_means import SAN

    trained = trainer.learner.trained
    scenarios, tasks = trained.registry.names, trained.net.shape.tasks
    for (gate, scenario, task, expert), mean in trainer.gate_means.ask().items():
        name = scenarios[int(expert)] if gate in SCENARIO_GATES else expert
        if gate != SAN:
            head = (gate, scenarios[scenario], "all" if task is None else tasks[task], name)
            yield Reading("freshrank_trainer_gate_ratio", mean, head)
        elif int(expert) != scenario:
            yield Reading("freshrank_trainer_scenario_attention_ratio", mean, (scenarios[scenario], name))


def rank_readings(trainer: "Trainer") -> "Iterator[Reading]":
    """Yields what each rank shows: its share of the job, and of the embedding rows."""
    from freshrank.metrics import Reading

    ranks = trainer.ranks
    yield Reading("freshrank_trainer_ranks", ranks.size)
    yield Reading("freshrank_trainer_partitions", trainer.num_partitions)
    yield Reading("freshrank_trainer_collectives_seconds_total", ranks.collectives_s)
    ids = trainer.learner.trained.table
    for name, table in ids.counters.items():
        yield Reading("freshrank_trainer_table_rows", table.rows, (name,))
        for what in ("admissions", "lookups", "default_lookups", "missing_lookups"):
            yield Reading(f"freshrank_trainer_table_{what}_total", getattr(table, what), (name,))
        for cause, count in table.evictions.items():
            yield Reading("freshrank_trainer_table_evictions_total", count, (name, cause))
    for name, occupancy in ids.occupancy().items():
        yield Reading("freshrank_trainer_table_occupancy_ratio", occupancy, (name,))
    yield Reading("freshrank_trainer_hot_rows", len(ids.ids))
    if ids.cold is not None:
        yield Reading("freshrank_trainer_cold_rows", len(ids.cold))
        stats = ids.cold.stats
        yield Reading("freshrank_trainer_cold_lookups_total", stats.asked)
        yield Reading("freshrank_trainer_cold_hits_total", stats.found)
        yield Reading("freshrank_trainer_cooled_rows_total", stats.cooled)
        yield Reading("freshrank_trainer_cold_store_seconds_total", stats.store_s)


def readings(trainer: "Trainer") -> "Iterator[Reading]":
    """Yields the trainer's metrics: of the whole job by the lead, of its own share by each rank."""
    from freshrank.metrics import Reading, read_counters

    yield from rank_readings(trainer)
    if not trainer.ranks.is_lead:
        return
    gauges, publish = trainer.gauges, trainer.publish_stats
    yield from read_counters("trainer", trainer.stats)
    for kind, count in publish.snapshots.items():
        yield Reading("freshrank_trainer_snapshots_total", count, (kind,))
    for reason, count in publish.failures.items():
        yield Reading("freshrank_trainer_publish_failures_total", count, (reason,))
    yield from gate_readings(trainer)
    yield from expert_readings(trainer)
    yield Reading("freshrank_trainer_version", publish.version)
    yield Reading("freshrank_trainer_released_version", publish.released)
    yield Reading("freshrank_trainer_epoch", publish.epoch)
    yield Reading("freshrank_trainer_payload_bytes", publish.payload_bytes)
    yield Reading("freshrank_trainer_row_store_rows", publish.cold.records)
    yield Reading("freshrank_trainer_row_store_written_total", publish.cold.written)
    yield Reading("freshrank_trainer_row_store_generations_total", publish.cold.generations)
    yield Reading("freshrank_trainer_publish_seconds", publish.last_ms / 1_000)
    yield Reading("freshrank_trainer_checkpoint_seconds", gauges.checkpoint_ms / 1_000)
    yield Reading("freshrank_trainer_loss", gauges.loss)
    yield Reading("freshrank_trainer_grad_norm", gauges.grad_norm)
    yield Reading("freshrank_trainer_guarded_ratio", gauges.guarded_share)
    trained = trainer.learner.trained
    for task, weight in zip(trained.net.shape.tasks, trained.weighting.weights().tolist(), strict=True):
        yield Reading("freshrank_trainer_task_weight_ratio", weight, (task,))
    if gauges.watermark_ms:
        yield Reading("freshrank_trainer_watermark_age_seconds", (now_ms() - gauges.watermark_ms) / 1_000)
    if trained.teacher is not None:
        yield Reading("freshrank_trainer_teacher_held_total", trained.teacher.num_held)
        yield Reading("freshrank_trainer_teacher_alarms_total", trained.teacher.num_alarms)
        yield Reading("freshrank_trainer_teacher_age_seconds", trained.teacher.age_ms / 1_000)
        for reason, count in trained.teacher.masked.items():
            yield Reading("freshrank_trainer_teacher_masked_total", count, (reason,))
    names = {
        "n": "window_rows",
        "positives": "window_positives",
        "ne": "normalized_entropy_ratio",
        "auc": "auc_ratio",
        "calibration": "calibration_ratio",
    }
    for task, by_scenario in trainer.metrics.report("window").items():
        for scenario, figures in by_scenario.items():
            for figure, name in names.items():
                value = figures[figure]
                if value is not None:
                    yield Reading(f"freshrank_trainer_{name}", value, (task, scenario))
