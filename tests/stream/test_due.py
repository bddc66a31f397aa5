"""The due queue against the obvious: a list that is searched each time."""

from hypothesis import given
from hypothesis import strategies as st

from stream.due import DueQueue


@given(st.lists(st.tuples(st.sampled_from(["add", "take"]), st.integers(0, 400))))
def test_it_gives_each_entry_once_as_soon_as_the_watermark_has_passed_it(steps: list[tuple[str, int]]) -> None:
    queue: DueQueue[int] = DueQueue()
    waiting: list[tuple[int, int]] = []
    for number, (step, at_ms) in enumerate(steps):
        if step == "add":
            queue.add(at_ms, number)
            waiting.append((at_ms, number))
        else:
            assert sorted(queue.take(at_ms)) == sorted(entry for due_ms, entry in waiting if at_ms > due_ms)
            waiting = [(due_ms, entry) for due_ms, entry in waiting if at_ms <= due_ms]


def test_what_is_added_while_taking_comes_too_if_it_is_due() -> None:
    queue: DueQueue[str] = DueQueue()
    queue.add(10, "first")
    taken = []
    for entry in queue.take(1_000):
        taken.append(entry)
        if entry == "first":
            queue.add(999, "due")
            queue.add(1_000, "not yet")
    assert taken == ["first", "due"]
    assert list(queue.take(1_001)) == ["not yet"]
