"""Every label policy by tables: what goes out when, one millisecond before each edge, at it, and after it."""

import pytest

from stream.join import JoinConfig, JoinCore
from stream.policy import POLICIES
from stream.schema import OBSERVING_POLICIES, SETTLED_KINDS, PolicyName, SchemaConfig, TaskConfig
from tests.stream.build import did, schema, shown
from tests.stream.oracle import ROWS
from tests.stream.test_join import Token, run

OBSERVE_MS, WINDOW_MS, GRACE_MS = 10_000, 60_000, 2_000
LOOK_OVER_MS, CLOSED_MS = OBSERVE_MS + GRACE_MS, WINDOW_MS + GRACE_MS
CONFIG = JoinConfig(grace_ms=GRACE_MS, duplicate_ms=1_000)
JOINED = [policy for policy in POLICIES if policy != "oracle"]
END_MS = 10**6


def under(policy: PolicyName) -> SchemaConfig:
    observe_ms = OBSERVE_MS if policy in OBSERVING_POLICIES else None
    return schema(click=TaskConfig(action="click", window_ms=WINDOW_MS, policy=policy, observe_ms=observe_ms))


def rows(policy: PolicyName, *log: Token) -> list[tuple[str, int, int]]:
    """Returns (kind, label, delay_ms) in the order of the log: that of their triggers."""
    emissions = run(JoinCore(under(policy), CONFIG), log)
    emissions.sort(key=lambda emission: emission.trigger_ms)
    return [(label.kind, label.label, label.delay_ms) for emission in emissions for label in emission.labels()]


@pytest.mark.parametrize("policy", JOINED)
@pytest.mark.parametrize(
    ("delay_ms", "fate"),
    [
        (OBSERVE_MS - 1, "early"),
        (OBSERVE_MS, "early"),  # in the last millisecond before the look
        (OBSERVE_MS + 1, "late"),
        (WINDOW_MS - 1, "late"),
        (WINDOW_MS, "late"),
        (WINDOW_MS + 1, "no"),
    ],
)
def test_each_policy_sends_the_rows_of_its_table(policy: PolicyName, delay_ms: int, fate: str) -> None:
    if fate == "early" and policy not in OBSERVING_POLICIES:
        fate = "late"  # nobody looks: no difference
    found = rows(policy, shown(at=0), did(at=delay_ms), END_MS)
    assert found == [(kind, label, delay_ms if label else -1) for kind, label in ROWS[policy][fate]]
    assert sum(kind in SETTLED_KINDS for kind, _, _ in found) == 1
    assert {kind for kind, _, _ in found} <= POLICIES[policy].kinds


@pytest.mark.parametrize("policy", OBSERVING_POLICIES)
@pytest.mark.parametrize(
    ("watermark_ms", "num_rows"), [(LOOK_OVER_MS - 1, 0), (LOOK_OVER_MS, 0), (LOOK_OVER_MS + 1, 1)]
)
def test_the_look_is_taken_when_the_watermark_passes_it_and_grace(
    policy: PolicyName, watermark_ms: int, num_rows: int
) -> None:
    assert rows(policy, shown(at=0), watermark_ms) == [("early_negative", 0, -1)] * num_rows


@pytest.mark.parametrize("policy", JOINED)
@pytest.mark.parametrize(("watermark_ms", "is_closed"), [(CLOSED_MS - 1, 0), (CLOSED_MS, 0), (CLOSED_MS + 1, 1)])
def test_the_truth_is_settled_when_the_watermark_passes_the_window_and_grace(
    policy: PolicyName, watermark_ms: int, is_closed: int
) -> None:
    found = rows(policy, shown(at=0), watermark_ms)
    assert sum(kind in SETTLED_KINDS for kind, _, _ in found) == is_closed


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("es_dfm", [("early_negative", 0), ("late_positive", 1), ("matured", 1)]),
        ("defer", [("early_negative", 0), ("early_positive_repeat", 1)]),
        ("vanilla", [("early_negative", 0), ("matured", 1)]),
    ],
)
@pytest.mark.parametrize(
    ("watermark_ms", "is_missed"), [(LOOK_OVER_MS - 1, False), (LOOK_OVER_MS, False), (LOOK_OVER_MS + 1, True)]
)
def test_an_early_positive_that_comes_after_the_look_was_missed(
    policy: PolicyName, expected: list[tuple[str, int]], watermark_ms: int, is_missed: bool
) -> None:
    core = JoinCore(under(policy), CONFIG)
    emissions = run(core, [shown(at=0), watermark_ms, did(at=500), END_MS])
    found = [(label.kind, label.label) for emission in emissions for label in emission.labels()]
    assert found == (expected if is_missed else ROWS[policy]["early"])
    assert core.counters.early_missed == int(is_missed)
    assert core.counters.feedback_positive == 1


def test_a_positive_beyond_the_look_waits_for_it_and_follows_its_negative() -> None:
    log: list[Token] = [shown(at=0), did(at=OBSERVE_MS + 1)]
    assert rows("es_dfm", *log) == []
    assert rows("es_dfm", *log, LOOK_OVER_MS + 1) == [("early_negative", 0, -1), ("late_positive", 1, OBSERVE_MS + 1)]


def test_a_fake_negative_goes_out_before_a_positive_that_was_pending() -> None:
    assert rows("fnw", did(at=7), shown(at=0)) == [("fake_negative", 0, -1), ("late_positive", 1, 7)]


def test_a_slate_that_is_late_as_a_whole_sends_nothing_at_all() -> None:
    for policy in JOINED:
        assert rows(policy, CLOSED_MS + 1, shown(at=0), did(at=1), END_MS) == []


def test_tasks_of_one_stream_follow_their_own_policies() -> None:
    """A mixed stream is, task by task, the single streams."""
    tasks = {policy: under(policy).tasks["click"] for policy in JOINED}
    log: list[Token] = [shown(at=0), did(at=20_000), did("click", "b", at=3), END_MS]
    log[0] = shown("r", "a", "b", "c", at=0)
    mixed: dict[str, list[tuple[str, str, int]]] = {policy: [] for policy in JOINED}
    for emission in run(JoinCore(schema(**tasks), CONFIG), log):
        for label in emission.labels():
            mixed[label.task].append((label.item_id, label.kind, label.label))
    for policy in JOINED:
        single = [
            (label.item_id, label.kind, label.label)
            for emission in run(JoinCore(under(policy), CONFIG), log)
            for label in emission.labels()
        ]
        assert sorted(mixed[policy]) == sorted(single)


def test_no_joiner_knows_the_future() -> None:
    with pytest.raises(ValueError, match=r"^tasks\.click\.policy: oracle knows the future"):
        JoinCore(under("oracle"), CONFIG)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"policy": "es_dfm"}, "observe_ms: None is not allowed; policy es_dfm needs 1 to 59999, less than window_ms"),
        ({"policy": "es_dfm", "observe_ms": 60_000}, "observe_ms: 60000 is not allowed"),
        ({"policy": "es_dfm", "observe_ms": 0}, "observe_ms: 0 is not allowed"),
        ({"policy": "fnw", "observe_ms": 5}, "observe_ms: policy fnw takes no early look; leave it out"),
        ({"policy": "wait", "traffic_ratio": True}, "traffic_ratio: policy wait has none"),
        ({"window_ms": 2**31}, "window_ms: 2147483648 is not allowed; 1 to 2147483647"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=f"^{error}"):
        TaskConfig(**{"action": "click", "window_ms": WINDOW_MS} | settings)  # type: ignore[arg-type]
