"""Ours as a process: the joiner from Kafka JSON to committed Arrow, exactly once, as `freshrank join` runs it."""

import time
import uuid
from dataclasses import replace

from benchmarks.peers.join_core import CONFIG, SCHEMA
from benchmarks.peers.meter import Job, Meter
from stream.joiner import Joiner
from stream.kafka_log import KafkaGroupMember
from stream.kafka_producer import KafkaTransactionalProducer
from stream.log import FEEDBACK, IMPRESSIONS, KafkaConfig, topic_name

WARM_UP = "warm-"
"""Between the prefix and the names of the topics: a log of the same events for the warm-up."""


def join(kafka: KafkaConfig, num_items: int) -> None:
    """Runs one joiner of a new group until all labels are committed."""
    name = uuid.uuid4().hex
    member = KafkaGroupMember(kafka, name, [topic_name(kafka, IMPRESSIONS), topic_name(kafka, FEEDBACK)])
    producer = KafkaTransactionalProducer(kafka, name)
    joiner = Joiner(SCHEMA, CONFIG, member, producer, kafka, lambda: time.time_ns() // 1_000_000)
    try:
        while joiner.counters.labels < num_items:
            joiner.run_once()
    finally:
        producer.close()
        member.close()


def main() -> None:
    """Joins the warm-up log, then the other."""
    job = Job.from_argv()
    meter = Meter(job)
    kafka = KafkaConfig(bootstrap_servers=job.broker, topic_prefix=job.prefix)
    join(replace(kafka, topic_prefix=job.prefix + WARM_UP), job.num_items)
    meter.start()
    join(kafka, job.num_items)
    meter.stop()


if __name__ == "__main__":
    main()
