"""`freshrank rank`: the ranker, put together."""

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

import click

from freshrank.command import elapsed_ms, now_ms, run_options
from freshrank.config import RunConfig
from freshrank.doors import door_tokens
from freshrank.exits import CommandError, ExitCode
from freshrank.steady_clock import SteadyClock, since_boot_ms
from freshrank.strict import ConfigError

if TYPE_CHECKING:
    from freshrank.metrics import Buckets, Reading
    from model.store import SnapshotStore
    from ranker.answer import Ranker

_logger = logging.getLogger(__name__)


@click.command()
@run_options()
def rank(run: RunConfig) -> None:
    """Serves rankings over HTTP with the newest snapshot.

    It answers whatever else is down: without Redis with the last snapshot, without any snapshot in input order.

    \b
    Example:
      freshrank rank --config configs/demo.yaml
      curl localhost:8620/v1/health
    """  # noqa: D301 - click wants the character
    import torch

    from freshrank.metrics import exposition, registry
    from model.store_redis import RedisSnapshotStore
    from ranker.blender_follow import BlenderFollower, BlenderWatcher
    from ranker.exceptions import PortTakenError, TlsFileError
    from ranker.openapi import PAGE_POLICY
    from ranker.server import HttpServer
    from ranker.service import create_app
    from ranker.watcher import SnapshotWatcher
    from utility_blender.store_redis import RedisBlenderStore

    door, host = run.ranker.door, run.ranker.server.host
    tokens = door_tokens("ranker.door", host, allow_anonymous=door.allow_anonymous)
    torch.set_num_threads(1)  # one request is too small to be worth splitting, and the cores have other work
    store = RedisSnapshotStore(run.redis.address, run.trainer.model_name, run.store)
    ranker = build_ranker(run, store)
    watcher = SnapshotWatcher(store, ranker.follower, run.ranker.watcher, ranker.stats)
    blender_store = RedisBlenderStore(run.redis.address, run.trainer.model_name, run.blender.store)
    blender_follower = BlenderFollower(
        blender_store,
        ranker.blender,
        ranker.stats,
        schema_hash=run.schema.schema_hash(),
        elapsed_s=ranker.elapsed_s,
        may_explore=run.ranker.lane == "stable",
    )
    own, draining = registry("ranker", lambda: readings(ranker)), threading.Event()
    app = create_app(
        ranker,
        watcher,
        run.ranker.limits,
        metrics_text=lambda: exposition(own)[0],
        version=version("freshrank"),
        blender_watcher=BlenderWatcher(blender_follower, ranker.stats),
        door=door,
        tokens=tokens,
        is_draining=draining.is_set,
    )
    try:
        server = HttpServer(app, run.ranker.server, content_policy=PAGE_POLICY, draining=draining)
    except PortTakenError as error:
        raise CommandError(ExitCode.PORT_TAKEN, f"{error}; free it or change ranker.server.port") from error
    except TlsFileError as error:
        raise ConfigError(f"ranker.server.{error}") from error
    _logger.info("Ranking is served. url=%s://%s:%s/", server.scheme, server.host, server.port)
    server.run()
    store.close()
    blender_store.close()
    _logger.info("Stopped after the last answer. requests=%s", ranker.stats.requests)


