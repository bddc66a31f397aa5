"""Progressive validation: which score counts, which labels count, and over which span."""

from typing import Any

import numpy as np
import pytest

from model.delayed_labels import POLICY_CODE, DelayedLabels
from model.metrics import Arrays
from model.progressive import MetricsConfig, ProgressiveMetrics
from stream.schema import KIND_CODE, SETTLED_KINDS, KindName, PolicyName

SCENARIOS, TASKS = ("home", "search"), ("click", "order")


def new_metrics(**settings: Any) -> ProgressiveMetrics:
    return ProgressiveMetrics(SCENARIOS, TASKS, MetricsConfig(**settings), max_window_ms=1_000)


def update(
    metrics: ProgressiveMetrics,
    labels: list[float],
    *,
    scenario: int = 0,
    logit: float = 0.0,
    served: float = np.nan,
    at_ms: int = 0,
    final: bool = True,
) -> None:
    """One batch of click labels with one score; orders are never part of it."""
    shape = (len(labels), 2)
    metrics.update(
        scenario_B=np.full(len(labels), scenario),
        impression_ms_B=np.full(len(labels), at_ms),
        label_BT=np.stack([labels, np.full(len(labels), np.nan)], axis=1).astype(np.float32),
        settled_BT=np.stack([np.full(len(labels), final), np.zeros(len(labels), bool)], axis=1),
        pre_step_logit_BT=np.full(shape, logit, np.float32),
        served_BT=np.full(shape, served, np.float32),
    )


def test_the_served_score_counts_and_the_pre_step_score_stands_in() -> None:
    metrics = new_metrics()
    update(metrics, [1, 0], logit=0.0, served=0.25)
    update(metrics, [1, 0], logit=0.0)
    click = {name: metrics.report(series=name)["click"]["all"] for name in ("counted", "served", "pre_step")}
    assert click["served"]["n"] == 2
    assert click["served"]["calibration"] == pytest.approx(0.5)
    assert click["pre_step"]["n"] == 4
    assert click["pre_step"]["calibration"] == pytest.approx(1.0)
    assert click["counted"]["n"] == 4
    assert click["counted"]["calibration"] == pytest.approx((0.25 + 0.25 + 0.5 + 0.5) / 2)


def test_skew_is_the_mean_distance_of_the_two_scores() -> None:
    metrics = new_metrics()
    assert (metrics.num_skew, metrics.mean_skew) == (0, 0.0)
    update(metrics, [1, 0], logit=0.0, served=0.25)
    update(metrics, [1, 0], logit=0.0, served=0.5)
    update(metrics, [1, 0], logit=0.0)
    assert metrics.num_skew == 4
    assert metrics.mean_skew == pytest.approx(0.125)


def test_only_final_labels_count_and_others_may_hold_anything() -> None:
    metrics = new_metrics()
    update(metrics, [float("nan"), 1], final=False)
    update(metrics, [1, 0, 0])
    report = metrics.report()
    assert report["click"]["all"]["n"] == 3
    assert report["order"]["all"]["n"] == 0


def test_scenarios_are_kept_apart() -> None:
    metrics = new_metrics()
    update(metrics, [1, 0], scenario=0)
    update(metrics, [1, 0, 0], scenario=1)
    report = metrics.report()
    assert list(report) == ["click", "order"]
    assert {name: figures["n"] for name, figures in report["click"].items()} == {"all": 5, "home": 2, "search": 3}


def test_the_window_forgets_the_oldest_part() -> None:
    metrics = new_metrics(window_labels=40, window_buckets=4)
    for _ in range(3):
        update(metrics, [1] * 10)
    for _ in range(4):
        update(metrics, [0] * 10)
    assert metrics.report("lifetime")["click"]["all"]["positives"] == 30
    assert metrics.report("window")["click"]["all"] | {"auc": None} == {
        "n": 40,
        "positives": 0,
        "auc": None,
        "ne": None,
        "calibration": None,
    }


def test_a_cohort_is_shown_when_all_its_labels_must_have_arrived() -> None:
    metrics = new_metrics(cohort_ms=100)
    update(metrics, [1], at_ms=99)
    update(metrics, [0, 0], at_ms=100)
    settle_ms = 1_000

    def closed_after(watermark_ms: int) -> float | None:
        metrics.advance(watermark_ms, settle_ms)
        return metrics.report("closed")["click"]["all"]["n"]

    assert metrics.report("lifetime")["click"]["all"]["n"] == 3, "provisional figures have them at once"
    assert closed_after(1_099) == 0
    assert closed_after(1_100) == 1
    assert closed_after(1_199) == 1
    assert closed_after(1_200) == 3
    assert closed_after(50) == 3, "a watermark that goes back opens nothing"
    update(metrics, [1], at_ms=10)
    assert closed_after(1_200) == 4, "a late label is true all the same"


