"""Faults of one label under their names: hand-made rows against what was expected."""

import pytest

from stream.audit import MAX_FINDINGS, AuditReport, Finding, judge
from stream.oracle import History, Sent
from stream.schema import KindName


def s(kind: KindName, label: int = 0) -> Sent:
    return Sent(kind, label, 7 if label else -1)


WAIT_0, WAIT_1 = History((s("final"),)), History((s("final", 1),))
LATE = History((s("early_negative"), s("late_positive", 1), s("matured", 1)))
DEFER_0 = History((s("early_negative"), s("real_negative_repeat")))


def names(found: list[Sent], *allowed: History, is_open: bool = False) -> list[str]:
    return [fault.name for fault in judge(found, allowed, is_open=is_open).faults]


@pytest.mark.parametrize("history", [WAIT_0, WAIT_1, LATE, DEFER_0])
def test_what_is_as_expected_has_no_fault(history: History) -> None:
    assert names(list(history.sent), history) == []


@pytest.mark.parametrize(
    ("found", "history", "faults"),
    [
        ([], WAIT_0, ["lost"]),
        ([s("final"), s("final")], WAIT_0, ["double"]),
        ([s("final", 1)], WAIT_0, ["wrong"]),
        ([Sent("final", 1, 8)], WAIT_1, ["wrong"]),
        ([s("matured")], WAIT_0, ["wrong"]),
        ([s("final", 1), s("final")], WAIT_1, ["double", "contradictory"]),
        ([s("late_positive", 1), s("matured", 1)], LATE, ["lost", "contradictory"]),
        ([s("early_positive", 1), s("late_positive", 1), s("matured", 1)], LATE, ["wrong", "contradictory"]),
        ([s("late_positive", 1), s("early_negative"), s("matured", 1)], LATE, ["wrong", "contradictory"]),
        ([s("early_negative"), s("matured", 1), s("late_positive", 1)], LATE, ["wrong"]),
        ([s("early_negative"), s("matured", 1)], LATE, ["lost"]),
        ([s("early_negative"), s("late_positive", 1), s("matured")], LATE, ["wrong"]),
        ([s("early_negative"), s("late_positive", 1), s("matured", 1), s("real_negative_repeat")], LATE,
         ["double", "contradictory"]),
        ([s("early_negative")], DEFER_0, ["lost"]),
        ([], LATE, ["lost", "lost", "lost"]),
    ],
)  # fmt: skip
def test_faults_have_names(found: list[Sent], history: History, faults: list[str]) -> None:
    assert names(found, history) == faults


def test_one_of_several_allowed_histories_is_enough_and_the_nearest_is_told() -> None:
    assert names([s("final")], WAIT_1, WAIT_0) == []
    assert names([s("final", 1)], WAIT_1, WAIT_0) == []
    late_without_matured = judge([s("early_negative"), s("late_positive", 1)], [DEFER_0, LATE])
    assert late_without_matured.history == LATE
    assert [fault.name for fault in late_without_matured.faults] == ["lost"]


def test_of_an_open_label_nothing_is_lost_yet_but_the_rest_holds() -> None:
    assert names([], LATE, is_open=True) == []
    assert names([s("early_negative"), s("late_positive", 1)], LATE, is_open=True) == []
    assert names([s("early_negative"), s("early_negative")], LATE, is_open=True) == ["double"]
    assert names([s("late_positive", 1)], LATE, is_open=True) == ["lost", "contradictory"], "the negative comes first"
    assert names([s("final", 1)], WAIT_0, is_open=True) == ["wrong"]


def test_all_faults_are_counted_and_the_first_are_told() -> None:
    report = AuditReport()
    for number in range(MAX_FINDINGS + 5):
        report.find(Finding("lost", 0, f"r{number}", "a", "click", "gone"))
    assert (report.lost, len(report.findings), report.is_exact) == (MAX_FINDINGS + 5, MAX_FINDINGS, False)
    assert report.as_dict()["findings"][0]["request_id"] == "r0"
