"""The oracle's own table of every policy, written out by hand, and what it allows where events came late."""

import pytest

from stream.oracle import Action, OracleConfig, Sent, histories, timing
from stream.oracle_clock import ReachClock, ReadClock
from stream.policy import POLICIES
from stream.schema import OBSERVING_POLICIES, PolicyName, TaskConfig

CONFIG = OracleConfig(
    grace_ms=100, out_of_orderness_ms=50, max_ahead_ms=10, refuse_ahead_ms=10_000, idle_ms=200, duplicate_ms=300
)
IN_TIME = 0
FAR_TOO_LATE = 10**6


def task(policy: PolicyName, at_least: float | None = None) -> TaskConfig:
    observe_ms = 1_000 if policy in OBSERVING_POLICIES else None
    return TaskConfig(action="click", window_ms=5_000, policy=policy, observe_ms=observe_ms, at_least=at_least)


def click(ts: int, *, value: float = 1.0, bound: int = IN_TIME, action: str = "click") -> Action:
    return Action(action, ts, value, bound)


def sent(policy: PolicyName, *actions: Action, slate_bound: int = IN_TIME) -> list[str]:
    """Returns each allowed history in one line: `kind label/delay`; the slate is shown at 0."""
    found = histories(task(policy), CONFIG, 0, slate_bound, actions)
    return [" ".join(f"{s.kind} {s.label}/{s.delay_ms}" for s in history.sent) for history in found]


@pytest.mark.parametrize(
    ("policies", "none", "early", "late"),
    [
        ("wait eager oracle", "final 0/-1", "final 1/700", "final 1/3000"),
        (
            "fnw fnc",
            "fake_negative 0/-1 matured 0/-1",
            "fake_negative 0/-1 late_positive 1/700 matured 1/700",
            "fake_negative 0/-1 late_positive 1/3000 matured 1/3000",
        ),
        (
            "fnw_rn",
            "fake_negative 0/-1 real_negative_repeat 0/-1",
            "fake_negative 0/-1 late_positive 1/700 matured 1/700",
            "fake_negative 0/-1 late_positive 1/3000 matured 1/3000",
        ),
        (
            "vanilla fsiw dfm",
            "early_negative 0/-1 matured 0/-1",
            "early_positive 1/700 matured 1/700",
            "early_negative 0/-1 matured 1/3000",
        ),
        (
            "vanilla_dup es_dfm defuse",
            "early_negative 0/-1 matured 0/-1",
            "early_positive 1/700 matured 1/700",
            "early_negative 0/-1 late_positive 1/3000 matured 1/3000",
        ),
        (
            "defer_neg",
            "early_negative 0/-1 real_negative_repeat 0/-1",
            "early_positive 1/700 matured 1/700",
            "early_negative 0/-1 late_positive 1/3000 matured 1/3000",
        ),
        (
            "defer",
            "early_negative 0/-1 real_negative_repeat 0/-1",
            "early_positive 1/700 early_positive_repeat 1/700",
            "early_negative 0/-1 late_positive 1/3000 matured 1/3000",
        ),
    ],
)
def test_what_each_policy_sends(policies: str, none: str, early: str, late: str) -> None:
    for policy in policies.split():
        name: PolicyName = policy  # type: ignore[assignment]
        assert (sent(name), sent(name, click(700)), sent(name, click(3_000))) == ([none], [early], [late]), policy


def test_every_policy_is_known_and_sends_only_its_kinds() -> None:
    for name, policy in POLICIES.items():
        for actions in ([], [click(700)], [click(3_000)], [click(700, bound=2_000)]):
            for history in histories(task(name), CONFIG, 0, IN_TIME, actions):
                assert {one.kind for one in history.sent} <= policy.kinds, name


@pytest.mark.parametrize(
    ("delay_ms", "expected"),
    [(-1, "final 0/-1"), (0, "final 1/0"), (1, "final 1/1"), (4_999, "final 1/4999"), (5_000, "final 1/5000"),
     (5_001, "final 0/-1")],
)  # fmt: skip
def test_the_window_has_both_its_ends(delay_ms: int, expected: str) -> None:
    assert sent("wait", click(delay_ms)) == [expected]


@pytest.mark.parametrize(
    ("delay_ms", "kind"), [(999, "early_positive"), (1_000, "early_positive"), (1_001, "early_negative")]
)
def test_the_early_look_sees_up_to_its_edge(delay_ms: int, kind: str) -> None:
    assert sent("es_dfm", click(delay_ms))[0].startswith(kind)


def test_the_first_in_the_order_of_the_log_counts() -> None:
    assert sent("wait", click(3_000), click(700)) == ["final 1/3000"]
    assert sent("es_dfm", click(3_000), click(700)) == ["early_negative 0/-1 late_positive 1/3000 matured 1/3000"]