def test_emission_time_figures_of_a_traffic_step_are_biased_and_closed_cohorts_are_not() -> None:
    """Positives arrive at once, negatives a window later; traffic quadruples in the last cohorts."""
    metrics = new_metrics(cohort_ms=100, window_labels=10_000)
    settle_ms = 1_000
    for tick in range(40):
        traffic = 40 if tick >= 35 else 10
        update(metrics, [1] * (traffic // 2), at_ms=tick * 100)
        earlier = tick - 10
        if earlier >= 0:
            update(metrics, [0] * 5, at_ms=earlier * 100)
        metrics.advance(tick * 100, settle_ms)
    closed, provisional = (metrics.report(span)["click"]["all"]["calibration"] for span in ("closed", "lifetime"))
    assert closed == pytest.approx(1.0)
    assert provisional is not None
    assert abs(provisional - 1.0) > 0.1


def test_closed_cohorts_are_kept_for_the_score_that_counts_only() -> None:
    with pytest.raises(ValueError, match="series: 'served' is not kept by closed cohorts"):
        new_metrics().report("closed", "served")


def drive(metrics: ProgressiveMetrics, start: int, end: int) -> None:
    for tick in range(start, end):
        rng = np.random.default_rng(tick)
        update(
            metrics,
            (rng.random(7) < 0.4).astype(float).tolist(),
            scenario=tick % 2,
            logit=float(rng.normal()),
            served=float(rng.random()) if tick % 3 else np.nan,
            at_ms=tick * 70,
        )
        metrics.advance(tick * 70, 200)


def assert_equal_state(one: Arrays, two: Arrays) -> None:
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)


def test_a_resumed_run_has_the_same_bits() -> None:
    settings = {"window_labels": 50, "window_buckets": 3, "cohort_ms": 100}
    uninterrupted, before, after = new_metrics(**settings), new_metrics(**settings), new_metrics(**settings)
    drive(uninterrupted, 0, 40)
    drive(before, 0, 23)
    after.load_state(before.state())
    assert_equal_state(after.state(), before.state())
    drive(after, 23, 40)
    assert_equal_state(after.state(), uninterrupted.state())


# Labels that are corrected later.


def emission(
    metrics: ProgressiveMetrics,
    kind: KindName,
    keys: list[int],
    logit: float,
    *,
    label: float = 0.0,
    served: float = np.nan,
    policy: PolicyName = "fnw",
) -> None:
    """One batch of click rows of one kind; orders are not part of it."""
    shape = (len(keys), 2)
    kind_BT = np.zeros(shape, np.int8)
    kind_BT[:, 0] = KIND_CODE[kind]
    is_click = np.array([True, False])
    first = kind in ("fake_negative", "final")
    metrics.update(
        scenario_B=np.zeros(len(keys), np.int64),
        impression_ms_B=np.zeros(len(keys), np.int64),
        label_BT=np.full(shape, label, np.float32),
        settled_BT=np.tile(is_click & (kind in SETTLED_KINDS), (len(keys), 1)),
        pre_step_logit_BT=np.full(shape, logit, np.float32),
        served_BT=np.full(shape, served, np.float32),
        first_BT=np.tile(is_click & first, (len(keys), 1)),
        delayed=DelayedLabels(
            key_B=np.array(keys),
            impression_ms_B=np.zeros(len(keys), np.int64),
            policy_BT=np.full(shape, POLICY_CODE[policy], np.int8),
            kind_BT=kind_BT,
            delay_ms_BT=np.full(shape, -1),
            observe_ms_BT=np.full(shape, -1),
            window_ms_BT=np.full(shape, 1_000),
        ),
    )


def click(metrics: ProgressiveMetrics) -> dict[str, Any]:
    return dict(metrics.report()["click"]["all"])


def test_the_score_of_the_first_emission_waits_for_the_settled_row_and_no_later_one_counts() -> None:
    metrics = new_metrics()
    emission(metrics, "fake_negative", [7, 8], logit=-1.0)
    assert click(metrics)["n"] == 0, "a fake negative is not the truth"
    emission(metrics, "late_positive", [7], logit=5.0, label=1.0)
    assert click(metrics)["n"] == 0, "the truth is in the settled row"
    emission(metrics, "matured", [7], logit=np.nan, label=1.0)
    emission(metrics, "real_negative_repeat", [8], logit=5.0, policy="fnw_rn")
    first = 1 / (1 + np.exp(1.0))
    assert click(metrics)["n"] == 2
    assert click(metrics)["calibration"] == pytest.approx(2 * first)
    assert metrics.num_unscored == 0
    emission(metrics, "matured", [7], logit=np.nan, label=1.0)
    assert (click(metrics)["n"], metrics.num_unscored) == (2, 1), "its score was used up"


def test_a_served_score_needs_no_kept_one() -> None:
    metrics = new_metrics(kept_scores=1)
    emission(metrics, "fake_negative", [1, 2, 3], logit=3.0, served=0.25)
    emission(metrics, "matured", [1, 2, 3], logit=np.nan, label=1.0, served=0.25)
    assert click(metrics)["calibration"] == pytest.approx(0.25)
    assert (metrics.num_unscored, metrics.num_scores_dropped) == (0, 0)


def test_kept_scores_are_bounded_and_what_is_dropped_is_counted() -> None:
    metrics = new_metrics(kept_scores=2)
    emission(metrics, "fake_negative", [1, 2, 3], logit=0.0)
    assert metrics.num_scores_dropped == 1
    emission(metrics, "matured", [1, 2, 3], logit=np.nan, label=1.0)
    assert (click(metrics)["n"], metrics.num_unscored) == (2, 1)
    emission(metrics, "fake_negative", [4, 5], logit=0.0)
    metrics.advance(1_000, 500)
    emission(metrics, "fake_negative", [6], logit=0.0)
    assert metrics.num_scores_dropped == 2, "those may still settle: no room"
    metrics.advance(1_001, 500)
    emission(metrics, "fake_negative", [7], logit=0.0)
    assert metrics.num_scores_dropped == 4, "those should have settled by now: given up"
    emission(metrics, "matured", [7], logit=np.nan, label=1.0)
    assert click(metrics)["n"] == 3


def test_scores_of_fnc_are_mapped_before_they_are_judged() -> None:
    metrics = new_metrics()
    emission(metrics, "fake_negative", [1], logit=float(np.log(0.2 / 0.8)), policy="fnc")
    emission(metrics, "matured", [1], logit=np.nan, label=1.0, policy="fnc")
    assert click(metrics)["calibration"] == pytest.approx(0.25)


def test_kept_scores_survive_a_resume() -> None:
    one, two = new_metrics(), new_metrics()
    emission(one, "fake_negative", [1, 2], logit=1.0)
    emission(one, "matured", [9], logit=np.nan)
    two.load_state(one.state())
    for metrics in (one, two):
        emission(metrics, "matured", [2], logit=np.nan, label=1.0)
    assert_equal_state(one.state(), two.state())
    assert (click(two)["n"], two.num_unscored) == (1, 1)


@pytest.mark.parametrize(
    ("name", "value"), [("window_labels", 0), ("window_buckets", 1), ("cohort_ms", 0), ("kept_scores", 0)]
)
def test_impossible_settings_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}: {value} is not allowed; at least"):
        new_metrics(**{name: value})


