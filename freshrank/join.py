"""`freshrank join`: the joiner on Kafka."""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from freshrank.command import now_ms, run_options, stop_signal
from freshrank.config import RunConfig, addresses

if TYPE_CHECKING:
    from freshrank.metrics import Reading
    from stream.joiner import Joiner

_logger = logging.getLogger(__name__)
GROUP_ID = "freshrank-joiner"


@click.command()
@run_options()
def join(run: RunConfig) -> None:
    """Makes labelled examples from impressions and feedback, exactly once.

    Start several for more throughput: they share the partitions. SIGTERM commits what is at hand and exits 0.

    \b
    Example:
      freshrank join --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    from freshrank.metrics import serve_metrics
    from stream.joiner import Joiner
    from stream.kafka_log import KafkaGroupMember
    from stream.kafka_producer import KafkaTransactionalProducer
    from stream.log import FEEDBACK, IMPRESSIONS, topic_name

    should_stop = stop_signal()
    topics = [topic_name(run.kafka, topic) for topic in (IMPRESSIONS, FEEDBACK)]
    member = KafkaGroupMember(run.kafka, run.kafka.topic_prefix + GROUP_ID, topics)
    producer = KafkaTransactionalProducer(run.kafka, transactional_id())
    try:
        joiner = Joiner(run.schema, run.join, member, producer, run.kafka, now_ms)
        serve_metrics("joiner", addresses(run.monitor.joiner)[0], lambda: readings(joiner))
        _logger.info("Joining. schema=%s commit_interval_ms=%s", run.schema.schema_hash(), run.join.commit_interval_ms)
        joiner.run(should_stop)
        _logger.info("Stopped after the last commit. commits=%s", joiner.num_commits)
    finally:
        producer.close()
        member.close()


def transactional_id() -> str:
    """Returns an id of this process alone: fencing is by the group's generation (KIP-447), not by a shared id."""
    import uuid

    return f"freshrank-joiner-{uuid.uuid4().hex}"


def readings(joiner: "Joiner") -> "Iterator[Reading]":
    """Yields the joiner's metrics."""
    from freshrank.metrics import Reading, read_counters

    yield from read_counters("joiner", joiner.counters)
    yield Reading("freshrank_joiner_commits_total", joiner.num_commits)
    yield from (
        Reading("freshrank_joiner_unknown_fields_total", n, (name,)) for name, n in joiner.unknown_fields.items()
    )
