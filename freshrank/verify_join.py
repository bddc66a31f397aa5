"""`freshrank verify-join`: what the joiner has written against what it had to write, label by label."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_args

import click

from freshrank.command import now_ms, run_options
from freshrank.config import RunConfig
from freshrank.exits import CommandError, ExitCode
from freshrank.log_source import LogSource, ReaderSource, SavedSource, open_folder, save_log
from stream.audit import FAULTS, AuditReport, Finding
from stream.audit_log import AuditRange, PartitionAudit
from stream.log import DEAD_LETTER, EXAMPLES, FEEDBACK, IMPRESSIONS, OUTCOMES
from stream.oracle import OracleConfig
from stream.oracle_clock import ReachClock
from stream.recorded import ReplayOrder
from stream.schema import SchemaConfig

if TYPE_CHECKING:
    from stream.join import JoinConfig

LAG_MS = 60_000
_NEVER_MS = 2**62
_MAX_SLACK_MS = 2_000
"""The first message after a pause may have waited so long for the joiner, with the watermark going on meanwhile."""
_SHOWN_FINDINGS = 20
_EXPLAINED = ("late", "late_accepted", "unmatched", "pending", "open", "reused", "skipped", "malformed")


def verify_log(
    source: LogSource,
    schema: SchemaConfig,
    join: "JoinConfig",
    within: AuditRange = AuditRange(),
    *,
    lag_ms: int = LAG_MS,
    on_partition: Callable[[int], None] = lambda _: None,
) -> AuditReport:
    """Returns what is not as it must be, and what explains the rest. Needs memory for one partition at a time.

    Raises:
        ValueError: examples that cannot be read, or that were made under other settings.
        LogUnavailableError: the broker is gone, or deletes faster than it is read.
    """
    config = OracleConfig(
        grace_ms=join.grace_ms,
        out_of_orderness_ms=join.out_of_orderness_ms,
        max_ahead_ms=join.max_ahead_ms,
        # A replay has no log that dates its messages, and refuses none for their date.
        refuse_ahead_ms=_NEVER_MS if source.as_of_ms is None else join.refuse_ahead_ms,
        idle_ms=join.idle_ms,
        duplicate_ms=join.duplicate_ms,
        # A replay keeps its outcomes to itself, and a log of before there were any has no topic for them.
        outcome_window_ms=join.outcome_window_ms if source.partitions(OUTCOMES) else None,
    )
    report = AuditReport()
    letters = _dead_letters(source)
    for number in range(source.num_partitions):
        on_partition(number)
        begin_ms = max(within.since_ms, _kept_since_ms(source, number, config))
        partition = PartitionAudit(
            number,
            schema,
            config,
            replace(within, since_ms=begin_ms),
            ReachClock(config, as_of_ms=source.as_of_ms, lag_ms=lag_ms),
            report,
            # A worker looks only every `idle_ms` whether a quiet topic is still at its end.
            slack_ms=0 if source.as_of_ms is None else min(config.idle_ms, _MAX_SLACK_MS),
        )
        feeds = {IMPRESSIONS: partition.impression, FEEDBACK: partition.feedback, EXAMPLES: partition.examples}
        if config.outcome_window_ms is not None:
            feeds[OUTCOMES] = partition.outcomes
        for topic, feed in feeds.items():
            for message in source.messages(topic, number):
                feed(message)
        partition.judge()
        if letters is not None:
            _judge_letters(number, partition.malformed(), letters, report)
    return report


def _kept_since_ms(source: LogSource, number: int, config: OracleConfig) -> int:
    """Returns from which event time on a partition holds everything there is about a slate; 0 if nothing is gone."""
    since_ms = 0
    outputs = (EXAMPLES,) if config.outcome_window_ms is None else (EXAMPLES, OUTCOMES)
    for topic in (IMPRESSIONS, FEEDBACK, *outputs):
        if source.is_cut(topic, number):
            first = next(source.messages(topic, number), None)
            kept_ms = _NEVER_MS if first is None else first.timestamp_ms
            since_ms = max(since_ms, kept_ms + config.max_ahead_ms + config.duplicate_ms + 1)
    return since_ms


_Letters = dict[int, Counter[tuple[str, int]]]


def _dead_letters(source: LogSource) -> _Letters | None:
    """Returns how often each (topic, offset) of an input partition was set aside; None if that cannot be known."""
    numbers = range(source.partitions(DEAD_LETTER))
    if not numbers or any(source.is_cut(DEAD_LETTER, number) for number in numbers):
        return None
    letters: _Letters = {}
    for number in numbers:
        for message in source.messages(DEAD_LETTER, number):
            headers = dict(message.headers)
            topic = headers.get("source_topic", b"").decode(errors="replace")
            kind = next((name for name in (IMPRESSIONS, FEEDBACK) if topic.endswith(name)), None)
            if kind is not None:  # the trainer sets examples aside in the same topic
                place = (kind, int(headers["source_offset"]))
                letters.setdefault(int(headers["source_partition"]), Counter())[place] += 1
    return letters


def _judge_letters(number: int, malformed: dict[tuple[str, int], bool], letters: _Letters, report: AuditReport) -> None:
    found = letters.get(number, Counter())
    for place in malformed.keys() | found.keys():
        topic, offset = place
        where = f"{topic} at offset {offset}"
        if found[place] > 1:
            text, fault = f"{where}: {found[place]} dead letters, 1 expected", "double"
        elif place not in malformed:
            text, fault = f"{where}: a dead letter of a message that can be decoded", "wrong"
        elif not found[place] and malformed[place]:
            text, fault = f"{where}: cannot be decoded, and has no dead letter", "lost"
        else:
            continue
        report.find(Finding(fault, number, "", "", "", text))  # type: ignore[arg-type]


class _Time(click.ParamType):
    """A time: ms since the epoch, or ISO 8601, in UTC unless it says otherwise."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int) or value.isdigit():
            return int(value)
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time; like 2026-05-31T08:00 or ms since 1970", param, ctx)
        return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1_000)


