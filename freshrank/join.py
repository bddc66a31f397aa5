"""`freshrank join`: the joiner on Kafka."""

import gc
import logging
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freshrank.command import instance_option, now_ms, run_options, stop_signal
from freshrank.config import RunConfig
from freshrank.exits import CommandError, ExitCode
from freshrank.health import Heartbeat
from freshrank.places import addresses
from freshrank.steady_clock import SteadyClock, since_boot_ms
from freshrank.watchdog import Watchdog, end_process
from stream.log import KafkaConfig

if TYPE_CHECKING:
    from freshrank.metrics import Reading
    from stream.joiner import Joiner

_logger = logging.getLogger(__name__)
GROUP_ID = "freshrank-joiner"
MAX_POLL_INTERVAL = "max.poll.interval.ms"
DEFAULT_MAX_POLL_INTERVAL_MS = 120_000
"""What `stream.kafka_log` sets where `kafka.client` does not: then a silent member's partitions are given to others."""
CALL_LIMIT_S = 7.0
"""No step of a transaction may take longer: it is to come back after 5 s, whatever the broker does."""
GC_THRESHOLDS = (50_000, 20, 100)
"""Open slates live long and hold no cycles; at Python's defaults looking for some takes 40 % of the joiner's time."""


@click.command()
@run_options()
@instance_option
def join(run: RunConfig, instance: str | None) -> None:
    """Makes labelled examples from impressions and feedback, exactly once.

    Start several for more throughput: they share the partitions. SIGTERM commits what is at hand and exits 0.

    \b
    Example:
      freshrank join --config configs/demo.yaml --instance joiner-1
    """  # noqa: D301 - click wants the character
    from freshrank.metrics import serve_metrics
    from stream import kafka_adapter
    from stream.joiner import Joiner
    from stream.log import FEEDBACK, IMPRESSIONS, topic_name
    from stream.spill import Spill
    from stream.timeline import Timeline

    try:
        Timeline(run.schema, run.join.grace_ms, run.join.outcome_window_ms)
    except ValueError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from error
    heartbeat = Heartbeat(stop_signal())
    topics = [topic_name(run.kafka, topic) for topic in (IMPRESSIONS, FEEDBACK)]
    group_id = run.kafka.topic_prefix + GROUP_ID
    check_retention(run)
    spill = None
    if run.spill.directory is not None:
        spill = Spill(replace(run.spill, directory=str(Path(run.spill.directory) / (instance or ""))))
    member = kafka_adapter.group_member(run.kafka, group_id, topics, instance_id=instance)
    producer = kafka_adapter.transactional_producer(run.kafka, f"{group_id}-{instance or uuid.uuid4().hex}")
    clock = SteadyClock(now_ms, since_boot_ms)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        joiner = Joiner(run.schema, run.join, member, producer, run.kafka, clock.now_ms, spill)
        serve_metrics("joiner", addresses(run.monitor.joiner)[0], lambda: readings(joiner), heartbeat.problem)
        _logger.info("Joining. schema=%s commit_interval_ms=%s", run.schema.schema_hash(), run.join.commit_interval_ms)
        with Watchdog(
            heartbeat.should_stop,
            turn_limit_s(run.kafka),
            end_process,
            call=lambda: producer.call,
            call_limit_s=CALL_LIMIT_S,
        ) as watchdog:
            joiner.run(watchdog.should_stop)
        _logger.info("Stopped after the last commit. commits=%s", joiner.num_commits)
    finally:
        if spill is not None:
            spill.close()
        producer.close()
        member.close()


def turn_limit_s(kafka: KafkaConfig) -> float:
    """Returns how long one turn of the joiner may take: as long as the group lets a member be silent."""
    return float(kafka.client.get(MAX_POLL_INTERVAL, DEFAULT_MAX_POLL_INTERVAL_MS)) / 1_000


def check_retention(run: RunConfig) -> None:
    """Checks that the broker keeps the input topics for long enough; logs a warning where it does not say.

    Raises:
        CommandError: a topic forgets what open slates still need; labels would be lost at the next restart.
        LogUnavailableError: the broker does not answer.
    """
    from stream.join import replay_span_ms
    from stream.log import FEEDBACK, IMPRESSIONS, topic_name
    from stream.topics import describe_topics, retention_problems

    infos = describe_topics(run.kafka)
    problems = retention_problems(run.kafka, infos, replay_span_ms(run.schema, run.join))
    if problems:
        raise CommandError(ExitCode.USAGE, "; ".join(problems))
    inputs = {topic_name(run.kafka, topic) for topic in (IMPRESSIONS, FEEDBACK)}
    for info in infos:
        if info.name in inputs and info.num_partitions and info.retention_ms is None:
            _logger.warning("The broker does not say how long it keeps messages: not checked. topic=%s", info.name)


def readings(joiner: "Joiner") -> "Iterator[Reading]":
    """Yields the joiner's metrics."""
    from freshrank.metrics import Reading, read_counters

    yield from read_counters("joiner", joiner.counters)
    yield Reading("freshrank_joiner_commits_total", joiner.num_commits)
    yield Reading("freshrank_joiner_aborted_total", joiner.num_aborted)
    for number, pair in list(joiner.pairs.items()):
        partition = (str(number),)
        yield Reading("freshrank_joiner_open_slates", pair.core.state.num_slates, partition)
        yield Reading("freshrank_joiner_pending_feedback", pair.core.state.num_pending, partition)
        if pair.core.watermark_ms >= 0:
            yield Reading(
                "freshrank_joiner_watermark_age_seconds", now_ms() / 1e3 - pair.core.watermark_ms / 1e3, partition
            )
    if joiner.spill is not None:
        yield Reading("freshrank_joiner_snapshots_total", joiner.spill.num_snapshots)
        yield Reading("freshrank_joiner_snapshots_rejected_total", joiner.spill.num_rejected)
        for spilled, state in list(joiner.spill.states.items()):
            yield Reading("freshrank_joiner_frozen_slates", state.num_frozen, (str(spilled.partition),))
    yield from (
        Reading("freshrank_joiner_unknown_fields_total", n, (name,)) for name, n in joiner.unknown_fields.items()
    )
