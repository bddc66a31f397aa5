"""What leaves the join core: labels of one slate at one trigger, and how many events met which fate."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from stream.schema import Impression, KindName
from stream.tally import Totals


class LabelColumn(NamedTuple):
    """The labels of one task for the items of one emission; all parts are as long as `Emission.rows`."""

    kind: Sequence[KindName]
    label: Sequence[int]
    delay_ms: Sequence[int]
    """Event time of the feedback minus event time of the slate; -1 for a negative."""
    ratio: Sequence[float] | None = None
    """Traffic ratio of each label; none: 1 for all."""

    def take(self, rows: Sequence[int]) -> "LabelColumn":
        """Returns the labels at some positions of this column."""
        ratio = None if self.ratio is None else [self.ratio[row] for row in rows]
        kind, label = [self.kind[row] for row in rows], [self.label[row] for row in rows]
        return LabelColumn(kind, label, [self.delay_ms[row] for row in rows], ratio)


class ItemLabel(NamedTuple):
    """One label, spelled out: for tests, oracles and reports."""

    request_id: str
    item_id: str
    task: str
    kind: KindName
    label: int
    delay_ms: int


@dataclass(slots=True)
class Emission:
    """Labels of one slate that became known by one trigger: a feedback, or the close of a window.

    Read only: emissions that look alike share their rows and columns.
    """

    impression: Impression
    rows: Sequence[int]
    """Positions (0 = first) of the slate's items that are part of this emission."""
    columns: Mapping[str, LabelColumn]
    """Labels by task; a task that is not named has kind `none` for all rows."""
    trigger_ms: int
    """Event time of what made the labels known: the feedback's, or slate + window + grace. The order of emissions."""
    watermark_ms: int
    """Watermark of the partition pair when the labels went out; -1 before there was one."""

    def labels(self) -> Iterator[ItemLabel]:
        """Yields each label that is not of kind `none`."""
        ids = self.impression.items.id
        for task, column in self.columns.items():
            for row, kind, label, delay_ms in zip(self.rows, column.kind, column.label, column.delay_ms, strict=True):
                if kind != "none":
                    yield ItemLabel(self.impression.request_id, ids[row], task, kind, label, delay_ms)


@dataclass(slots=True)
class Outcome:
    """An explored slate with all that came of it, at the close of its reward window."""

    impression: Impression
    totals: Totals
    """What the user did on which item; nothing where nothing was done."""
    close_ms: int
    """Slate + reward window + grace: the order of outcomes."""
    watermark_ms: int
    """Watermark of the partition pair when the outcome went out."""


@dataclass(slots=True)
class JoinCounters:
    """How many events met which fate. Nothing is silently lost, so the counts add up.

    - `impressions = slates + impression_duplicate + impression_late`
    - `feedback` = the sum of the other `feedback_*` counters + what is still pending in the core
    - `items x tasks = settled + labels still open`, `labels = positives + negatives`
    - `explored = outcomes + outcomes still open`

    An event counts once, when it is first read: replay after a restart counts nothing again, and the joiner adds up
    only what was committed.
    """

    impressions: int = 0
    """Impressions that could be decoded."""
    slates: int = 0
    """Impressions that were joined."""
    items: int = 0
    """Items of the joined slates."""
    impression_duplicate: int = 0
    """Impressions whose request was shown already: the same slate sent again."""
    impression_conflict: int = 0
    """Of these, how many had other items or another user: a request id that was used twice. The first one counts."""
    impression_late: int = 0
    """Impressions that came when the watermark had passed the close of their last label."""
    feedback: int = 0
    """Feedback that could be decoded."""
    feedback_positive: int = 0
    """Feedback that made at least one label positive."""
    early_missed: int = 0
    """Of these, how many came when the early look they belong to was over: with more grace it would have seen them."""
    feedback_repeat: int = 0
    """Qualifying feedback on labels that were positive already."""
    feedback_duplicate: int = 0
    """Feedback without effect whose `event_id` was seen before on the same slate."""
    feedback_late: int = 0
    """Feedback within the label window that came when the label was final: with more grace it would have counted."""
    feedback_below: int = 0
    """Feedback within the label window whose value is below the task's `at_least`."""
    feedback_outside_window: int = 0
    """Feedback before its slate, or after the label window."""
    feedback_unknown_item: int = 0
    """Feedback on an item that its slate did not show."""
    feedback_unknown_action: int = 0
    """Feedback whose action makes no label of any task."""
    feedback_unmatched: int = 0
    """Feedback whose impression did not come while it could still have been joined."""
    clock_ahead: int = 0
    """Events dated more than `max_ahead_ms` after the processing clock; the watermark takes no notice of the excess."""
    malformed: int = 0
    """Messages that could not be decoded, or are dated absurdly far ahead: to be found in the dead-letter topic."""
    emissions: int = 0
    """Emissions that went out; each is one row of an examples message."""
    labels: int = 0
    """Labels that went out."""
    positives: int = 0
    """Labels that went out with 1."""
    negatives: int = 0
    """Labels that went out with 0."""
    settled: int = 0
    """Labels that went out as the truth of a closed window; each item has one per task, under every policy."""
    explored: int = 0
    """Joined slates of which an outcome goes out: their weights were drawn, or explored ones are compared with them."""
    explored_incomplete: int = 0
    """Joined slates like these which lack something that their outcome would need: none goes out."""
    outcomes: int = 0
    """Outcomes that went out."""
    outcome_actions: int = 0
    """Feedback that counted in an outcome. It also counts under one of the names above."""
    outcome_late: int = 0
    """Feedback within the reward window that came when the outcome was out: with more grace it would have counted."""
    lost_messages: int = 0
    """Messages that open slates still needed but the log no longer keeps: raise the topics' retention."""

    def add(self, other: "JoinCounters") -> None:
        """Adds the counts of another one."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def as_dict(self) -> dict[str, int]:
        """Returns the counts by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
