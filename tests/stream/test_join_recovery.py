"""Recovery is exact because the state is a function of the messages and the watermark: drawn, not only argued.

A run reads two topics in a drawn interleaving, with watermarks as wild as they may be (events late, early, never
matched). It commits, goes on, and crashes. A new core replays from what was committed in *another* interleaving.
"""

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from stream.emission import ItemLabel, JoinCounters, Outcome
from stream.join import JoinConfig, JoinCore, Resume
from stream.policy import POLICIES
from stream.schema import OBSERVING_POLICIES, SETTLED_KINDS, Feedback, Impression, PolicyName, SchemaConfig, TaskConfig
from tests.stream.build import did, explored, schema, shown, to_compare_with
from tests.stream.oracle import ROWS, deeds_of, deeds_on

DUPLICATE_MS, OUTCOME_MS = 5, 31
CONFIG = JoinConfig(grace_ms=3, duplicate_ms=DUPLICATE_MS, outcome_window_ms=OUTCOME_MS)
SHORT_MS, LONG_MS = 10, 25
LOOK_MS = {SHORT_MS: 4, LONG_MS: 10}
END = 10_000

LAST_CLOSE_MS = 25 + 3
OUTCOME_CLOSE_MS = OUTCOME_MS + 3
EDGES_MS = (
    *(0, 4, 4 + 3, 10, 10 + 3, 25, LAST_CLOSE_MS, LAST_CLOSE_MS + DUPLICATE_MS),
    *(OUTCOME_MS, OUTCOME_CLOSE_MS, OUTCOME_CLOSE_MS + DUPLICATE_MS),
)
"""Distances from a slate at which something ends: looks, windows, closes, being remembered."""


def task(action: str, window_ms: int, policy: PolicyName, at_least: float | None = None) -> TaskConfig:
    observe_ms = LOOK_MS[window_ms] if policy in OBSERVING_POLICIES else None
    return TaskConfig(action=action, window_ms=window_ms, policy=policy, observe_ms=observe_ms, at_least=at_least)


@st.composite
def schemas(draw: st.DrawFn) -> SchemaConfig:
    """Four tasks, two of them of one action, under any policies a joiner can follow."""
    policies = [draw(st.sampled_from([policy for policy in POLICIES if policy != "oracle"])) for _ in range(4)]
    return schema(
        click=task("click", SHORT_MS, policies[0]),
        hide=task("hide", SHORT_MS, policies[1]),
        order=task("order", LONG_MS, policies[2]),
        long_click=task("click", LONG_MS, policies[3], at_least=2.0),
    )


TASKS = ("click", "hide", "order", "long_click")
Step = str | int
"""What a process does next: read a topic, commit, crash, or advance to a watermark."""


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Impression], list[Feedback], list[Step]]:
    """Two topics in any disorder, and what happens while they are read; all of it close to the edges."""
    starts = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    near = st.builds(
        lambda start, edge, off: max(0, start + edge + off),
        st.sampled_from(starts),
        st.sampled_from(EDGES_MS),
        st.integers(-1, 1),
    )
    kinds = draw(
        st.lists(st.sampled_from(["plain", "explored", "control"]), min_size=len(starts), max_size=len(starts))
    )

    def slate(number: int, at: int) -> Impression:
        plain = shown(f"r{number}", "a", "b", at=at)
        if kinds[number] == "control":
            return to_compare_with(plain, TASKS)
        return explored(plain, TASKS, "c") if kinds[number] == "explored" else plain

    slates = [slate(number, at) for number, at in enumerate(starts)]
    again = draw(
        st.lists(st.tuples(st.integers(0, len(starts) - 1), st.sampled_from([0, 1, DUPLICATE_MS])), max_size=3)
    )
    slates += [slate(number, starts[number] + shift) for number, shift in again]
    feedback = draw(
        st.lists(
            st.builds(
                lambda action, item, at, request, value, event: did(
                    action, item, at=at, on=f"r{request}", value=value, event_id=f"e{event}"
                ),
                st.sampled_from(["click", "click", "click", "hide", "order", "share"]),
                st.sampled_from(["a", "a", "a", "b", "z"]),
                st.one_of(near, st.integers(0, 60)),
                st.integers(0, len(starts)),
                st.sampled_from([1.0, 2.0]),
                st.integers(0, 6),
            ),
            min_size=4,
            max_size=12,
        )
    )
    read = st.sampled_from(["impression", "feedback"])
    steps = draw(st.lists(st.one_of(read, read, near, st.just("commit"), st.just("crash")), min_size=10, max_size=40))
    return draw(st.permutations(slates)), feedback, steps