def build_ranker(run: RunConfig, store: "SnapshotStore") -> "Ranker":
    """Returns a ranker with a Kafka log and Redis sequences. Nothing is connected yet."""
    from model.row_store import RowKeys
    from ranker.answer import Ranker
    from ranker.event_log import EventLog
    from ranker.follow import SnapshotFollower
    from ranker.freshness import FreshnessRecorder
    from ranker.request import RequestDecoder
    from ranker.row_fetch import RedisRowReader
    from ranker.score_shift import ScoreShift
    from ranker.sequences import RedisSequenceReader
    from ranker.stats import RankerStats
    from ranker.version_churn import VersionChurn
    from stream import kafka_adapter
    from utility_blender.blend import Blender

    clock = SteadyClock(now_ms, since_boot_ms)
    stats, freshness = RankerStats(), FreshnessRecorder(clock.now_ms)
    try:
        blender = Blender(list(run.schema.tasks), run.schema.scenarios, run.blender)
    except ValueError as error:
        raise ConfigError(f"blender.{error}") from error
    return Ranker(
        decoder=RequestDecoder(run.schema, run.ranker.limits, stats),
        sequences=RedisSequenceReader(run.redis.address, run.ranker.sequence, stats, elapsed_ms),
        follower=SnapshotFollower(
            store, run.schema, stats, freshness, VersionChurn(blender, time.perf_counter), run.ranker.lane
        ),
        rows=RedisRowReader(
            run.redis.address, RowKeys(run.store.prefix, run.trainer.model_name), run.ranker.rows, stats, elapsed_ms
        ),
        blender=blender,
        log=EventLog(kafka_adapter.producer(run.kafka), run.kafka, stats),
        stats=stats,
        freshness=freshness,
        score_shift=ScoreShift(blender, stats),
        now_ms=clock.now_ms,
        elapsed_s=time.perf_counter,
        new_request_id=lambda: uuid.uuid4().hex,
    )


def readings(ranker: "Ranker") -> "Iterator[Reading | Buckets]":
    """Yields the ranker's metrics."""
    from freshrank.metrics import Buckets, Reading, read_counters
    from ranker.follow import REASONS

    yield from read_counters("ranker", ranker.stats)
    # A series that begins with its first failure has not risen, for Prometheus: it must have been there with 0.
    for reason in set(REASONS.values()) - ranker.stats.snapshots_refused.keys():
        yield Reading("freshrank_ranker_snapshots_refused_total", 0, (reason,))
    yield Reading("freshrank_ranker_delivery_failures_total", ranker.log.num_failed)
    model = ranker.model()
    yield Reading("freshrank_ranker_version", model.version)
    yield Reading("freshrank_ranker_blender_version", model.blender)
    yield Reading("freshrank_ranker_blender_share_ratio", model.blender_share)
    yield Reading("freshrank_ranker_exploring_ratio", model.exploring)
    for scenario, weights in list(ranker.last_weights.items()):
        for task, weight in weights.items():
            yield Reading("freshrank_ranker_blender_weight_ratio", weight, (scenario, task))
    if model.model_age_ms is not None:
        yield Reading("freshrank_ranker_model_age_seconds", model.model_age_ms / 1_000)
    if model.freshness.p50_ms is not None and model.freshness.p99_ms is not None:
        yield Reading("freshrank_ranker_freshness_quantile_seconds", model.freshness.p50_ms / 1_000, ("0.5",))
        yield Reading("freshrank_ranker_freshness_quantile_seconds", model.freshness.p99_ms / 1_000, ("0.99",))
    churn = ranker.follower.churn
    if churn is not None and churn.top1_changed_share is not None and churn.rbo is not None:
        yield Reading("freshrank_ranker_churn_ratio", churn.top1_changed_share, ("top1_changed",))
        yield Reading("freshrank_ranker_churn_ratio", churn.rbo, ("rbo",))
    for (scenario, task), psi in ranker.score_shift.psi.items():
        yield Reading("freshrank_ranker_score_shift_ratio", psi, (task, scenario))
    fresh = ranker.freshness
    for stage, count in fresh.negative.items():
        yield Reading("freshrank_ranker_freshness_negative_total", count, (stage,))
    for name, labels, histogram in (
        ("freshrank_ranker_freshness_seconds", (), fresh.histogram),
        *(("freshrank_ranker_freshness_stage_seconds", (stage,), found) for stage, found in fresh.stages.items()),
        ("freshrank_ranker_latency_seconds", (), ranker.stats.latency_ms),
    ):
        yield Buckets.of_ms(name, histogram, labels)
