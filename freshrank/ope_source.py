"""Explored requests of a whole log: from the topic `outcomes`, or joined again from a recorded log."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from freshrank.log_source import LogSource, SavedSource
from freshrank.outcome_rows import decode_outcomes
from stream.join import JoinConfig, JoinCore
from stream.log import OUTCOMES
from stream.outcomes import OutcomeEncoder
from stream.recorded import RecordedLog
from stream.schema import Impression, SchemaConfig
from utility_blender.outcomes import Outcomes, concat

_PART = 5_000


def outcomes_of_folder(folder: Path, schema: SchemaConfig, join: JoinConfig) -> Outcomes:
    """Returns the explored requests of a saved or a recorded log, those with a density.

    A recorded log is joined by event time, with `join.outcome_window_ms`, else the longest window of the tasks.

    Raises:
        ValueError: the folder holds no log, a message cannot be read, or nothing was explored.
    """
    if (folder / "log.json").exists():
        return outcomes_of_source(SavedSource(folder), schema)
    return _united(_joined(folder, schema, join), schema, f"{folder}: no explored request with logged candidates")


def outcomes_of_source(source: LogSource, schema: SchemaConfig) -> Outcomes:
    """Returns the explored requests of the topic `outcomes`.

    Raises:
        ValueError: a message cannot be read, or there is none.
        LogUnavailableError: the broker is gone.
    """
    partitions = range(source.partitions(OUTCOMES))
    values = (message.value for number in partitions for message in source.messages(OUTCOMES, number))
    return _united(
        (value for value in values if value), schema, "outcomes: no explored request; is explore.share above 0?"
    )


def _united(values: Iterator[bytes], schema: SchemaConfig, nothing: str) -> Outcomes:
    parts = [part for value in values if (part := decode_outcomes(value, schema)).num_requests]
    if not parts:
        raise ValueError(nothing)
    return concat(parts)


def _joined(folder: Path, schema: SchemaConfig, join: JoinConfig) -> Iterator[bytes]:
    window_ms = schema.max_window_ms if join.outcome_window_ms is None else join.outcome_window_ms
    core = JoinCore(schema, replace(join, outcome_window_ms=window_ms))
    encoder = OutcomeEncoder(schema, outcome_window_ms=window_ms, grace_ms=join.grace_ms)
    clock_ms = 0
    with RecordedLog(folder, schema) as log:
        for number, (event, clock_ms) in enumerate(log):
            if isinstance(event, Impression):
                core.observe_impression(event, number)
            else:
                core.observe_feedback(event, number)
            core.advance(clock_ms - join.out_of_orderness_ms)
            if len(core.outcomes) >= _PART:
                yield from encoder.encode(core.outcomes)
                core.outcomes.clear()
    core.advance(clock_ms + window_ms + join.grace_ms + 1)
    yield from encoder.encode(core.outcomes)
