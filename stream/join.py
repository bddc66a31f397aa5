"""The join core: impressions and feedback in, labels out. Pure: no I/O, no clock; event time decides everything.

    slate                        slate + window                slate + window + grace
      |--- action counts, both ends ---|--- only waiting for it ---|--- watermark in here: closed, negative is final

One core serves one partition pair (the same partition number of both topics). It is given every message in offset
order per topic, in any order between the two, and a watermark that never moves back. What it knows of the open slates
is a function of the messages and the watermark alone, not of how the two topics were interleaved: that is what makes
recovery from the log exact. The rules here are chosen for it and `docs/joiner.md` proves it; change none without both.

- An impression is *late* when the watermark has passed the close of its longest window. Before that it is a slate, even
  if some of its shorter windows have closed: those are settled at once, from the feedback that is already here.
- A `request_id` seen before is the *same slate sent again*, whatever its event time says. To recognise it, a slate is
  remembered for `duplicate_ms` beyond its last close.
- Feedback before its impression is *pending* until no impression that it could belong to would be accepted any more.
- A label becomes positive once, by the first qualifying feedback in offset order that finds it open. `event_id` decides
  only under which name a feedback without effect is counted.
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from stream.due import DueQueue
from stream.emission import Emission, JoinCounters, LabelColumn
from stream.policy import POLICIES, Policy
from stream.schema import Feedback, Impression, KindName, SchemaConfig
from stream.watermark import NO_WATERMARK, has_passed


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinConfig:
    """How long to wait for events, and how often to commit."""

    grace_ms: int = 2_000
    """How much longer than the label window to wait for an action to arrive, in ms of event time; at least 0."""
    out_of_orderness_ms: int = 2_000
    """How much older than the newest event of its topic an event may be without being late, in ms; at least 0."""
    max_ahead_ms: int = 1_000
    """An event dated further than this after the processing clock moves the watermark only up to there, in ms; 0 to
    `out_of_orderness_ms`, so that no wrong clock can carry the watermark past the present."""
    refuse_ahead_ms: int = 3_600_000
    """An event dated further than this after the log's own timestamp of its message is malformed, in ms; at least
    `max_ahead_ms`. It would hold its slate open, and the log with it, until that date."""
    idle_ms: int = 2_000
    """A topic read to its end no longer holds the watermark back once nothing came for so long, in ms; at least 1."""
    duplicate_ms: int = 10_000
    """How far apart in event time the same slate may be sent again under one `request_id`, in ms; at least 0.
    Slates are remembered, and replayed after a restart, for this much longer than their label windows."""
    commit_interval_ms: int = 100
    """Time between two commits, in ms of processing time; at least 1. Labels are visible only once committed."""
    batch_items: int = 512
    """Most items in one message of `examples`; at least 1."""

    def __post_init__(self) -> None:
        at_least = {
            "grace_ms": 0,
            "out_of_orderness_ms": 0,
            "max_ahead_ms": 0,
            "refuse_ahead_ms": self.max_ahead_ms,
            "idle_ms": 1,
            "duplicate_ms": 0,
            "commit_interval_ms": 1,
            "batch_items": 1,
        }
        for name, low in at_least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {low}")
        if self.max_ahead_ms > self.out_of_orderness_ms:
            raise ValueError(
                f"max_ahead_ms: {self.max_ahead_ms} is not allowed; at most out_of_orderness_ms, "
                f"{self.out_of_orderness_ms}"
            )


class Resume(NamedTuple):
    """Where the last committed transaction ended: outputs up to here are in the log and must not go out again."""

    next_impression: int = 0
    """Offset of the first impression that no committed transaction has read."""
    next_feedback: int = 0
    """Offset of the first feedback that no committed transaction has read."""
    watermark_ms: int = NO_WATERMARK
    """Watermark up to which closes have been emitted."""


class _Task(NamedTuple):
    name: str
    window_ms: int
    at_least: float
    policy: Policy


class _Stage(NamedTuple):
    """The tasks that share a window, and so a close."""

    close_after_ms: int
    tasks: list[_Task]


_Closed = tuple[list[int], dict[str, LabelColumn]]
"""Rows and columns of the emission at a close."""


class _Slate:
    """A slate until it is forgotten: open while `stage` counts the closes it has behind it, then a tombstone."""

    __slots__ = ("impression", "offset", "positives", "seen", "stage")

    def __init__(self, impression: Impression, offset: int) -> None:
        self.impression = impression
        self.offset = offset
        self.stage = 0
        self.positives: dict[str, dict[int, int]] | None = None
        """Task -> row -> delay_ms of its first qualifying feedback."""
        self.seen: set[str] | None = None
        """`event_id`s of the feedback observed so far."""


class _Held:
    """Feedback that the state still rests on: pending, or what made a label of an open slate positive."""

    __slots__ = ("feedback", "is_new", "is_pending", "offset", "slate")

    def __init__(self, feedback: Feedback, offset: int, is_new: bool) -> None:
        self.feedback = feedback
        self.offset = offset
        self.is_new = is_new
        self.is_pending = True
        self.slate: _Slate | None = None


_POSITIVE, _LATE, _REPEAT, _BELOW, _OUTSIDE = range(5)
"""What one feedback can mean to one task; of several tasks the first in this order names its counter."""
_COUNTER = ("feedback_positive", "feedback_late", "feedback_repeat", "feedback_below", "feedback_outside_window")


class JoinCore:
    """Joins one partition pair. Feed it with `observe_*`, move time with `advance`; all three return what goes out.

    `resume` (default: nothing was ever committed) says what is already in the log: the core then expects the messages
    from the committed offsets on, rebuilds its state from them and emits only what was not committed.

    >>> from stream.schema import Items, TaskConfig
    >>> schema = SchemaConfig(scenarios=("home",), tasks={"click": TaskConfig(action="click", window_ms=60_000)})
    >>> core = JoinCore(schema, JoinConfig(grace_ms=2_000))
    >>> core.observe_impression(Impression("r", "u", "home", 0, Items(id=["a", "b"])), offset=0)
    []
    >>> click = Feedback("r", "u", "a", "click", ts=5_000, event_id="e")
    >>> [list(e.labels()) for e in core.observe_feedback(click, offset=0)]
    [[ItemLabel(request_id='r', item_id='a', task='click', kind='final', label=1, delay_ms=5000)]]
    >>> core.advance(62_000)
    []
    >>> [list(e.labels()) for e in core.advance(62_001)]
    [[ItemLabel(request_id='r', item_id='b', task='click', kind='final', label=0, delay_ms=-1)]]
    """

    def __init__(self, schema: SchemaConfig, config: JoinConfig, resume: Resume = Resume()) -> None:
        self._resume = resume
        self._watermark_ms = resume.watermark_ms
        self._tasks_of_action: dict[str, list[tuple[int, _Task]]] = {}
        self._stages: list[_Stage] = []
        tasks_by_window: dict[int, list[_Task]] = {}
        for name, task in schema.tasks.items():
            low = float("-inf") if task.at_least is None else task.at_least
            tasks_by_window.setdefault(task.window_ms, []).append(
                _Task(name, task.window_ms, low, POLICIES[task.policy])
            )
        for stage, window_ms in enumerate(sorted(tasks_by_window)):
            self._stages.append(_Stage(window_ms + config.grace_ms, tasks_by_window[window_ms]))
            for joined in tasks_by_window[window_ms]:
                self._tasks_of_action.setdefault(schema.tasks[joined.name].action, []).append((stage, joined))
        self._last_close_after_ms = self._stages[-1].close_after_ms
        self._remember_ms = self._last_close_after_ms + config.duplicate_ms
        # What is due next for a slate: its close number `stage`, or, after the last, to be forgotten.
        self._due_after_ms = [stage.close_after_ms for stage in self._stages] + [self._remember_ms]

        self._slates: dict[str, _Slate] = {}
        self._pending: dict[str, list[_Held]] = {}
        self._due: DueQueue[_Slate] = DueQueue()
        self._expiries: DueQueue[_Held] = DueQueue()
        self._negatives: dict[tuple[int, int], _Closed] = {}
        # In offset order; what is no longer needed is dropped when it comes to the front.
        self._slates_by_offset: deque[_Slate] = deque()
        self._held_by_offset: deque[_Held] = deque()
        self.counters = JoinCounters()

    @property
    def watermark_ms(self) -> int:
        """The watermark up to which closes have been emitted."""
        return self._watermark_ms

    @property
    def num_slates(self) -> int:
        """Slates in memory: open ones, and those remembered to recognise duplicates."""
        return len(self._slates)

    @property
    def num_pending(self) -> int:
        """Feedback waiting for its impression."""
        return sum(map(len, self._pending.values()))

    def observe_impression(self, impression: Impression, offset: int) -> list[Emission]:
        """Takes one slate; returns labels of feedback that came before it, and of windows that are closed already."""
        counters = self.counters
        is_new = offset >= self._resume.next_impression
        request_id, slate_ms = impression.request_id, impression.ts
        counters.impressions += is_new
        if request_id in self._slates:
            counters.impression_duplicate += is_new
            return []
        if has_passed(self._watermark_ms, slate_ms + self._remember_ms):
            counters.impression_late += is_new
            return []
        slate = _Slate(impression, offset)
        self._slates[request_id] = slate
        self._slates_by_offset.append(slate)
        is_late = has_passed(self._watermark_ms, slate_ms + self._last_close_after_ms)
        if is_late:
            # Only a tombstone: it must shadow a copy of itself that is dated a little later and would not be late.
            slate.stage = len(self._stages)
            counters.impression_late += is_new
        else:
            counters.slates += is_new
            counters.items += len(impression.items.id) * is_new
        emissions: list[Emission] = []
        if not is_new:
            # What was closed at the last commit is in the log: feedback read only since then must not reopen it.
            self._settle(slate, emissions)
        for held in self._pending.pop(request_id, ()):
            held.is_pending = False
            self._judge(held, slate, emissions)
        self._settle(slate, emissions)
        self._due.add(slate_ms + self._due_after_ms[slate.stage], slate)
        return emissions

    def observe_feedback(self, feedback: Feedback, offset: int) -> list[Emission]:
        """Takes one action; returns the labels it makes known, if its slate is here and the policy wants them now."""
        counters = self.counters
        is_new = offset >= self._resume.next_feedback
        counters.feedback += is_new
        if feedback.action not in self._tasks_of_action:
            counters.feedback_unknown_action += is_new
            return []
        held = _Held(feedback, offset, is_new)
        slate = self._slates.get(feedback.request_id)
        if slate is not None:
            held.is_pending = False
            emissions: list[Emission] = []
            self._judge(held, slate, emissions)
            if held.slate is not None:
                self._held_by_offset.append(held)
            return emissions
        expiry_ms = feedback.ts + self._last_close_after_ms
        if has_passed(self._watermark_ms, expiry_ms):
            counters.feedback_unmatched += is_new
            return []
        self._pending.setdefault(feedback.request_id, []).append(held)
        self._held_by_offset.append(held)
        self._expiries.add(expiry_ms, held)
        return []

    def advance(self, watermark_ms: int) -> list[Emission]:
        """Moves the watermark, never back; returns the labels of the windows it closes, in order of their close."""
        emissions: list[Emission] = []
        if watermark_ms <= self._watermark_ms:
            return emissions
        self._watermark_ms = watermark_ms
        for slate in self._due.take(watermark_ms):
            if slate.stage == len(self._stages):
                del self._slates[slate.impression.request_id]
                slate.stage += 1
                continue
            self._close(slate, emissions)
            self._due.add(slate.impression.ts + self._due_after_ms[slate.stage], slate)
        for held in self._expiries.take(watermark_ms):
            if held.is_pending:
                held.is_pending = False
                self._forget_pending(held)
                self.counters.feedback_unmatched += held.is_new
        emissions.sort(key=_trigger_ms)
        return emissions

    def oldest_needed(self, next_impression: int, next_feedback: int) -> tuple[int, int]:
        """Returns the offsets to commit: from there on, the two topics rebuild this state.

        The arguments are the offsets after the last message observed of each topic: the answer where nothing older is
        needed. Amortised constant time.
        """
        slates, held = self._slates_by_offset, self._held_by_offset
        forgotten, num_stages = len(self._stages) + 1, len(self._stages)
        while slates and slates[0].stage == forgotten:
            slates.popleft()
        while held and not held[0].is_pending and (held[0].slate is None or held[0].slate.stage >= num_stages):
            held.popleft()
        return (
            slates[0].offset if slates else next_impression,
            held[0].offset if held else next_feedback,
        )

    def _judge(self, held: _Held, slate: _Slate, emissions: list[Emission]) -> None:
        """Applies one feedback to its slate: at most one label per task becomes positive, one counter goes up."""
        feedback = held.feedback
        try:
            row = slate.impression.items.id.index(feedback.item_id)
        except ValueError:
            self.counters.feedback_unknown_item += held.is_new
            return
        delay_ms = feedback.ts - slate.impression.ts
        meaning = _OUTSIDE
        columns: dict[str, LabelColumn] = {}
        for stage, task in self._tasks_of_action[feedback.action]:
            if not 0 <= delay_ms <= task.window_ms:
                continue
            if not feedback.value >= task.at_least:
                meaning = min(meaning, _BELOW)
                continue
            positives = slate.positives.get(task.name) if slate.positives is not None else None
            if positives is not None and row in positives:
                meaning = min(meaning, _REPEAT)
            elif slate.stage > stage:
                meaning = min(meaning, _LATE)
            else:
                meaning = _POSITIVE
                if slate.positives is None:
                    slate.positives = {}
                slate.positives.setdefault(task.name, {})[row] = delay_ms
                held.slate = slate
                if task.policy.positive is not None:
                    columns[task.name] = LabelColumn([task.policy.positive], [1], [delay_ms])
        self._count_feedback(held, slate, meaning)
        if columns and not self._is_committed(slate, held):
            self._emit(emissions, Emission(slate.impression, [row], columns, feedback.ts, self._watermark_ms))

    def _count_feedback(self, held: _Held, slate: _Slate, meaning: int) -> None:
        event_id = held.feedback.event_id
        if slate.seen is None:
            slate.seen = set()
        is_again = event_id in slate.seen
        slate.seen.add(event_id)
        if held.is_new:
            name = "feedback_duplicate" if is_again and meaning != _POSITIVE else _COUNTER[meaning]
            setattr(self.counters, name, getattr(self.counters, name) + 1)

    def _is_committed(self, slate: _Slate, held: _Held) -> bool:
        """Returns whether what this feedback made known about this slate is in the log already."""
        return slate.offset < self._resume.next_impression and held.offset < self._resume.next_feedback

    def _settle(self, slate: _Slate, emissions: list[Emission]) -> None:
        """Closes the windows of a new slate that the watermark has passed already."""
        slate_ms = slate.impression.ts
        while slate.stage < len(self._stages) and has_passed(
            self._watermark_ms, slate_ms + self._stages[slate.stage].close_after_ms
        ):
            self._close(slate, emissions)

    def _close(self, slate: _Slate, emissions: list[Emission]) -> None:
        """Makes the labels of the slate's next stage final."""
        stage = self._stages[slate.stage]
        slate.stage += 1
        close_ms = slate.impression.ts + stage.close_after_ms
        if slate.offset < self._resume.next_impression and has_passed(self._resume.watermark_ms, close_ms):
            return
        num_items = len(slate.impression.items.id)
        if slate.positives is None:
            rows, columns = self._all_negative(slate.stage, num_items)
        else:
            rows, columns = _closed(stage, slate.positives, num_items)
        if rows:
            self._emit(emissions, Emission(slate.impression, rows, columns, close_ms, self._watermark_ms))

    def _all_negative(self, stage: int, num_items: int) -> _Closed:
        """Returns what goes out where nothing was positive: the usual case, and always the same."""
        closed = self._negatives.get((stage, num_items))
        if closed is None:
            closed = self._negatives[stage, num_items] = _closed(self._stages[stage - 1], {}, num_items)
        return closed

    def _emit(self, emissions: list[Emission], emission: Emission) -> None:
        counters = self.counters
        counters.emissions += 1
        for kind, label, _ in emission.columns.values():
            num_labels = len(kind) - kind.count("none")
            num_positives = sum(label)
            counters.labels += num_labels
            counters.positives += num_positives
            counters.negatives += num_labels - num_positives
        emissions.append(emission)

    def _forget_pending(self, held: _Held) -> None:
        request_id = held.feedback.request_id
        waiting = self._pending[request_id]
        waiting.remove(held)
        if not waiting:
            del self._pending[request_id]


def _closed(stage: _Stage, positives: dict[str, dict[int, int]], num_items: int) -> _Closed:
    """Returns the rows of a slate that go out at one of its closes, and their labels."""
    columns: dict[str, LabelColumn] = {}
    for task in stage.tasks:
        kind: list[KindName] = [task.policy.close_negative or "none"] * num_items
        label, delay_ms = [0] * num_items, [-1] * num_items
        for row, row_delay_ms in positives.get(task.name, {}).items():
            kind[row] = task.policy.close_positive or "none"
            if task.policy.close_positive is not None:
                label[row], delay_ms[row] = 1, row_delay_ms
        columns[task.name] = LabelColumn(kind, label, delay_ms)
    rows = [row for row in range(num_items) if any(column.kind[row] != "none" for column in columns.values())]
    if len(rows) < num_items:
        for name, (kinds, labels, delays_ms) in columns.items():
            columns[name] = LabelColumn(
                [kinds[row] for row in rows], [labels[row] for row in rows], [delays_ms[row] for row in rows]
            )
    return rows, columns


def _trigger_ms(emission: Emission) -> int:
    return emission.trigger_ms