@dataclass
class Process:
    """One life of a joiner: a core, how far it has read, and what it has emitted since the last commit."""

    core: JoinCore
    resume: Resume
    next_impression: int
    next_feedback: int
    labels: list[ItemLabel] = field(default_factory=list)
    feedback: list[Feedback] = field(default_factory=list)
    """The whole topic: what outcomes must hold."""

    def is_caught_up(self) -> bool:
        return self.next_impression >= self.resume.next_impression and self.next_feedback >= self.resume.next_feedback

    def read(self, impressions: list[Impression], feedback: list[Feedback], *, is_impression: bool) -> None:
        """Reads the next message of a topic; of the other one if it is at its end."""
        if is_impression and self.next_impression == len(impressions):
            is_impression = False
        elif not is_impression and self.next_feedback == len(feedback):
            is_impression = True
        if is_impression and self.next_impression < len(impressions):
            emissions = self.core.observe_impression(impressions[self.next_impression], self.next_impression)
            self.next_impression += 1
        elif not is_impression and self.next_feedback < len(feedback):
            emissions = self.core.observe_feedback(feedback[self.next_feedback], self.next_feedback)
            self.next_feedback += 1
        else:
            return
        self.labels += [label for emission in emissions for label in emission.labels()]

    def advance(self, watermark_ms: int) -> None:
        if self.is_caught_up():
            known = len(self.core.outcomes)
            self.labels += [label for emission in self.core.advance(watermark_ms) for label in emission.labels()]
            for outcome in self.core.outcomes[known:]:
                assert outcome.close_ms == outcome.impression.ts + OUTCOME_CLOSE_MS < watermark_ms
                read = self.feedback[: self.next_feedback]
                assert deeds_of(outcome) == deeds_on(outcome.impression, read, OUTCOME_MS), "all that was read, once"


def state(core: JoinCore, impressions_read: list[Impression]) -> dict[str, Any]:
    """Returns what later outputs depend on: slates with the positives of their open labels, what came of those that are
    explored, and who waits for a slate.

    Feedback may wait in vain for a slate that was there and is forgotten (a replay no longer meets it).
    No acceptable impression can claim it any more, so that it is no difference.
    """
    slates = {}
    timeline = core._timeline
    for slate in core.state.slates():
        still_open = {task.name for stage in timeline.stages[slate.stage :] for task in stage.closes}
        positives = {
            (task, row, delay_ms)
            for task, rows in (slate.positives or {}).items()
            for row, delay_ms in rows.items()
            if task in still_open
        }
        totals = None if slate.tally is None else deepcopy(slate.tally.totals)
        slates[slate.impression.request_id] = (slate.offset, slate.stage, positives, totals)
    were_shown = {impression.request_id for impression in impressions_read}
    pending: dict[str, list[int]] = {}
    for held in core.state.pending():
        if held.feedback.request_id not in were_shown:
            pending.setdefault(held.feedback.request_id, []).append(held.offset)
    return {"slates": slates, "pending": pending, "watermark": core.watermark_ms}


@settings(max_examples=300, deadline=None)
@given(schemas(), runs(), st.randoms(use_true_random=False))
def test_a_replay_in_any_interleaving_rebuilds_the_state_and_repeats_nothing(
    schema: SchemaConfig, run: tuple[list[Impression], list[Feedback], list[Step]], rng: Any
) -> None:
    impressions, feedback, steps = run
    process = Process(JoinCore(schema, CONFIG), Resume(), 0, 0, feedback=feedback)
    committed: Counter[ItemLabel] = Counter()
    outcomes: list[Outcome] = []
    resume, oldest = Resume(), (0, 0)
    counted = JoinCounters()
    state_at_commit = state(process.core, [])
    # A commit before the end and a crash: every drawn run has at least one recovery.
    for step in [*steps, "commit", "crash", *(["impression", "feedback"] * 30), END, "commit"]:
        if step == "crash":
            process = Process(JoinCore(schema, CONFIG, resume), resume, *oldest, feedback=feedback)
            if rng.random() < 0.5:
                continue  # the steps drawn decide: one topic may run ahead of what was read, the other lag behind
            while not process.is_caught_up():
                is_impression = process.next_impression < resume.next_impression and (
                    process.next_feedback >= resume.next_feedback or rng.random() < 0.5
                )
                process.read(impressions, feedback, is_impression=is_impression)
            assert (process.labels, process.core.outcomes) == ([], []), "all of it is committed already"
            assert state(process.core, impressions[: process.next_impression]) == state_at_commit
            assert process.core.counters == JoinCounters(), "replay counts nothing"
        elif step == "commit":
            if not process.is_caught_up():
                continue
            committed.update(process.labels)
            process.labels.clear()
            outcomes += process.core.outcomes
            process.core.outcomes = []
            counted.add(process.core.counters)
            process.core.counters = JoinCounters()
            resume = Resume(process.next_impression, process.next_feedback, process.core.watermark_ms)
            oldest = process.core.oldest_needed(process.next_impression, process.next_feedback)
            state_at_commit = state(process.core, impressions[: process.next_impression])
        elif isinstance(step, int):
            process.advance(step)
        else:
            process.read(impressions, feedback, is_impression=step == "impression")

    check_labels(schema, committed, impressions, feedback)
    check_outcomes(outcomes, committed, impressions)
    check_counters(counted, committed, len(impressions), len(feedback))
    assert counted.explored == counted.outcomes == len(outcomes)


