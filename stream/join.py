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
- An explored slate has one window more, in which `stream.tally` adds up what the user does: its close is the slate's
  last, and sends its outcome.
- What goes out at which trigger is the task's policy (`stream.policy`); a positive beyond the early look waits for it,
  so that it always follows its negative.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from stream.emission import Emission, JoinCounters, LabelColumn, Outcome
from stream.schema import MAX_WINDOW_MS, Feedback, Impression, SchemaConfig
from stream.state import Held, JoinState, Slate
from stream.tally import Tally, is_complete, wants_outcome
from stream.timeline import Output, Task, Timeline, at_feedback
from stream.traffic import Traffic
from stream.watermark import NO_WATERMARK, has_passed

WhenLost = Literal["stop", "give_up"]


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
    outcome_window_ms: int | None = None
    """Reward window of explored requests, in ms after the slate: all actions within it make up the outcome that goes
    out when it closes. At least the longest window of the tasks, or it would leave out actions that the scores
    predict; at most 2147483647. Longer than that, feedback without a slate waits longer too. None: no outcomes."""
    when_lost: WhenLost = "stop"
    """What to do where retention has deleted messages that open slates still need: `stop` refuses to take the
    partition up, `give_up` leaves these slates without the labels that are not out yet, and counts the messages."""

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
        if self.outcome_window_ms is not None and not 1 <= self.outcome_window_ms <= MAX_WINDOW_MS:
            raise ValueError(
                f"outcome_window_ms: {self.outcome_window_ms} is not allowed; 1 to {MAX_WINDOW_MS}, or none"
            )
        if self.when_lost not in get_args(WhenLost):
            raise ValueError(f"when_lost: {self.when_lost!r} is not one of {', '.join(get_args(WhenLost))}")
        if self.max_ahead_ms > self.out_of_orderness_ms:
            raise ValueError(
                f"max_ahead_ms: {self.max_ahead_ms} is not allowed; at most out_of_orderness_ms, "
                f"{self.out_of_orderness_ms}"
            )


def remember_ms(schema: SchemaConfig, config: JoinConfig) -> int:
    """Returns for how long a slate can be remembered, in ms of event time: to its last close, and for its copies."""
    return max(schema.max_window_ms, config.outcome_window_ms or 0) + config.grace_ms + config.duplicate_ms


def replay_span_ms(schema: SchemaConfig, config: JoinConfig) -> int:
    """Returns how old, in ms of event time, a message may be that a restart must read again: the log must keep it.

    A slate is needed until the watermark passes its last close + `duplicate_ms`, traffic counts for two windows; the
    watermark itself runs `out_of_orderness_ms` behind the newest event.
    """
    kept_ms = [remember_ms(schema, config)]
    kept_ms += [traffic.keep_ms for traffic in _traffic(schema, config).values()]
    return max(kept_ms) + config.out_of_orderness_ms


def _traffic(schema: SchemaConfig, config: JoinConfig) -> dict[str, Traffic]:
    return {
        name: Traffic(task.window_ms, config.grace_ms, config.out_of_orderness_ms)
        for name, task in schema.tasks.items()
        if task.has_traffic_ratio
    }


