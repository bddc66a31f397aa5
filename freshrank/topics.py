"""`freshrank topics`: the topics of a run, created, looked at, checked."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from freshrank.command import run_options
from freshrank.config import RunConfig
from freshrank.exits import CommandError, ExitCode
from freshrank.join import GROUP_ID

if TYPE_CHECKING:
    from stream.log import TopicPartition
    from stream.topics import Lag, TopicInfo

json_option = click.option("--json", "as_json", is_flag=True, help="Prints one JSON object instead of lines.")


@click.group()
def topics() -> None:
    """Creates the topics of a run, or shows them.

    `verify` checks that their settings keep what the joiner promises.
    """


@topics.command()
@run_options()
@json_option
def create(run: RunConfig, as_json: bool) -> None:
    """Creates the topics that do not exist yet; says nothing about those that do.

    \b
    Example:
      freshrank topics create --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    from stream.topics import create_topics

    created = create_topics(run.kafka)
    if as_json:
        _print({"created": created, "num_partitions": run.kafka.num_partitions})
        return
    for name in created:
        click.echo(f"created {name} with {run.kafka.num_partitions} partitions")


@topics.command()
@run_options()
@json_option
def describe(run: RunConfig, as_json: bool) -> None:
    """Shows each topic, what does not fit, and how far the joiner is behind.

    \b
    Example:
      freshrank topics describe --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    from stream.join import replay_span_ms
    from stream.topics import check_partitions, describe_topics, retention_problems, topic_lag

    found = describe_topics(run.kafka)
    lags = topic_lag(run.kafka, run.kafka.topic_prefix + GROUP_ID)
    if as_json:
        _print({"topics": [info._asdict() for info in found], "lag": _rows(lags)})
        return
    for info in found:
        click.echo(f"{info.name}: {_state(info)}")
    _show_lag(lags)
    check_partitions(found)
    for problem in retention_problems(run.kafka, found, replay_span_ms(run.schema, run.join)):
        click.echo(problem, err=True)


@topics.command()
@run_options()
@json_option
def lag(run: RunConfig, as_json: bool) -> None:
    """Shows how many messages the joiner is behind, per partition and together.

    \b
    Example:
      freshrank topics lag --config configs/demo.yaml --json
    """  # noqa: D301 - click wants the character
    from stream.topics import topic_lag

    lags = topic_lag(run.kafka, run.kafka.topic_prefix + GROUP_ID)
    total = sum(each.num_messages for each in lags.values())
    if as_json:
        _print({"lag": _rows(lags), "num_messages": total})
        return
    _show_lag(lags)
    click.echo(f"together: {total} messages" if lags else "the joiner has committed nothing yet")


@topics.command()
@run_options()
@json_option
def verify(run: RunConfig, as_json: bool) -> None:
    """Checks that the settings of the topics keep what the joiner promises; exits with 2 if one does not.

    \b
    Example:
      freshrank topics verify --config configs/production.yaml
    """  # noqa: D301 - click wants the character
    from stream.join import replay_span_ms
    from stream.topic_settings import setting_problems, unknown_settings
    from stream.topics import describe_topics, num_brokers

    infos = describe_topics(run.kafka)
    brokers = num_brokers(run.kafka)
    keep_ms = replay_span_ms(run.schema, run.join)
    problems = setting_problems(run.kafka, infos, keep_ms=keep_ms, num_brokers=brokers)
    unknown = unknown_settings(infos, brokers)
    if as_json:
        _print({"ok": not problems, "problems": problems, "not_checked": unknown})
    else:
        for sentence in (*problems, *unknown):
            click.echo(sentence)
    if problems:
        raise CommandError(ExitCode.USAGE, f"{len(problems)} settings of topics must change; the first: {problems[0]}")
    if not as_json:
        click.echo(f"{len(infos)} topics fit")


def _state(info: "TopicInfo") -> str:
    if not info.num_partitions:
        return "does not exist"
    kept = {None: "unknown", -1: "for ever"}.get(info.retention_ms, f"{info.retention_ms} ms")
    return f"{info.num_partitions} partitions, {info.replication_factor} copies, kept {kept}"


def _show_lag(lags: "Mapping[TopicPartition, Lag]") -> None:
    for partition, each in sorted(lags.items()):
        click.echo(f"{partition.topic}[{partition.partition}]: joiner is {each.num_messages} messages behind")


def _rows(lags: "Mapping[TopicPartition, Lag]") -> list[dict[str, Any]]:
    return [
        {**partition._asdict(), **each._asdict(), "num_messages": each.num_messages}
        for partition, each in sorted(lags.items())
    ]


def _print(value: Mapping[str, Any]) -> None:
    click.echo(json.dumps(value))