def test_other_actions_and_small_values_do_not_count() -> None:
    actions = [click(1, action="hide"), click(2, value=2.9), click(3, value=3.0)]
    found = histories(task("wait", at_least=3.0), CONFIG, 0, IN_TIME, actions)
    assert [(history.sent, history.action) for history in found] == [((Sent("final", 1, 3),), 2)]


@pytest.mark.parametrize(("bound", "num_allowed"), [(5_099, 1), (5_100, 1), (5_101, 2)])
def test_feedback_that_may_have_come_after_the_close_allows_both(bound: int, num_allowed: int) -> None:
    assert sent("eager", click(700, bound=bound)) == ["final 1/700", "final 0/-1"][:num_allowed]
    assert sent("eager", click(700), slate_bound=bound) == ["final 1/700", "final 0/-1"][:num_allowed]


def test_after_one_that_came_too_late_the_next_may_be_the_first() -> None:
    late, in_time = click(700, bound=FAR_TOO_LATE), click(800)
    assert sent("eager", late, in_time, click(900)) == ["final 1/700", "final 1/800"]


@pytest.mark.parametrize(("bound", "is_seen"), [(1_099, [True]), (1_100, [True]), (1_101, [True, False])])
def test_feedback_that_may_have_missed_the_look_allows_both(bound: int, is_seen: list[bool]) -> None:
    found = sent("defer", click(700, bound=bound))
    both = [
        "early_positive 1/700 early_positive_repeat 1/700",
        "early_negative 0/-1 early_positive_repeat 1/700",
    ]
    assert found == both[: len(is_seen)]
    missed = "early_negative 0/-1 late_positive 1/700 matured 1/700"
    assert (missed in sent("es_dfm", click(700, bound=bound))) == (False in is_seen)


@pytest.mark.parametrize(
    ("policy", "one", "after_ms", "until_ms"),
    [
        ("wait", Sent("final", 1, 7), 5_100, None),
        ("eager", Sent("final", 0, -1), 5_100, None),
        ("eager", Sent("final", 1, 7), None, 5_100),
        ("fnw", Sent("fake_negative", 0, -1), None, 5_100),
        ("fnw", Sent("late_positive", 1, 7), None, 5_100),
        ("fnw", Sent("matured", 1, 7), 5_100, None),
        ("es_dfm", Sent("early_negative", 0, -1), 1_100, None),
        ("es_dfm", Sent("late_positive", 1, 2_000), 1_100, None),
        ("defer", Sent("early_positive_repeat", 1, 7), 5_100, None),
        ("oracle", Sent("final", 1, 7), None, None),
    ],
)
def test_when_a_label_may_go_out(policy: PolicyName, one: Sent, after_ms: int | None, until_ms: int | None) -> None:
    assert timing(task(policy), CONFIG, 0, IN_TIME, one) == (after_ms, until_ms)


def test_a_watermark_was_at_most_what_came_before() -> None:
    clock = ReadClock(CONFIG, slack_ms=20)
    bounds = []
    for event_ms, logged_ms in ((1_000, 1_000), (1_090, 1_090), (400, 1_180), (1_100, 1_279), (1_200, 1_379)):
        bounds.append(clock.read(logged_ms))
        clock.observe(event_ms)
    quiet = 1_000 + 20 + 10 - 50
    after_pause = 1_379 + 20 + 10 - 50
    assert bounds == [quiet, quiet, 1_040, 1_040, after_pause]


def test_without_a_clock_of_the_log_there_are_no_pauses() -> None:
    clock = ReadClock(CONFIG, slack_ms=20)
    assert clock.read(-1) == -51
    clock.observe(1_000)
    assert clock.read(-1) == 950


def test_a_recorded_log_reaches_what_both_topics_have() -> None:
    reach = ReachClock(CONFIG, as_of_ms=None, lag_ms=100)
    assert reach.watermark_ms < 0
    reach.observe("impressions", 5_000, 5_000)
    assert reach.watermark_ms < 0
    reach.observe("feedback", 4_000, 4_000)
    assert reach.watermark_ms == 3_950


def test_the_last_moments_of_a_live_log_are_not_held_against_the_joiner() -> None:
    reach = ReachClock(CONFIG, as_of_ms=10_000, lag_ms=1_000)
    for topic in ("impressions", "feedback"):
        reach.observe(topic, 8_800, 8_800)
        reach.observe(topic, 9_900, 9_900)
    assert reach.watermark_ms == 8_750


def test_a_quiet_live_log_goes_on_with_the_clock() -> None:
    reach = ReachClock(CONFIG, as_of_ms=10_000, lag_ms=1_000)
    reach.observe("impressions", 2_000, 2_000)
    assert reach.watermark_ms == 8_950
    reach.observe("feedback", 9_000_000, 8_900)
    assert reach.watermark_ms == 8_910 - 50, "a clock ahead moves it only so far"
