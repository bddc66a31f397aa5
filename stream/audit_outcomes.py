"""The outcomes of one partition of a log under audit: what must have come of its explored slates, once each.

Shares no code with the joiner, like `stream.audit_log`, which feeds it and says which slates to judge.
"""

import sys
from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from stream.audit import AuditReport, FaultName, Finding
from stream.log import Message
from stream.oracle import OracleConfig
from stream.schema import CONTROL_LAW, Feedback, Impression, SchemaConfig

_COLUMNS = ["request_id", "ts", "emitted_watermark_ms", "item_id"]
_ACTION_COLUMNS = [f"action.{name}" for name in ("position", "name", "value", "first_ts")]
_LARGEST = sys.float_info.max

Deeds = dict[tuple[str, str], tuple[float, int]]
"""(item, action) -> sum of the values, earliest event time."""


class _Found(NamedTuple):
    """One row of the log."""

    watermark_ms: int
    candidates: list[str]
    deeds: Deeds


class _Explored(NamedTuple):
    """An explored slate, the largest watermark there can have been when it was read, and what was done on it."""

    slate: Impression
    bound_ms: int
    actions: list[tuple[Feedback, int]]


class OutcomeAudit:
    """Outcomes of partition *i*. `window_ms` is the joiner's `outcome_window_ms`."""

    def __init__(
        self, partition: int, schema: SchemaConfig, config: OracleConfig, window_ms: int, report: AuditReport
    ) -> None:
        self._partition = partition
        self._schema = schema
        self._grace_ms = config.grace_ms
        self._window_ms = window_ms
        self._report = report
        self._explored: dict[str, _Explored] = {}
        self._found: dict[str, list[_Found]] = {}

    def impression(self, slate: Impression, bound_ms: int) -> None:
        """Takes the next slate that was not shown before."""
        if self._must_have_one(slate):
            self._explored[slate.request_id] = _Explored(slate, bound_ms, [])

    def feedback(self, action: Feedback, bound_ms: int) -> None:
        """Takes the next action on a shown item of any slate."""
        explored = self._explored.get(action.request_id)
        if explored is not None and 0 <= action.ts - explored.slate.ts <= self._window_ms:
            explored.actions.append((action, bound_ms))

    def outcomes(self, message: Message, is_in_range: Callable[[str, int], bool]) -> None:
        """Takes the next message of outcomes; `is_in_range` says of (request id, time) what is to be judged.

        Raises:
            ValueError: it cannot be read, or was made under other settings.
        """
        for row in self._rows(message):
            if not is_in_range(row["request_id"], row["ts"]):
                continue
            deeds: Deeds = {}
            for position, name, value, first_ms in zip(*(row[column] for column in _ACTION_COLUMNS), strict=True):
                deeds[row["item_id"][position], name] = (value, first_ms)
            found = _Found(row["emitted_watermark_ms"], row["item_id"], deeds)
            self._found.setdefault(row["request_id"], []).append(found)

    def judge(self, request_id: str, reached_ms: int, *, is_read: bool) -> None:
        """Judges one slate; `reached_ms` is the watermark that was reached for certain."""
        found = self._found.pop(request_id, [])
        explored = self._explored.get(request_id)
        if explored is None:
            if found:
                self._find("wrong", request_id, "an outcome of a slate that is not explored, or lacks what one needs")
            return
        slate = explored.slate
        close_ms = slate.ts + self._window_ms + self._grace_ms
        is_late = explored.bound_ms > close_ms
        if not found and not is_late and is_read and reached_ms > close_ms:
            self._find("lost", request_id, "an outcome expected, none found")
        for _ in found[1:]:
            self._find("double", request_id, "an outcome found beyond the one expected")
        self._report.outcomes += bool(found)
        for outcome in found[:1]:
            if outcome.watermark_ms <= close_ms:
                text = f"an outcome sent at watermark {outcome.watermark_ms}, before it passed {close_ms}"
                self._find("wrong", request_id, text)
            candidates = [*slate.items.id, *(slate.candidates.id if slate.candidates is not None else [])]
            if outcome.candidates != candidates:
                self._find("wrong", request_id, f"candidates {candidates} expected, {outcome.candidates} found")
            expected = _deeds(explored.actions)
            is_certain = not is_late and all(bound_ms <= close_ms for _, bound_ms in explored.actions)
            if is_certain and outcome.deeds != expected:
                self._find("wrong", request_id, f"actions {expected} expected, {outcome.deeds} found")

    def judge_strangers(self, shown: Container[str]) -> None:
        """Judges the outcomes of requests that were never shown."""
        for request_id in self._found:
            if request_id not in shown:
                self._find("wrong", request_id, "an outcome of a request that this partition never showed")

    def _must_have_one(self, slate: Impression) -> bool:
        served, others, tasks = slate.served, slate.candidates, self._schema.tasks
        if served is None:
            return False
        if served.law == CONTROL_LAW and others is None:
            logged = (served.weights, served.center, served.scale, slate.items.scores)
            return all(task in by_task and served.scale[task] > 0 for task in tasks for by_task in logged)
        if others is None or not served.explore or served.log_density is None:
            return False
        if served.law != "grid" and (served.law != "lognormal" or None in (served.tau, served.truncate)):
            return False
        ids = slate.items.id + others.id
        of_draw = (served.weights, served.center, served.scale, slate.items.scores, others.scores)
        has_all = all(task in by_task for task in tasks for by_task in of_draw)
        return has_all and len(ids) == len(set(ids)) and min(served.scale[task] for task in tasks) > 0

    def _rows(self, message: Message) -> Iterator[dict[str, Any]]:
        where = f"outcomes[{message.partition}] at offset {message.offset}"
        try:
            table = pa.ipc.open_stream(pa.py_buffer(message.value)).read_all()
            metadata = table.schema.metadata or {}
            table = table.select([*_COLUMNS, *_ACTION_COLUMNS])
        except (pa.ArrowException, OSError, EOFError, KeyError) as error:
            raise ValueError(f"{where}: cannot be read: {error}") from error
        for name, expected in (("outcome_window_ms", self._window_ms), ("grace_ms", self._grace_ms)):
            if metadata.get(name.encode()) != str(expected).encode():
                raise ValueError(
                    f"{where}: {name} was {metadata.get(name.encode(), b'?').decode()}, and the configuration says "
                    f"{expected}; verify with the settings of then"
                )
        yield from table.to_pylist()

    def _find(self, fault: FaultName, request_id: str, text: str) -> None:
        self._report.find(Finding(fault, self._partition, request_id, "", "", text))


def _deeds(actions: list[tuple[Feedback, int]]) -> Deeds:
    """Returns what was done, each `event_id` once, the first logged."""
    deeds: Deeds = {}
    met: set[str] = set()
    for action, _ in actions:
        if action.event_id not in met:
            met.add(action.event_id)
            value, first_ms = deeds.get((action.item_id, action.action), (0.0, action.ts))
            value = max(-_LARGEST, min(_LARGEST, value + action.value))
            deeds[action.item_id, action.action] = (value, min(first_ms, action.ts))
    return deeds