class Resume(NamedTuple):
    """Where the last committed transaction ended: outputs up to here are in the log and must not go out again."""

    next_impression: int = 0
    """Offset of the first impression that no committed transaction has read."""
    next_feedback: int = 0
    """Offset of the first feedback that no committed transaction has read."""
    watermark_ms: int = NO_WATERMARK
    """Watermark up to which closes have been emitted."""


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

    def __init__(
        self,
        schema: SchemaConfig,
        config: JoinConfig,
        resume: Resume = Resume(),
        state: JoinState | None = None,
    ) -> None:
        self._resume = resume
        self._watermark_ms = resume.watermark_ms
        self._timeline = Timeline(schema, config.grace_ms, config.outcome_window_ms)
        self._num_label_stages = len(self._timeline.stages)
        self._tasks = tuple(schema.tasks)
        self._tasks_of_action = self._timeline.tasks_of_action
        self._outcome_window_ms = config.outcome_window_ms
        # When what is due next for a slate is: its stage number `stage`, or, after the last, to be forgotten.
        plain_ms, explored_ms = self._timeline.edges_ms, self._timeline.explored_edges_ms
        self._due_after_ms = [*plain_ms, plain_ms[-1] + config.duplicate_ms]
        self._explored_due_after_ms = [*explored_ms, explored_ms[-1] + config.duplicate_ms]
        self._expire_after_ms = explored_ms[-1]
        self._traffic = _traffic(schema, config)
        self._state = JoinState() if state is None else state
        self.counters = JoinCounters()
        self.outcomes: list[Outcome] = []
        """What explored slates came to, in order of their closes; the caller empties it when it is committed."""
        self._pass_due([])

    @property
    def watermark_ms(self) -> int:
        """The watermark up to which closes have been emitted."""
        return self._watermark_ms

    @property
    def state(self) -> JoinState:
        """The remembered slates and pending feedback. For metrics and snapshots; do not touch."""
        return self._state

    @property
    def traffic(self) -> dict[str, Traffic]:
        """Traffic counts of the tasks that need them. For snapshots."""
        return self._traffic

    def observe_impression(self, impression: Impression, offset: int) -> list[Emission]:
        """Takes one slate; returns the labels that go out at once.

        They are those that are sent before anything is known, those of feedback that came before the slate, and those
        of windows that are closed already.
        """
        counters = self.counters
        is_new = offset >= self._resume.next_impression
        slate_ms = impression.ts
        counters.impressions += is_new
        for traffic in self._traffic.values():
            traffic.observe(impression.scenario, slate_ms, offset)
        known = self._state.find(impression.request_id)
        if known is not None:
            if is_new:
                counters.impression_duplicate += 1
                counters.impression_conflict += _differ(known.impression, impression)
            return []
        tally = None if self._outcome_window_ms is None else self._new_tally(impression)
        due_after_ms = self._due_after_ms if tally is None else self._explored_due_after_ms
        if has_passed(self._watermark_ms, slate_ms + due_after_ms[-1]):
            counters.impression_late += is_new
            return []
        slate = Slate(impression, offset, tally)
        emissions: list[Emission] = []
        if has_passed(self._watermark_ms, slate_ms + due_after_ms[-2]):
            # Only a tombstone: it must shadow a copy of itself that is dated a little later and would not be late.
            slate.stage = len(due_after_ms) - 1
            counters.impression_late += is_new
        elif is_new:
            counters.slates += 1
            counters.items += len(impression.items.id)
            if tally is not None:
                counters.explored += 1
            elif self._outcome_window_ms is not None:
                counters.explored_incomplete += wants_outcome(impression)
            if self._timeline.has_at_once:
                self._emit(emissions, slate, self._timeline.at_once(len(impression.items.id)), slate_ms)
        else:
            # What was closed at the last commit is in the log: feedback read only since then must not reopen it.
            self._settle(slate, due_after_ms, emissions)
        for held in self._state.claim(impression.request_id):
            if not self._judge(held, slate, emissions):
                self._state.feedback_needed.remove(held.offset)
        if has_passed(self._watermark_ms, slate_ms + due_after_ms[0]):
            self._settle(slate, due_after_ms, emissions)
        self._state.add(slate, slate_ms + due_after_ms[slate.stage])
        return emissions

    def observe_feedback(self, feedback: Feedback, offset: int) -> list[Emission]:
        """Takes one action; returns the labels it makes known, if its slate is here and the policy wants them now."""
        counters = self.counters
        is_new = offset >= self._resume.next_feedback
        counters.feedback += is_new
        if feedback.action not in self._tasks_of_action and self._outcome_window_ms is None:
            counters.feedback_unknown_action += is_new
            return []
        emissions: list[Emission] = []
        held = Held(feedback, offset, is_new)
        slate = self._state.find(feedback.request_id)
        if slate is not None:
            if self._judge(held, slate, emissions):
                self._state.feedback_needed.add(offset)
            return emissions
        expiry_ms = feedback.ts + self._expire_after_ms
        if has_passed(self._watermark_ms, expiry_ms):
            self._count_unmatched(held)
        else:
            self._state.hold(held, expiry_ms)
        return emissions

    def advance(self, watermark_ms: int) -> list[Emission]:
        """Moves the watermark, never back; returns the labels of the edges it passes, in order of their trigger."""
        emissions: list[Emission] = []
        if watermark_ms > self._watermark_ms:
            self._watermark_ms = watermark_ms
            self._pass_due(emissions)
            emissions.sort(key=_trigger_ms)
        return emissions

    def oldest_needed(self, next_impression: int, next_feedback: int) -> tuple[int, int]:
        """Returns the offsets to commit: from there on, the two topics rebuild this state.

        The arguments are the offsets after the last message observed of each topic: the answer where nothing older is
        needed.
        """
        impression = self._state.impressions_needed.oldest(next_impression)
        for traffic in self._traffic.values():
            impression = min((impression, *traffic.oldest_needed()))
        return impression, self._state.feedback_needed.oldest(next_feedback)

    def _pass_due(self, emissions: list[Emission]) -> None:
        """Does everything that the watermark has made due."""
        watermark_ms = self._watermark_ms
        for slate in self._state.take_due(watermark_ms):
            due_after_ms = self._due_after_ms if slate.tally is None else self._explored_due_after_ms
            if slate.stage == len(due_after_ms) - 1:
                self._state.forget(slate)
                continue
            self._settle(slate, due_after_ms, emissions)
            self._state.put_back(slate, slate.impression.ts + due_after_ms[slate.stage])
        for held in self._state.take_expired(watermark_ms):
            self._count_unmatched(held)
        for traffic in self._traffic.values():
            traffic.forget(watermark_ms)

    def _judge(self, held: Held, slate: Slate, emissions: list[Emission]) -> bool:
        """Applies one feedback to its slate: at most one label per task becomes positive, one counter goes up.

        Returns whether a label of the slate that is still open, or its outcome, rests on it from now on.
        """
        feedback, impression = held.feedback, slate.impression
        tasks = self._tasks_of_action.get(feedback.action)
        try:
            row = impression.items.id.index(feedback.item_id)
        except ValueError:
            self._count_unknown(held)
            return False
        is_needed = slate.tally is not None and self._add_to(slate.tally, held, slate, row)
        if tasks is None:
            self._count_unknown(held)
        elif self._judge_labels(tasks, held, slate, row, emissions):
            is_needed = True
        if is_needed:
            if slate.held is None:
                slate.held = []
            slate.held.append(held.offset)
        return is_needed

    def _judge_labels(
        self, tasks: Sequence[Task], held: Held, slate: Slate, row: int, emissions: list[Emission]
    ) -> bool:
        """Returns whether one feedback made a label positive."""
        feedback, impression = held.feedback, slate.impression
        delay_ms = feedback.ts - impression.ts
        meaning = _OUTSIDE
        columns: dict[str, LabelColumn] = {}
        trigger_ms = feedback.ts
        is_missed = False
        for task in tasks:
            if not 0 <= delay_ms <= task.window_ms:
                continue
            if not feedback.value >= task.at_least:
                meaning = min(meaning, _BELOW)
                continue
            positives = slate.positives.get(task.name) if slate.positives is not None else None
            if positives is not None and row in positives:
                meaning = min(meaning, _REPEAT)
            elif slate.stage > task.close_stage:
                meaning = min(meaning, _LATE)
            else:
                meaning = _POSITIVE
                if slate.positives is None:
                    slate.positives = {}
                slate.positives.setdefault(task.name, {})[row] = delay_ms
                if slate.stage > task.look_stage:
                    is_missed |= delay_ms <= task.observe_ms
                    column = self._positive(task, held, slate, delay_ms)
                    if column is not None:
                        columns[task.name] = column
                        trigger_ms = max(trigger_ms, self._look_ms(task, slate))
        self._count_feedback(held, slate, meaning)
        self.counters.early_missed += is_missed and held.is_new
        is_committed = slate.offset < self._resume.next_impression and held.offset < self._resume.next_feedback
        if columns and not is_committed:
            self._emit(emissions, slate, at_feedback(row, columns), trigger_ms)
        return meaning == _POSITIVE

    def _add_to(self, tally: Tally, held: Held, slate: Slate, row: int) -> bool:
        """Adds one feedback to what came of an explored slate; returns whether it counted."""
        assert self._outcome_window_ms is not None
        if not 0 <= held.feedback.ts - slate.impression.ts <= self._outcome_window_ms:
            return False
        if slate.stage > self._num_label_stages:
            self.counters.outcome_late += held.is_new and held.feedback.event_id not in tally.event_ids
            return False
        is_counted = tally.add(row, held.feedback)
        self.counters.outcome_actions += is_counted and held.is_new
        return is_counted

    def _positive(self, task: Task, held: Held, slate: Slate, delay_ms: int) -> LabelColumn | None:
        """Returns the label that a positive sends at its feedback, its early look being over; None for nothing."""
        kind = task.policy.missed_positive if delay_ms <= task.observe_ms else task.policy.positive
        if kind is None:
            return None
        traffic = self._traffic.get(task.name)
        if traffic is None:
            return LabelColumn([kind], [1], [delay_ms])
        ratio = traffic.ratio(slate.impression.scenario, slate.impression.ts, held.feedback.ts)
        return LabelColumn([kind], [1], [delay_ms], [ratio])

    def _count_unknown(self, held: Held) -> None:
        """Counts feedback on an item that was not shown, or of an action without a task."""
        if held.feedback.action in self._tasks_of_action:
            self.counters.feedback_unknown_item += held.is_new
        else:
            self.counters.feedback_unknown_action += held.is_new

    def _count_unmatched(self, held: Held) -> None:
        if held.feedback.action in self._tasks_of_action:
            self.counters.feedback_unmatched += held.is_new
        else:
            self.counters.feedback_unknown_action += held.is_new

    def _count_feedback(self, held: Held, slate: Slate, meaning: int) -> None:
        event_id = held.feedback.event_id
        if slate.seen is None:
            slate.seen = set()
        is_again = event_id in slate.seen
        slate.seen.add(event_id)
        if held.is_new:
            name = "feedback_duplicate" if is_again and meaning != _POSITIVE else _COUNTER[meaning]
            setattr(self.counters, name, getattr(self.counters, name) + 1)

    def _settle(self, slate: Slate, due_after_ms: Sequence[int], emissions: list[Emission]) -> None:
        """Takes a slate past every stage whose edge the watermark has passed."""
        slate_ms, last = slate.impression.ts, len(due_after_ms) - 1
        while slate.stage < last and has_passed(self._watermark_ms, slate_ms + due_after_ms[slate.stage]):
            self._pass_stage(slate, slate_ms + due_after_ms[slate.stage], emissions)
        if slate.stage == last and slate.held is not None:
            for offset in slate.held:
                self._state.feedback_needed.remove(offset)
            slate.held = None

    def _pass_stage(self, slate: Slate, edge_ms: int, emissions: list[Emission]) -> None:
        """Makes known what the slate's next stage makes known, unless it is in the log already."""
        number = slate.stage
        slate.stage += 1
        is_out = slate.offset < self._resume.next_impression and has_passed(self._resume.watermark_ms, edge_ms)
        if number == self._num_label_stages:
            self._close(slate, edge_ms, is_out=is_out)
        elif not is_out:
            output = self._timeline.at_stage(number, slate.positives, len(slate.impression.items.id))
            if output.rows:
                self._emit(emissions, slate, output, edge_ms)
            if slate.positives is not None:
                for task in self._timeline.stages[number].looks:
                    self._correct(task, slate, slate.positives.get(task.name, {}), edge_ms, emissions)

    def _close(self, slate: Slate, edge_ms: int, *, is_out: bool) -> None:
        """Closes the reward window of an explored slate."""
        assert slate.tally is not None
        if not is_out:
            self.counters.outcomes += 1
            self.outcomes.append(Outcome(slate.impression, slate.tally.totals, edge_ms, self._watermark_ms))
        slate.tally = Tally(event_ids=slate.tally.event_ids)

    def _correct(
        self, task: Task, slate: Slate, delays_ms: Mapping[int, int], edge_ms: int, emissions: list[Emission]
    ) -> None:
        """Sends the positives (row -> delay) beyond the early look that were here before it, right after it."""
        if task.policy.positive is None:
            return
        for row, delay_ms in delays_ms.items():
            if delay_ms > task.observe_ms:
                column = LabelColumn([task.policy.positive], [1], [delay_ms])
                trigger_ms = max(slate.impression.ts + delay_ms, edge_ms)
                self._emit(emissions, slate, at_feedback(row, {task.name: column}), trigger_ms)

    def _look_ms(self, task: Task, slate: Slate) -> int:
        """Returns when the task's early look is over; the slate's time if it takes none."""
        if task.look_stage < 0:
            return slate.impression.ts
        return slate.impression.ts + self._due_after_ms[task.look_stage]

    def _new_tally(self, impression: Impression) -> Tally | None:
        """Returns where to add up what will come of a slate; None if it is not explored."""
        return Tally() if wants_outcome(impression) and is_complete(impression, self._tasks) else None

    def _emit(self, emissions: list[Emission], slate: Slate, output: Output, trigger_ms: int) -> None:
        counters = self.counters
        counters.emissions += 1
        counters.labels += output.num_labels
        counters.positives += output.num_positives
        counters.negatives += output.num_labels - output.num_positives
        counters.settled += output.num_settled
        emissions.append(Emission(slate.impression, output.rows, output.columns, trigger_ms, self._watermark_ms))


def _differ(one: Impression, other: Impression) -> bool:
    return one.user_id != other.user_id or one.items.id != other.items.id


def _trigger_ms(emission: Emission) -> int:
    return emission.trigger_ms
