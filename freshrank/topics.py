"""`freshrank topics`: the topics of a run, created or looked at."""

import click

from freshrank.command import run_options
from freshrank.config import RunConfig
from freshrank.join import GROUP_ID


@click.group()
def topics() -> None:
    """Creates the topics of a run, or shows them."""


@topics.command()
@run_options()
def create(run: RunConfig) -> None:
    """Creates the topics that do not exist yet; says nothing about those that do.

    \b
    Example:
      freshrank topics create --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    from stream.topics import create_topics

    for name in create_topics(run.kafka):
        click.echo(f"created {name} with {run.kafka.num_partitions} partitions")


@topics.command()
@run_options()
def describe(run: RunConfig) -> None:
    """Shows each topic, what does not fit, and how far the joiner is behind.

    \b
    Example:
      freshrank topics describe --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    from stream.topics import check_partitions, describe_topics, retention_problems, topic_lag

    found = describe_topics(run.kafka)
    for info in found:
        kept = {None: "unknown", -1: "for ever"}.get(info.retention_ms, f"{info.retention_ms} ms")
        state = f"{info.num_partitions} partitions, {info.replication_factor} copies, kept {kept}"
        click.echo(f"{info.name}: {state if info.num_partitions else 'does not exist'}")
    for partition, lag in sorted(topic_lag(run.kafka, run.kafka.topic_prefix + GROUP_ID).items()):
        click.echo(f"{partition.topic}[{partition.partition}]: joiner is {lag.num_messages} messages behind")
    check_partitions(found)
    for problem in retention_problems(run.kafka, found, run.schema.max_window_ms + run.join.grace_ms):
        click.echo(problem, err=True)
