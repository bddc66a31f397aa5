"""What is due by the wall clock stays due when somebody sets that clock."""

import pytest

from model.pace import Pace


@pytest.mark.parametrize(
    ("moved_ms", "is_due"), [(0, False), (99, False), (100, True), (3_600_000, True), (-1, True), (-3_600_000, True)]
)
def test_due_after_the_wait_and_when_the_clock_was_set_back(moved_ms: int, is_due: bool) -> None:
    now_ms = 10_000_000
    pace = Pace(lambda: now_ms)
    assert pace.is_due()
    pace.wait(100)
    now_ms += moved_ms
    assert pace.is_due() == is_due
