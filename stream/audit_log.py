"""One partition of a log under audit: its messages in, its faults into a report.

Feed `impressions`, then `feedback`, then `examples` and `outcomes`, each in offset order, then call `judge`. Messages
are decoded with the codec that everybody uses; everything else is the oracle's own.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from stream.audit import AuditReport, FaultName, Finding, judge
from stream.audit_outcomes import OutcomeAudit
from stream.codec import EventDecoder
from stream.exceptions import DecodeError
from stream.log import Message
from stream.oracle import Action, OracleConfig, Sent, histories, late_actions, timing
from stream.oracle_clock import ReachClock, ReadClock
from stream.schema import KINDS, Feedback, Impression, SchemaConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRange:
    """Which slates are judged: by event time in ms, both ends included, and by a hash of their request id."""

    since_ms: int = 0
    until_ms: int = 2**63 - 1
    sample: float = 1.0
    """Share of the requests."""

    def has(self, request_id: str) -> bool:
        """Returns whether a request is in the sample."""
        return self.sample >= 1 or zlib.crc32(request_id.encode()) < self.sample * 2**32


class _Slate(NamedTuple):
    offset: int
    ts: int
    bound_ms: int
    items: tuple[str, ...]


class _Found(NamedTuple):
    """One label in the log, when it went out and when it was logged; -1: unknown."""

    sent: Sent
    watermark_ms: int
    logged_ms: int


_Key = tuple[str, str]
"""(item, task)"""


class PartitionAudit:
    """Partition *i* of impressions, feedback and examples."""

    def __init__(
        self,
        partition: int,
        schema: SchemaConfig,
        config: OracleConfig,
        within: AuditRange,
        reach: ReachClock,
        report: AuditReport,
        *,
        slack_ms: int,
    ) -> None:
        self._partition = partition
        self._schema = schema
        self._config = config
        self._within = within
        self._reach = reach
        self._report = report
        self._decoder = EventDecoder(schema)
        self._clocks = {name: ReadClock(config, slack_ms=slack_ms) for name in ("impressions", "feedback")}
        self._slates: dict[str, _Slate] = {}
        self._reused: set[str] = set()
        self._actions: dict[str, dict[str, list[Action]]] = {}
        self._elsewhere: set[int] = set()
        """Hashes of the request ids that are out of range: their feedback is not unmatched."""
        self._expiries_ms: list[int] = []
        """Of feedback without a slate: until when its slate may come."""
        self._found: dict[str, dict[_Key, list[_Found]]] = {}
        self._emitted_ms = -1
        self._read_offset = -1
        """The last slate of which labels were found: all before it were read."""
        self._malformed: dict[tuple[str, int], int] = {}
        self._last_close_ms = schema.max_window_ms + config.grace_ms
        self._expire_after_ms = max(schema.max_window_ms, config.outcome_window_ms or 0) + config.grace_ms
        self._outcomes: OutcomeAudit | None = None
        if config.outcome_window_ms is not None:
            self._outcomes = OutcomeAudit(partition, schema, config, config.outcome_window_ms, report)

    def impression(self, message: Message) -> None:
        """Takes the next impression."""
        bound_ms = self._clocks["impressions"].read(message.timestamp_ms)
        event = self._decode("impressions", message, bound_ms)
        if not isinstance(event, Impression):
            return
        self._report.impressions += 1
        within, dup_ms = self._within, self._config.duplicate_ms
        # A copy of a slate may be dated a little before the range, and be the one that counts.
        if not (within.has(event.request_id) and within.since_ms - dup_ms <= event.ts <= within.until_ms + dup_ms):
            self._report.skipped += 1
            self._elsewhere.add(hash(event.request_id))
            return
        first = self._slates.get(event.request_id)
        if first is None:
            self._slates[event.request_id] = _Slate(message.offset, event.ts, bound_ms, tuple(event.items.id))
            if self._outcomes is not None:
                self._outcomes.impression(event, bound_ms)
            return
        self._report.duplicates += 1
        forgotten_ms = first.ts + self._last_close_ms + dup_ms
        if event.ts > first.ts + dup_ms and bound_ms > forgotten_ms and event.request_id not in self._reused:
            self._reused.add(event.request_id)
            self._report.reused += 1

    def feedback(self, message: Message) -> None:
        """Takes the next feedback."""
        bound_ms = self._clocks["feedback"].read(message.timestamp_ms)
        event = self._decode("feedback", message, bound_ms)
        if not isinstance(event, Feedback):
            return
        self._report.feedback += 1
        if not self._within.has(event.request_id):
            return
        slate = self._slates.get(event.request_id)
        if slate is None:
            # After retention has deleted slates, what came soon after may belong to one of them.
            is_cut = 0 < self._within.since_ms and event.ts <= self._within.since_ms + self._last_close_ms
            if not is_cut and hash(event.request_id) not in self._elsewhere:
                self._expiries_ms.append(event.ts + self._expire_after_ms)
            return
        if event.item_id not in slate.items:
            self._report.unmatched += 1
            return
        if self._outcomes is not None:
            self._outcomes.feedback(event, bound_ms)
        action = Action(event.action, event.ts, event.value, bound_ms)
        self._actions.setdefault(event.request_id, {}).setdefault(event.item_id, []).append(action)

    def examples(self, message: Message) -> None:
        """Takes the next message of examples.

        Raises:
            ValueError: it cannot be read, or was made under other settings.
        """
        for row in self._rows(message):
            self._report.rows += 1
            self._emitted_ms = max(self._emitted_ms, row["emitted_watermark_ms"])
            request_id = row["request_id"]
            if not self._is_in_range(request_id, row["ts"]):
                continue
            slate = self._slates.get(request_id)
            if slate is not None:
                self._read_offset = max(self._read_offset, slate.offset)
            found = self._found.setdefault(request_id, {})
            for task in self._schema.tasks:
                columns = (row["item_id"], row[f"kind.{task}"], row[f"label.{task}"], row[f"delay_ms.{task}"])
                for item, code, label, delay_ms in zip(*columns, strict=True):
                    if not code:
                        continue
                    sent = Sent(KINDS[code], label, delay_ms)
                    self._report.count(task, sent)
                    if slate is None or item not in slate.items:
                        whose = "a request" if slate is None else "an item"
                        text = f"{sent.kind} {label} found of {whose} that this partition never showed"
                        self._find("wrong", request_id, item, task, text)
                        continue
                    one = _Found(sent, row["emitted_watermark_ms"], message.timestamp_ms)
                    found.setdefault((item, task), []).append(one)

    def outcomes(self, message: Message) -> None:
        """Takes the next message of outcomes; without an `outcome_window_ms` in the settings nothing is made of it.

        Raises:
            ValueError: it cannot be read, or was made under other settings.
        """
        if self._outcomes is not None:
            self._outcomes.outcomes(message, self._is_in_range)

    def _is_in_range(self, request_id: str, ts: int) -> bool:
        return self._within.has(request_id) and self._within.since_ms <= ts <= self._within.until_ms

    def _rows(self, message: Message) -> Iterator[dict[str, Any]]:
        where = f"examples[{message.partition}] at offset {message.offset}"
        names = ["request_id", "ts", "emitted_watermark_ms", "item_id"]
        names += [f"{column}.{task}" for task in self._schema.tasks for column in ("kind", "label", "delay_ms")]
        try:
            table = pa.ipc.open_stream(pa.py_buffer(message.value)).read_all()
            table = table.select(names)
        except (pa.ArrowException, OSError, EOFError, KeyError) as error:
            raise ValueError(f"{where}: cannot be read: {error}") from error
        rows: list[dict[str, Any]] = table.to_pylist()
        if any(row["ts"] >= self._within.since_ms for row in rows):
            self._check_policies(table.schema.metadata or {}, where)
        for row in rows:
            if not all(0 <= code < len(KINDS) for task in self._schema.tasks for code in row[f"kind.{task}"]):
                raise ValueError(f"{where}: a kind that does not exist; allowed: 0 to {len(KINDS) - 1}")
        yield from rows

    def _check_policies(self, metadata: dict[bytes, bytes], where: str) -> None:
        for name, task in self._schema.tasks.items():
            settings = {
                "name": task.policy,
                "window_ms": task.window_ms,
                "grace_ms": self._config.grace_ms,
                "observe_ms": task.observe_ms,
            }
            made_under = json.loads(metadata.get(f"policy.{name}".encode(), b"{}"))
            if any(made_under.get(key) != value for key, value in settings.items()):
                raise ValueError(
                    f"{where}: tasks.{name} was {made_under}, and the configuration says {settings}; "
                    "verify with the settings of then, or only what came after the change (--since)"
                )

    def judge(self) -> None:
        """Judges everything that was fed, into the report."""
        reached_ms = max(self._reach.watermark_ms, self._emitted_ms)
        num_pending = sum(expiry_ms >= reached_ms for expiry_ms in self._expiries_ms)
        self._report.pending += num_pending
        self._report.unmatched += len(self._expiries_ms) - num_pending
        for request_id, slate in self._slates.items():
            if not self._within.since_ms <= slate.ts <= self._within.until_ms:
                self._report.skipped += 1
            elif request_id not in self._reused:
                self._report.slates += 1
                self._judge_slate(request_id, slate, reached_ms)
        if self._outcomes is not None:
            self._outcomes.judge_strangers(self._slates)

    def malformed(self) -> dict[tuple[str, int], bool]:
        """Returns which (topic, offset) belong into `dead-letter`, and whether they must be there already."""
        reached_ms = max(self._reach.watermark_ms, self._emitted_ms)
        return {place: reached_ms > bound_ms for place, bound_ms in self._malformed.items()}

    def _judge_slate(self, request_id: str, slate: _Slate, reached_ms: int) -> None:
        is_read = reached_ms > slate.bound_ms or slate.offset <= self._read_offset
        if self._outcomes is not None:
            self._outcomes.judge(request_id, reached_ms, is_read=is_read)
        found = self._found.get(request_id, {})
        report, config = self._report, self._config
        if slate.bound_ms > slate.ts + self._last_close_ms:
            # So late that it may have been refused; but then as a whole.
            report.late += not found
            report.late_accepted += bool(found)
            if not found:
                return
        actions_of = self._actions.get(request_id, {})
        missed: set[tuple[str, int]] = set()
        accepted: set[tuple[str, int]] = set()
        for item in slate.items:
            actions = actions_of.get(item, [])
            for name, task in self._schema.tasks.items():
                is_open = not is_read or reached_ms <= slate.ts + task.window_ms + config.grace_ms
                report.open += is_open
                report.judged += not is_open
                came = found.get((item, name), [])
                allowed = histories(task, config, slate.ts, slate.bound_ms, actions)
                verdict = judge([one.sent for one in came], allowed, is_open=is_open)
                for fault in verdict.faults:
                    self._find(fault.name, request_id, item, name, fault.text)
                for one in came:
                    self._check_time(request_id, item, name, slate, one)
                for index in late_actions(task, config, slate.ts, slate.bound_ms, actions):
                    if index == verdict.history.action:
                        accepted.add((item, index))
                    elif verdict.history.action is None or index < verdict.history.action:
                        missed.add((item, index))
        report.late += len(missed - accepted)
        report.late_accepted += len(accepted)

    def _check_time(self, request_id: str, item: str, task: str, slate: _Slate, one: _Found) -> None:
        after_ms, until_ms = timing(self._schema.tasks[task], self._config, slate.ts, slate.bound_ms, one.sent)
        what = f"{one.sent.kind} {one.sent.label} sent at watermark {one.watermark_ms}"
        if after_ms is not None and one.watermark_ms <= after_ms:
            self._find("wrong", request_id, item, task, f"{what}, before it passed {after_ms}")
        elif until_ms is not None and one.watermark_ms > until_ms:
            self._find("wrong", request_id, item, task, f"{what}, after the window closed at {until_ms}")
        elif 0 <= one.logged_ms < one.watermark_ms - self._config.max_ahead_ms:
            self._find("wrong", request_id, item, task, f"{what}, which was in the future: logged at {one.logged_ms}")

    def _find(self, fault: FaultName, request_id: str, item: str, task: str, text: str) -> None:
        self._report.find(Finding(fault, self._partition, request_id, item, task, text))

    def _decode(self, topic: str, message: Message, bound_ms: int) -> Impression | Feedback | None:
        """Returns the event of a message; None of one that the joiner must refuse."""
        decode = self._decoder.impression if topic == "impressions" else self._decoder.feedback
        try:
            event: Impression | Feedback = decode(message.value)
        except DecodeError:
            event_ms = -1
        else:
            event_ms = event.ts
            is_refused = 0 < message.timestamp_ms < event_ms - self._config.refuse_ahead_ms
            if not is_refused:
                self._clocks[topic].observe(event_ms)
                self._reach.observe(topic, event_ms, message.timestamp_ms)
                return event
        self._report.malformed += 1
        self._malformed[topic, message.offset] = bound_ms
        return None
