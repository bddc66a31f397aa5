"""The spilled state is the state in memory, only elsewhere: the same answers, whatever the budget."""

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stream.local_store import LocalStore, StoreMemory
from stream.snapshot_record import SnapshotRecord, read_record
from stream.spilled_state import SpilledJoinState
from stream.state import Held, JoinState, Slate
from stream.state_codec import Waiting, decode_slate, decode_waiting, encode_slate, encode_waiting
from stream.tally import Tally, Total
from tests.stream.build import did, shown

MEMORY = StoreMemory(16)
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A folder in memory: RocksDB waits for the disk whenever it opens a store."""
REQUESTS = st.sampled_from([f"r{number}" for number in range(8)])
TIMES = st.integers(0, 400)


def plain(slate: Slate | None) -> Any:
    """Returns all of a slate, to compare."""
    if slate is None:
        return None
    seen = None if slate.seen is None else sorted(slate.seen)
    return slate.impression, slate.offset, slate.stage, slate.positives, seen, slate.held, slate.tally


def of(held: Held) -> Any:
    return held.feedback, held.offset, held.is_new


class SameState(RuleBasedStateMachine):
    """Does the same to both states, as a core would, and compares every answer."""

    @initialize(hot_items=st.integers(1, 9))
    def begin(self, hot_items: int) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=FAST))
        self.hot_items = hot_items
        self.memory = JoinState()
        self.spilled = SpilledJoinState(LocalStore(self.folder / "0", MEMORY), hot_items)
        self.next = 0
        self.watermark_ms = 0

    def teardown(self) -> None:
        if hasattr(self, "spilled"):
            self.spilled.store.close()
            shutil.rmtree(self.folder)

    @rule(request=REQUESTS, due_ms=TIMES, num_items=st.integers(1, 3))
    def show(self, request: str, due_ms: int, num_items: int) -> None:
        self.next += 1
        claimed = [[of(held) for held in state.claim(request)] for state in (self.memory, self.spilled)]
        assert claimed[0] == claimed[1]
        for _, offset, _ in claimed[0]:
            self.memory.feedback_needed.remove(offset)
            self.spilled.feedback_needed.remove(offset)
        found = [state.find(request) for state in (self.memory, self.spilled)]
        assert plain(found[0]) == plain(found[1])
        if found[0] is None:
            for state in (self.memory, self.spilled):
                state.add(Slate(shown(request, *"abc"[:num_items], at=due_ms), self.next), due_ms)

    @rule(request=REQUESTS, expiry_ms=TIMES)
    def act(self, request: str, expiry_ms: int) -> None:
        self.next += 1
        for state in (self.memory, self.spilled):
            slate = state.find(request)
            if slate is None:
                state.hold(Held(did(at=5, on=request), self.next, is_new=True), expiry_ms)
            else:
                slate.seen = {*(slate.seen or ()), f"e{self.next}"}
                slate.positives = {"click": {0: self.next}}
                slate.held = [*(slate.held or ()), self.next]

    @rule(by_ms=st.integers(1, 120))
    def advance(self, by_ms: int) -> None:
        """Slates come back twice before they are forgotten, perhaps still due."""
        self.watermark_ms += by_ms
        taken: list[Counter[str]] = []
        for state in (self.memory, self.spilled):
            seen: Counter[str] = Counter()
            for slate in state.take_due(self.watermark_ms):
                seen[repr(plain(slate))] += 1
                if slate.stage == 2:
                    state.forget(slate)
                else:
                    slate.stage += 1
                    state.put_back(slate, slate.impression.ts + 30 * slate.stage)
            seen.update(repr(of(held)) for held in state.take_expired(self.watermark_ms))
            taken.append(seen)
        assert taken[0] == taken[1]

    @rule()
    def go_on_from_a_snapshot(self) -> None:
        """Closes the store and goes on from its snapshot; nothing of before is new any more."""
        path = self.folder / f"{self.next}.{self.watermark_ms}.{id(self)}"
        if path.exists():
            return
        record = SnapshotRecord(
            labels="l", lineage="a", next_impression=self.next + 1, next_feedback=self.next + 1, watermark_ms=0
        )
        self.spilled.save(path, record)
        self.spilled.store.close()
        read = read_record(path)
        self.spilled = SpilledJoinState(LocalStore(path, MEMORY), self.hot_items, read)
        for held in self.memory.pending():
            held.is_new = False

    @invariant()
    def is_the_same(self) -> None:
        if not hasattr(self, "spilled"):
            return
        assert self.spilled.num_slates == self.memory.num_slates
        assert self.spilled.num_pending == self.memory.num_pending
        assert sorted(map(repr, map(plain, self.spilled.slates()))) == sorted(
            map(repr, map(plain, self.memory.slates()))
        )
        assert sorted(map(repr, map(of, self.spilled.pending()))) == sorted(map(repr, map(of, self.memory.pending())))
        for one, other in (
            (self.memory.impressions_needed, self.spilled.impressions_needed),
            (self.memory.feedback_needed, self.spilled.feedback_needed),
        ):
            assert one.blocks() == other.blocks()
        for kept in (self.spilled._hot_slates, self.spilled._hot_pending):
            assert kept.hot_weight == sum(kept._weigh(hot.value) for hot in kept._hot.values())
            assert kept.hot_weight <= kept.limit or len(kept._hot) == 1, "the newest stays whatever it weighs"


TestSameState = SameState.TestCase
TestSameState.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

JSON_VALUES = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(context=st.dictionaries(st.text(), JSON_VALUES, max_size=3), seen=st.none() | st.sets(st.text(), max_size=3))
def test_whatever_the_wire_carries_comes_back_equal(context: dict[str, Any], seen: set[str] | None) -> None:
    slate = Slate(shown("r", "a", "b"), offset=2**40)
    slate.impression.context = context
    slate.stage, slate.seen, slate.held, slate.positives = 3, seen, [1, 2], {"click": {1: 7}}
    slate.tally = Tally({"share": {0: Total(1e308, 2**53)}}, set(seen or ()))
    assert plain(decode_slate(encode_slate(slate))) == plain(slate)
    waiting = Waiting(Held(did(at=3, event_id="\x00"), 9, is_new=True), 12)
    ((held, expiry_ms),) = decode_waiting(encode_waiting([waiting]))
    assert (of(held), expiry_ms) == (of(waiting.held), 12)


def test_a_frozen_slate_leaves_nothing_in_memory(tmp_path: Path) -> None:
    state = SpilledJoinState(LocalStore(tmp_path / "live", MEMORY), hot_items=100)
    for number in range(5_000):
        state.add(Slate(shown(f"r{number}"), number), due_ms=10_000 + number)
    slates = state._hot_slates
    in_queue = sum(map(len, slates._due._entries.values()))
    assert (state.num_slates, state.hot_items <= 75, len(slates._hot) <= 75) == (5_000, True, True)
    assert in_queue <= 2 * 75 + 600, "entries of frozen slates are swept out now and then"
    assert state.find("r3") is not None
    assert (state.num_thawed, state.num_slates) == (1, 5_000)
    assert [slate.offset for slate in state.take_due(10_007)] == [3, 0, 1, 2, 4, 5, 6], "hot ones first"
    state.store.close()


@pytest.mark.parametrize("hot_items", [3, 100])
def test_a_slate_larger_than_the_budget_stays_until_another_comes(tmp_path: Path, hot_items: int) -> None:
    state = SpilledJoinState(LocalStore(tmp_path / "live", MEMORY), hot_items)
    state.add(Slate(shown("large", *(f"i{number}" for number in range(2_000))), 0), due_ms=1)
    assert state.num_frozen == 0
    state.add(Slate(shown("small"), 1), due_ms=1)
    assert state.num_frozen == 1
    found = state.find("large")
    assert found is not None
    assert len(found.impression.items.id) == 2_000
    state.store.close()
