"""Members come, go and are given up for dead while another one is between the steps of a commit.

Before step 2 of a member that the group has gone on without, its commit is refused; after it, it is accepted, and who
takes over begins only when it has ended (KIP-447).
"""

from collections.abc import Mapping
from typing import Literal, get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from stream.exceptions import FencedError
from stream.memory_broker import Crash, StepName
from tests.stream.cluster import GROUP, Cluster
from tests.stream.test_joiner import (
    CONFIG,
    SCHEMA,
    assert_late_positives_follow_their_negatives,
    assert_outputs,
    live,
    traffic,
)

Blow = Literal["join", "leave", "expel", "expel_and_leave"]
"""What happens to the group: another member joins, another leaves, the one in the middle of its commit is given up for
dead, or given up and the others, who took over, are gone before it goes on."""
NAMES = ("one", "two", "three")
NUM_TURNS = 4
"""Of the other members after a blow: enough to rebalance, take up, replay and commit."""


class Group(Cluster):
    """A cluster in which blows fall at given steps of commits, numbered from 0 over all members."""

    def __init__(self, blows: Mapping[int, Blow], num_partitions: int = 2) -> None:
        super().__init__(SCHEMA, CONFIG, num_partitions)
        self.blows = dict(blows)
        self.commit_steps: list[StepName] = []
        self.num_fenced = 0
        self._committing: str | None = None
        self._is_struck = False
        self.crashes.meanwhile = self._meanwhile

    def turn(self) -> None:
        for name in list(self.joiners):
            self._committing = name
            self._turn_of(name)
        self._committing = None

    def _turn_of(self, name: str) -> None:
        if name not in self.joiners:  # it has left during the turn of another one
            return
        try:
            self.joiners[name].run_once()
        except (Crash, FencedError) as error:
            # A supervisor starts it again; its new producer ends the transaction that it has left behind.
            self.num_fenced += isinstance(error, FencedError)
            self.kill(name)
            self.start(name)

    def _meanwhile(self, step: StepName) -> None:
        if step == "poll" or self._committing is None or self._is_struck:
            return
        blow = self.blows.get(len(self.commit_steps))
        self.commit_steps.append(step)
        if blow is not None:
            self._is_struck = True
            self._strike(blow, self._committing)
            self._is_struck = False

    def _strike(self, blow: Blow, committing: str) -> None:
        others = [name for name in self.joiners if name != committing]
        if blow == "leave":
            for name in others[:1]:
                self.kill(name)
        elif not others or (blow == "join" and len(others) < len(NAMES) - 1):
            self.start(next(name for name in NAMES if name not in self.joiners))
        if blow in ("expel", "expel_and_leave"):
            self.broker.leave(GROUP, committing)
        others = [name for name in self.joiners if name != committing]
        for _ in range(NUM_TURNS):
            self.now_ms += CONFIG.commit_interval_ms
            for name in others:
                self._turn_of(name)
        if blow == "expel_and_leave":
            for name in others:
                self.kill(name)


def test_at_every_step_of_every_commit() -> None:
    arrivals = traffic(seed=7, num_slates=4)
    for blow in get_args(Blow):
        undisturbed = Group({})
        undisturbed.start()
        live(undisturbed, arrivals, tick_ms=2_000)
        assert {"produce", "send_offsets", "commit", "committed"} == set(undisturbed.commit_steps)
        for number, step in enumerate(undisturbed.commit_steps):
            group = Group({number: blow})
            group.start()
            live(group, arrivals, tick_ms=2_000)
            assert_outputs(group, arrivals, f"{blow} at commit step {number}, {step}")
            assert group.num_fenced == (blow in ("expel", "expel_and_leave")), (blow, step)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.dictionaries(st.integers(0, 80), st.sampled_from(get_args(Blow)), min_size=1, max_size=6),
    st.sets(st.integers(0, 400), max_size=3),
    st.integers(1, 3),
)
def test_the_labels_are_those_of_the_oracle(
    seed: int, blows: dict[int, Blow], crash_at: set[int], num_partitions: int
) -> None:
    arrivals = traffic(seed)
    group = Group(blows, num_partitions)
    group.crashes.crash_at = crash_at
    group.start("one")
    group.start("two")
    live(group, arrivals)
    assert_outputs(group, arrivals)
    assert_late_positives_follow_their_negatives(group)