def check_outcomes(outcomes: list[Outcome], labels: Counter[ItemLabel], impressions: list[Impression]) -> None:
    """Each explored slate that was joined has its outcome once, no other has any."""
    joined = {label.request_id for label in labels}
    drawn = {impression.request_id for impression in impressions if impression.served is not None}
    assert sorted(outcome.impression.request_id for outcome in outcomes) == sorted(joined & drawn)


def check_labels(
    schema: SchemaConfig, labels: Counter[ItemLabel], impressions: list[Impression], feedback: list[Feedback]
) -> None:
    """Each slate has either all its labels, each once, or (late) none; a positive has its feedback in the log."""
    cells: dict[str, dict[tuple[str, str], list[tuple[str, int]]]] = {}
    starts: dict[str, int] = {}
    for impression in impressions:
        starts.setdefault(impression.request_id, impression.ts)
    for label, count in labels.items():
        assert count == 1, label
        of_slate = cells.setdefault(
            label.request_id, {(item, task): [] for item in ("a", "b") for task in schema.tasks}
        )
        of_slate[label.item_id, label.task].append((label.kind, label.label))
        if label.label:
            task = schema.tasks[label.task]
            assert 0 <= label.delay_ms <= task.window_ms
            assert any(
                (f.request_id, f.item_id, f.action) == (label.request_id, label.item_id, task.action)
                and f.ts == starts[label.request_id] + label.delay_ms
                and f.value >= (task.at_least or 0)
                for f in feedback
            )
    for of_slate in cells.values():
        for (_, name), rows in of_slate.items():
            policy = schema.tasks[name].policy
            assert sorted(rows) in [sorted(fate) for fate in [*ROWS[policy].values(), *MISSED.get(policy, [])]]


MISSED: dict[str, list[list[tuple[str, int]]]] = {
    # A positive by the early look that came after it: possible here, for watermarks are as wild as they may be.
    "defer": [[("early_negative", 0), ("early_positive_repeat", 1)]],
    "vanilla": [[("early_negative", 0), ("matured", 1)]],
}
MISSED["fsiw"] = MISSED["dfm"] = MISSED["vanilla"]


def check_counters(counted: JoinCounters, labels: Counter[ItemLabel], num_impressions: int, num_feedback: int) -> None:
    """Nothing is silently lost: the counters add up over all lives, whatever the crashes."""
    c = counted
    assert c.impressions == num_impressions == c.slates + c.impression_duplicate + c.impression_late
    assert c.feedback == num_feedback
    fates = sum(count for name, count in c.as_dict().items() if name.startswith("feedback_"))
    assert fates <= c.feedback, "pending before a crash and decided after it is counted as read, but not as a fate"
    assert c.labels == labels.total() == c.positives + c.negatives
    assert c.settled == c.items * 4 == sum(label.kind in SETTLED_KINDS for label in labels)
    assert c.positives == sum(label.label for label in labels)


@settings(max_examples=100, deadline=None)
@given(schemas(), runs())
def test_without_a_crash_every_feedback_has_exactly_one_fate(
    schema: SchemaConfig,
    run: tuple[list[Impression], list[Feedback], list[Step]],
) -> None:
    impressions, feedback, steps = run
    process = Process(JoinCore(schema, CONFIG), Resume(), 0, 0, feedback=feedback)
    for step in [*steps, *(["impression", "feedback"] * 30), END]:
        if isinstance(step, int):
            process.advance(step)
        elif step in ("impression", "feedback"):
            process.read(impressions, feedback, is_impression=step == "impression")
    counts = process.core.counters.as_dict()
    fates = sum(count for name, count in counts.items() if name.startswith("feedback_"))
    assert fates == counts["feedback"] == len(feedback)
    assert (process.core.state.num_slates, process.core.state.num_pending) == (0, 0), "all memory is given back"
