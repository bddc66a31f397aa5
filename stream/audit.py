"""What was sent against what may have been sent: the faults of one label, and the report over a whole log.

| fault | meaning |
|---|---|
| `lost` | a label that must be there and is not |
| `double` | a label that came more often than it must |
| `contradictory` | two settled labels of one (item, task) disagree; or a `late_positive` without a negative before it |
| `wrong` | kind, label, delay or order differ; sent before its time or after it; of a slate that nobody showed |
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from stream.oracle import History, Sent
from stream.schema import SETTLED_KINDS

FaultName = Literal["lost", "double", "contradictory", "wrong"]
FAULTS: tuple[FaultName, ...] = get_args(FaultName)
MAX_FINDINGS = 1_000
"""Faults kept with all their words; all are counted."""
_NEGATIVES_FIRST = ("fake_negative", "early_negative")


class Fault(NamedTuple):
    """One thing that is not as it must be."""

    name: FaultName
    text: str
    """What was expected, and what was found."""


class Verdict(NamedTuple):
    """What is wrong with one (item, task), and which of the allowed histories is nearest to what was found."""

    faults: list[Fault]
    history: History


def judge(found: Sequence[Sent], allowed: Sequence[History], *, is_open: bool = False) -> Verdict:
    """Compares the labels of one (item, task), in the order of the log, with what may have gone out.

    Of a label that is still open the beginning of a history will do.

    >>> history = History((Sent("final", 0, -1),))
    >>> [fault.name for fault in judge([], [history]).faults]
    ['lost']
    >>> judge([Sent("final", 1, 5)], [history]).faults[0].text
    'final 0 expected, final 1 after 5 ms found'
    """
    for history in allowed:
        if (history.sent[: len(found)] if is_open else history.sent) == tuple(found):
            return Verdict([], history)
    nearest = min(allowed, key=lambda history: _distance(found, history.sent))
    expected = nearest.sent
    if is_open:
        come = [index for index, sent in enumerate(expected) if sent in found]
        expected = expected[: come[-1] + 1 if come else 0] or expected[: len(found)]
    return Verdict(_differences(found, expected) + _contradictions(found), nearest)


def _distance(found: Sequence[Sent], expected: Sequence[Sent]) -> int:
    """Returns how many labels the one has that the other does not."""
    one, other = Counter(found), Counter(expected)
    return (one - other).total() + (other - one).total()


def _differences(found: Sequence[Sent], expected: Sequence[Sent]) -> list[Fault]:
    missing, surplus = list(expected), []
    in_place: list[Sent] = []
    for sent in found:
        if sent in missing:
            missing.remove(sent)
            in_place.append(sent)
        else:
            surplus.append(sent)
    if not surplus:
        faults = [Fault("lost", f"{_words(sent)} expected, not found") for sent in missing]
        if in_place != [sent for sent in expected if sent in in_place]:
            faults.append(Fault("wrong", f"order: {_all_words(expected)} expected, {_all_words(found)} found"))
        return faults
    faults = []
    # What has the kind of a label that is missing is that label gone wrong, ...
    for sent in list(surplus):
        twin = next((other for other in missing if other.kind == sent.kind), None)
        if twin is not None:
            missing.remove(twin)
            surplus.remove(sent)
            faults.append(Fault("wrong", f"{_words(twin)} expected, {_words(sent)} found"))
    # ... one more of a kind that is there already is double, and the rest has got a wrong kind, or should not be there.
    for sent in surplus:
        if missing and all(other.kind != sent.kind for other in in_place):
            faults.append(Fault("wrong", f"{_words(missing.pop(0))} expected, {_words(sent)} found"))
        else:
            faults.append(Fault("double", f"{_words(sent)} found beyond {_all_words(expected)}"))
    return faults + [Fault("lost", f"{_words(sent)} expected, not found") for sent in missing]


def _contradictions(found: Sequence[Sent]) -> list[Fault]:
    faults: list[Fault] = []
    settled = [sent for sent in found if sent.kind in SETTLED_KINDS]
    if len({sent.label for sent in settled}) > 1:
        faults.append(Fault("contradictory", f"{_all_words(settled)} disagree"))
    for index, sent in enumerate(found):
        if sent.kind == "late_positive" and not any(other.kind in _NEGATIVES_FIRST for other in found[:index]):
            faults.append(Fault("contradictory", f"{_words(sent)} found with no negative before it"))
    return faults


def _words(sent: Sent) -> str:
    delay = f" after {sent.delay_ms} ms" if sent.delay_ms != -1 else ""
    return f"{sent.kind} {sent.label}{delay}"


def _all_words(sent: Sequence[Sent]) -> str:
    return ", ".join(map(_words, sent)) or "nothing"


class Finding(NamedTuple):
    """One fault and where it is."""

    fault: FaultName
    partition: int
    request_id: str
    item_id: str
    task: str
    text: str


@dataclass(slots=True)
class AuditReport:
    """What an audit has found, all partitions together. The first four are faults, all others explain."""

    lost: int = 0
    """Labels and outcomes of closed windows that never came; malformed messages without their dead letter."""
    double: int = 0
    """Labels, outcomes and dead letters that came more often than they must."""
    contradictory: int = 0
    """Items and tasks whose labels contradict each other."""
    wrong: int = 0
    """Labels whose kind, label, delay, order or time of emission differs, or that nobody should have got; outcomes that
    hold other actions than the log."""
    late: int = 0
    """Impressions and feedback that came later than the settings allow for, and whose effect is missing."""
    late_accepted: int = 0
    """The same, but the joiner still took them in."""
    unmatched: int = 0
    """Feedback whose slate is not in its partition, or on an item that its slate did not show."""
    pending: int = 0
    """Feedback whose slate may still come."""
    open: int = 0
    """Labels (item x task) whose windows were not closed at the end of the log: not judged."""
    judged: int = 0
    """Labels (item x task) of closed windows."""
    impressions: int = 0
    """Impressions read."""
    slates: int = 0
    """Of these, how many were judged."""
    duplicates: int = 0
    """Impressions of a slate that was shown already."""
    reused: int = 0
    """Request ids used again too late to be recognised as a duplicate: not judged."""
    skipped: int = 0
    """Impressions out of range: before retention, `--since` or `--sample` lets them be judged, or after `--until`."""
    feedback: int = 0
    """Feedback read."""
    malformed: int = 0
    """Impressions and feedback that cannot be decoded."""
    rows: int = 0
    """Rows of examples read."""
    outcomes: int = 0
    """Explored slates with an outcome, among those judged."""
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    """Labels found, by task and kind."""
    positives: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of these, those with label 1."""
    findings: list[Finding] = field(default_factory=list)
    """The first `MAX_FINDINGS` faults."""

    @property
    def is_exact(self) -> bool:
        """Whether nothing is lost, double, contradictory or wrong."""
        return not (self.lost or self.double or self.contradictory or self.wrong)

    def find(self, finding: Finding) -> None:
        """Counts a fault, and keeps its words as long as there are few."""
        setattr(self, finding.fault, getattr(self, finding.fault) + 1)
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)

    def count(self, task: str, sent: Sent) -> None:
        """Counts a label that was found."""
        for table, number in ((self.labels, 1), (self.positives, sent.label)):
            kinds = table.setdefault(task, {})
            kinds[sent.kind] = kinds.get(sent.kind, 0) + number

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as plain data under the names of the fields."""
        plain = asdict(self)
        plain["findings"] = [finding._asdict() for finding in self.findings]
        return plain
