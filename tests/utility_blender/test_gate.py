from dataclasses import replace
from typing import Any

import pytest

from utility_blender.gate import decide
from utility_blender.gate_config import GateConfig
from utility_blender.ope_report import GroupReport, Interval, OpeReport


def interval(value: float, half: float = 0.01) -> Interval:
    """Returns an estimate with bounds as far on both sides."""
    return Interval(value, half / 1.645, value - half, value + half)


GROUP = GroupReport(
    name="home",
    scenarios=("home",),
    num_requests=5_000,
    num_users=1_000,
    mean_reward=6.0,
    sd_reward=4.0,
    value_center=interval(6.0, 0.1),
    item=interval(0.1, 0.05),
    dr=interval(0.1, 0.05),
    dm=0.1,
    kernel_ips=interval(0.05, 0.2),
    kernel_snips=interval(0.05, 0.1),
    static_mean=interval(0.05, 0.1),
    mean_weights={name: interval(1.0) for name in ("item", "kernel", "item_center", "kernel_center")},
    ess=0.4,
    uncovered=0.001,
    bandwidth=0.02,
    angle=12.0,
    angle_p95=20.0,
    angle_explored=12.0,
    actions={"home": {"click": interval(0.02, 0.01), "hide": interval(-0.2, 0.01)}},
)
REPORT = OpeReport(num_requests=5_000, replayed=1.0, densities=1.0, negative=("hide",), groups=(GROUP,))
CONFIG = GateConfig(guarded={"click": 0.005, "hide": 0.005})


def test_a_sound_report_passes() -> None:
    decision = decide(REPORT, CONFIG)
    assert decision.passed
    assert decision.reasons == ()
    assert {rule.verdict for rule in decision.rules} == {"passed"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"ess": 0.099}, "home: effective share of requests: 0.099; must be at least 0.1"),
        ({"uncovered": 0.011}, "home: share of its slates never explored: 0.011; must be at most 0.01"),
        ({"dm": -0.06}, "home: upper bound of the lift, model: -0.01; must be above 0"),
        ({"item": interval(0.04, 0.05)}, "home: lower bound of the lift, item inclusion: -0.01; must be above 0"),
        ({"dr": interval(-0.02)}, "home: upper bound of the lift, doubly robust: -0.01; must be above 0"),
        ({"angle": 14.5}, "home: median angle to the centre, degrees: 14.5; must be at most 14.4"),
        ({"angle_p95": 26.5}, "home: 95th percentile of the angle, degrees: 26.5; must be at most 26.4"),
        ({"static_mean": interval(-0.01)}, "home: lift over its own mean weights: -0.01; must be above 0"),
        (
            {"actions": {"home": {"click": interval(0.004, 0.01), "hide": interval(0.0)}}},
            "home: bound of the relative lift of click: -0.006; must be at least -0.005",
        ),
        (
            {"actions": {"home": {"click": interval(0.1), "hide": interval(0.0, 0.006)}}},
            "home: bound of the relative lift of hide: 0.006; must be at most 0.005",
        ),
    ],
)
def test_each_rule_stops_a_policy_with_its_figure_and_threshold(changed: dict[str, Any], reason: str) -> None:
    decision = decide(replace(REPORT, groups=(replace(GROUP, **changed),)), CONFIG)
    assert not decision.passed
    assert reason in decision.reasons


@pytest.mark.parametrize("name", ["item", "kernel", "item_center", "kernel_center"])
@pytest.mark.parametrize(
    ("weight", "passes"),
    [
        (interval(1.04, 0.009), False),
        (interval(1.04, 0.011), True),
        (interval(0.9, 0.06), False),
        (interval(0.9, 0.071), True),
    ],
)
def test_a_mean_weight_may_be_off_by_its_tolerance_and_its_own_error(name: str, weight: Interval, passes: bool) -> None:
    group = replace(GROUP, mean_weights={**GROUP.mean_weights, name: weight})
    assert decide(replace(REPORT, groups=(group,)), CONFIG).passed is passes


def test_one_bad_group_is_enough() -> None:
    bad = replace(GROUP, name="search", ess=0.01)
    assert decide(replace(REPORT, groups=(GROUP, bad)), CONFIG).reasons == (
        "search: effective share of requests: 0.01; must be at least 0.1",
    )


def test_a_log_that_does_not_replay_or_is_too_short_says_nothing() -> None:
    void = replace(REPORT, replayed=0.999, groups=())
    assert decide(void, CONFIG).reasons == (
        "share of requests that replay to their logged slate: 0.999; must be at least 1",
    )
    short = replace(REPORT, num_requests=1_999, groups=())
    assert decide(short, CONFIG).reasons == ("explored requests: 1999; must be at least 2000",)
    wrong = decide(replace(REPORT, densities=0.5), CONFIG)
    assert wrong.reasons == ("share of requests with the density of their law: 0.5; must be at least 1",)


def test_what_cannot_be_judged_is_listed_and_does_not_fail() -> None:
    constant = replace(GROUP, static_mean=None, actions={"home": {"click": interval(0.02)}})
    decision = decide(replace(REPORT, groups=(constant,)), CONFIG)
    assert decision.passed
    assert [rule.name for rule in decision.rules if rule.verdict == "not judged"] == [
        "home: lift over its own mean weights",
        "home: bound of the relative lift of hide",
    ]


def test_figures_that_are_no_numbers_never_pass() -> None:
    nan = float("nan")
    for changed in ({"ess": nan}, {"item": Interval(nan, nan, nan, nan)}, {"uncovered": nan}, {"dm": nan}):
        assert not decide(replace(REPORT, groups=(replace(GROUP, **changed),)), CONFIG).passed
    weights = {**GROUP.mean_weights, "kernel": Interval(nan, nan, nan, nan)}
    assert not decide(replace(REPORT, groups=(replace(GROUP, mean_weights=weights),)), CONFIG).passed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_draws": 399}, "kernel_draws: 399 is not allowed; at least 400"),
        ({"inclusion_draws": 99}, "inclusion_draws: 99 is not allowed; at least 100"),
        ({"min_requests": 99}, "min_requests: 99 is not allowed; at least 100"),
        ({"pool_below": 99}, "pool_below: 99 is not allowed; at least 100"),
        ({"resamples": 199}, "resamples: 199 is not allowed; at least 200"),
        ({"mean_weight_off": 0.0}, r"mean_weight_off: 0.0 is not allowed; in \(0, 0.5\]"),
        ({"min_ess": 1.0}, r"min_ess: 1.0 is not allowed; in \(0, 1\)"),
        ({"max_uncovered": 1.0}, r"max_uncovered: 1.0 is not allowed; in \[0, 1\)"),
        ({"max_angle": 0.0}, "max_angle: 0.0 is not allowed; a finite number above 0"),
        ({"max_angle_p95": float("inf")}, "max_angle_p95: inf is not allowed; a finite number above 0"),
        ({"guarded": {"hide": 0.0}}, "guarded.hide: 0.0 is not allowed; a finite number above 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        GateConfig(**settings)
