"""Ours as a process: the joiner from Kafka JSON to committed Arrow, exactly once, as `freshrank join` runs it."""

import time
import uuid
from dataclasses import replace

from benchmarks.peers.join_core import CONFIG, SCHEMA
from benchmarks.peers.meter import Job, Meter
from stream.emission import JoinCounters
from stream.join import JoinConfig
from stream.joiner import Joiner
from stream.kafka_log import KafkaGroupMember
from stream.kafka_producer import KafkaTransactionalProducer
from stream.log import FEEDBACK, IMPRESSIONS, KafkaConfig, topic_name
from stream.schema import SchemaConfig

WARM_UP = "warm-"
"""Between the prefix and the names of the topics: a log of the same events for the warm-up."""


def join(kafka: KafkaConfig, schema: SchemaConfig, config: JoinConfig, num_labels: int) -> JoinCounters:
    """Runs one joiner of a new group until so many labels are committed; returns what it counted."""
    name = uuid.uuid4().hex
    member = KafkaGroupMember(kafka, name, [topic_name(kafka, IMPRESSIONS), topic_name(kafka, FEEDBACK)])
    producer = KafkaTransactionalProducer(kafka, name)
    joiner = Joiner(schema, config, member, producer, kafka, lambda: time.time_ns() // 1_000_000)
    try:
        while joiner.counters.labels < num_labels:
            joiner.run_once()
    finally:
        producer.close()
        member.close()
    return joiner.counters


def main() -> None:
    """Joins the warm-up log, then the other."""
    job = Job.from_argv()
    meter = Meter(job)
    kafka = KafkaConfig(bootstrap_servers=job.broker, topic_prefix=job.prefix)
    join(replace(kafka, topic_prefix=job.prefix + WARM_UP), SCHEMA, CONFIG, job.num_items)
    meter.start()
    join(kafka, SCHEMA, CONFIG, job.num_items)
    meter.stop()


if __name__ == "__main__":
    main()