def test_a_scenario_that_comes_later_leaves_every_figure_as_it_was() -> None:
    metrics, same = (ProgressiveMetrics(("home",), ("click",), MetricsConfig(cohort_ms=1_000), 9_000) for _ in range(2))
    rng = np.random.default_rng(0)

    def batch(scenario: int) -> dict[str, Any]:
        return {
            "scenario_B": np.full(20, scenario),
            "impression_ms_B": rng.integers(0, 9_000, 20),
            "label_BT": rng.integers(0, 2, (20, 1)).astype(np.float32),
            "settled_BT": np.ones((20, 1), np.bool_),
            "pre_step_logit_BT": rng.normal(size=(20, 1)),
            "served_BT": rng.random((20, 1)),
        }

    for _ in range(3):
        rows = batch(0)
        metrics.update(**rows)
        same.update(**rows)
    metrics.add_scenario("deals")
    for span in ("lifetime", "window", "closed"):
        assert metrics.report(span)["click"]["home"] == same.report(span)["click"]["home"]
        assert metrics.report(span)["click"]["deals"]["n"] == 0
    metrics.update(**batch(1))
    for one in (metrics, same):
        one.advance(100_000, 1_000)
    assert metrics.report("closed")["click"]["home"] == same.report("closed")["click"]["home"]
    assert metrics.report("closed")["click"]["deals"]["n"] == 20 == metrics.report("window")["click"]["deals"]["n"]
    assert metrics.report("closed")["click"]["all"]["n"] == 80