@click.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@run_options()
@click.option("--since", type=_Time(), default=0, metavar="TIME", help="Judge slates shown at or after TIME.")
@click.option("--until", type=_Time(), default=AuditRange().until_ms, metavar="TIME", help="... at or before TIME.")
@click.option(
    "--sample", type=click.FloatRange(0, 1, min_open=True), default=1.0, metavar="SHARE", help="Judge so many requests."
)
@click.option(
    "--lag-ms",
    type=click.IntRange(0),
    default=LAG_MS,
    show_default=True,
    help="How far behind the log the joiner may be before its labels are missed.",
)
@click.option(
    "--order",
    type=click.Choice(get_args(ReplayOrder)),
    default="ts",
    show_default=True,
    help="The order in which a recorded log in FOLDER was replayed.",
)
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="NEW_FOLDER",
    help="Write what was read into a folder, to be verified elsewhere.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
def verify_join(
    run: RunConfig,
    folder: Path | None,
    since: int,
    until: int,
    sample: float,
    lag_ms: int,
    order: ReplayOrder,
    save: Path | None,
    as_json: bool,
) -> int:
    """Verifies the joiner's labels: lost, double, contradictory, wrong.

    Reads impressions, feedback and examples from the broker of the run, or from FOLDER: one that --save has written,
    or a recorded log with the examples.arrow of its replay. Exit code 0: every label is as it must be; 1: some are not.

    \b
    Example:
      freshrank verify-join --config configs/production.yaml --since 2026-05-31 --until 2026-06-01 --json
    """  # noqa: D301 - click wants the character
    within = AuditRange(since_ms=since, until_ms=until, sample=sample)
    try:
        with _open(run, folder, order) as source:
            if save is not None:
                save_log(source, save)
                source = SavedSource(save)
            report = verify_log(
                source,
                run.schema,
                run.join,
                within,
                lag_ms=lag_ms,
                on_partition=lambda number: click.echo(f"partition {number} of {source.num_partitions}", err=True),
            )
    except ValueError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from error
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=1))
    else:
        show_report(report, sys.stdout)
    return ExitCode.OK if report.is_exact else ExitCode.DEFECT


@contextmanager
def _open(run: RunConfig, folder: Path | None, order: ReplayOrder) -> Iterator[LogSource]:
    if folder is not None:
        yield open_folder(folder, order)
        return
    from stream import kafka_adapter

    reader = kafka_adapter.reader(run.kafka)
    try:
        yield ReaderSource(reader, run.kafka, now_ms)
    finally:
        reader.close()


def show_report(report: AuditReport, out: TextIO) -> None:
    """Prints the report as tables, with the first faults."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(file=out)
    found = Table("task", "kind", Column("labels", justify="right"), Column("of them 1", justify="right"))
    for task, kinds in sorted(report.labels.items()):
        for kind, number in sorted(kinds.items()):
            found.add_row(task, kind, f"{number:,}", f"{report.positives[task][kind]:,}")
    console.print(found)
    console.print(
        f"{report.slates:,} slates with {report.judged:,} closed labels judged; "
        f"{report.impressions:,} impressions ({report.duplicates:,} duplicates), {report.feedback:,} feedback, "
        f"{report.rows:,} rows of examples, {report.outcomes:,} outcomes"
    )
    console.print("explained: " + ", ".join(f"{name} {getattr(report, name):,}" for name in _EXPLAINED))
    for finding in report.findings[:_SHOWN_FINDINGS]:
        where = " ".join(filter(None, (finding.request_id, finding.item_id, finding.task)))
        console.print(f"{finding.fault}: [{finding.partition}] {where}: {finding.text}", markup=False)
    console.print(", ".join(f"{name} {getattr(report, name):,}" for name in FAULTS))
