"""`freshrank blend`: the blend worker on Kafka and Redis."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import click

from freshrank.command import now_ms, run_options, stop_signal
from freshrank.config import RunConfig
from freshrank.health import Heartbeat
from freshrank.places import addresses
from freshrank.strict import ConfigError

if TYPE_CHECKING:
    from freshrank.blend_step import Production
    from freshrank.blend_worker import BlendWorker
    from freshrank.metrics import Reading

_logger = logging.getLogger(__name__)
FLUSH_TIMEOUT_MS = 5_000


@click.command()
@run_options()
def blend(run: RunConfig) -> None:
    """Learns the weights of the utility from explored requests.

    Rounds are gated. Goes on where its checkpoint says; a version goes to Redis only through the off-policy gate, and
    to all requests only in stages. SIGTERM ends it with code 0.

    \b
    Example:
      freshrank blend --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    import torch

    from freshrank.blend_worker import BlendParts, BlendWorker
    from freshrank.example_source import LogExampleSource
    from freshrank.metrics import serve_metrics
    from freshrank.outcome_rows import decode_outcomes
    from freshrank.train import set_aside, writable
    from stream import kafka_adapter
    from stream.log import OUTCOMES
    from utility_blender.store_redis import RedisBlenderStore

    if run.blender.learn.method == "off":
        raise ConfigError("blender.learn.method: off is not allowed here; name a method, reward_regression for one")
    heartbeat = Heartbeat(stop_signal())
    torch.set_num_threads(1)  # the last bits depend on their number
    folder = writable(run.checkpoint.folder)
    reader, dead_letters = kafka_adapter.reader(run.kafka), kafka_adapter.producer(run.kafka)
    store = RedisBlenderStore(run.redis.address, run.trainer.model_name, run.blender.store)
    with ThreadPoolExecutor(1, thread_name_prefix="learn") as executor:
        try:
            parts = BlendParts(
                source=LogExampleSource(reader, run.kafka, OUTCOMES),
                store=store,
                decode=lambda value: decode_outcomes(value, run.schema),
                dead_letter=set_aside(dead_letters, run.kafka, OUTCOMES),
                executor=executor,
                checkpoint=folder / "blender.json",
                now_ms=now_ms,
                rolled_back_snapshots=rolled_back_snapshots(run),
            )
            worker = BlendWorker(run.blender, production(run), parts)
            if run.monitor.blender:
                serve_metrics("blender", addresses(run.monitor.blender)[0], lambda: readings(worker), heartbeat.problem)
            _logger.info("Learning weights. method=%s", run.blender.learn.method)
            worker.run(heartbeat.should_stop)
            _logger.info("Stopped. outcomes=%s rounds=%s", worker.stats.outcomes, worker.stats.rounds)
        finally:
            dead_letters.flush(FLUSH_TIMEOUT_MS)
            reader.close()
            store.close()


def production(run: RunConfig) -> "Production":
    """Returns what the configuration says of the weights without learning.

    Raises:
        ConfigError: the section `blender` does not fit the run.
    """
    import numpy as np

    from freshrank.blend_step import Production
    from utility_blender.blend import Blender
    from utility_blender.policy import StaticPolicy

    tasks = tuple(run.schema.tasks)
    try:
        blender = Blender(tasks, run.schema.scenarios, run.blender)
    except ValueError as error:
        raise ConfigError(f"blender.{error}") from error
    kinds = {
        f"{side}.{name}": feature.kind
        for side in ("user", "context")
        for name, feature in getattr(run.schema.features, side).items()
    }
    return Production(
        static=StaticPolicy({name: blender.production(name) for name in run.schema.scenarios}),
        scale_T=np.array([run.blender.scale.get(task, 1.0) for task in tasks]),
        tasks=tasks,
        schema_hash=run.schema.schema_hash(),
        numeric=tuple(name for name in run.blender.learn.context if kinds.get(name) == "numeric"),
    )


def rolled_back_snapshots(run: RunConfig) -> Callable[[], set[int]]:
    """Returns what reads the denied versions of the model; while Redis does not answer, it repeats itself."""
    from model.exceptions import StoreUnavailableError
    from model.store_redis import RedisSnapshotStore

    store = RedisSnapshotStore(run.redis.address, run.trainer.model_name, run.store)
    known: set[int] = set()

    def read() -> set[int]:
        nonlocal known
        try:
            known = set(store.denied())
        except StoreUnavailableError as error:
            _logger.warning("The store of the model does not answer error=%s", error)
        return known

    return read


def readings(worker: "BlendWorker") -> "Iterator[Reading]":
    """Yields the blend worker's metrics."""
    from freshrank.metrics import Reading, read_counters

    gauges = worker.gauges
    yield from read_counters("blender", worker.stats)
    yield Reading("freshrank_blender_version", gauges.version)
    yield Reading("freshrank_blender_share_ratio", gauges.share)
    yield Reading("freshrank_blender_round_requests", gauges.round_requests)
    yield Reading("freshrank_blender_round_missing_requests", gauges.round_missing)
    if gauges.lift is not None and gauges.lift_low is not None:
        yield Reading("freshrank_blender_lift_ratio", gauges.lift, ("estimate",))
        yield Reading("freshrank_blender_lift_ratio", gauges.lift_low, ("lower",))
