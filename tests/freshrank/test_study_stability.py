"""`freshrank study stability`: its figures are what plain loops say, floors stand beside them, and the term works."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from freshrank.cli import main
from freshrank.compare_data import CompareData
from freshrank.stability_log import LogStudyConfig
from freshrank.stability_metrics import excess_by_batch, figures, mean_of, summary
from freshrank.stability_refits import run_refits
from freshrank.stability_stream import Stream, Trace, every, log_stream, run_stream, world_model, world_stream
from freshrank.study_stability import StabilityStudyConfig, held, quick_study, study_stability
from freshrank.study_stability_page import plots, study_stability_page, svg_files
from freshrank.trade_off_chart import Band, Point, trade_off_chart
from model.features import FeatureEncoder
from model.score_regularization import ScoreRegularizationConfig
from sim.drifting_world import DriftingWorldConfig

torch.set_num_threads(1)
WORLD = DriftingWorldConfig(period_rows=2_000)
TINY = replace(
    quick_study(1), world=replace(WORLD, period_rows=1_000, batch_rows=100), periods=4, requests=40, weights=(1.0,)
)


def stream_of(seed: int, world: DriftingWorldConfig = WORLD, periods: int = 3) -> Stream:
    return world_stream(world, seed=seed, periods=periods, publishes=2, requests=30, candidates=8)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return study_stability(TINY)


def made_up(stream: Stream, seed: int) -> Trace:
    rng = np.random.default_rng(seed)
    rows = sum(map(len, stream.truth))
    shape = (stream.num_periods, *stream.probe.is_item_NK.shape, 2)
    return Trace(rng.random((rows, 2)).astype(np.float32), rng.random(shape), rng.random(shape))


def test_figures_of_a_trace_are_those_of_plain_loops() -> None:
    stream = stream_of(0)
    trace = made_up(stream, 1)
    found = figures(stream, trace, first_period=1)
    first = 2_000
    truth, score = np.concatenate(stream.truth)[first:], trace.score_RT[first:].astype(np.float64)
    losses = -(truth * np.log(score) + (1 - truth) * np.log(1 - score))
    rate = truth.mean(axis=0)
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert found["ne"] == pytest.approx((losses.mean(axis=0) / entropy).mean())
    assert found["calibration"] == pytest.approx((score.sum(axis=0) / truth.sum(axis=0)).mean())
    firsts = (trace.end_PNKT @ stream.weights_T).argmax(axis=2)
    assert found["top1_changed"] == pytest.approx(np.mean([firsts[p] != firsts[p + 1] for p in (0, 1)]))
    before = (trace.before_PNKT @ stream.weights_T).argmax(axis=2)
    assert found["publish_top1_changed"] == pytest.approx(np.mean([before[p] != firsts[p] for p in (1, 2)]))
    good = 0
    for p in (0, 1):
        old, new, right = (
            score @ stream.weights_T for score in (*trace.end_PNKT[p : p + 2], stream.probe.truth_PNKT[p + 1])
        )
        for n in range(30):
            for i in range(8):
                for k in range(8):
                    good += right[n, i] > right[n, k] and old[n, i] < old[n, k] and new[n, i] > new[n, k]
    assert found["good_pairs"] == pytest.approx(good / 60)


def test_the_mean_of_a_model_with_itself_is_the_model_and_costs_nothing() -> None:
    stream = stream_of(0)
    trace = made_up(stream, 1)
    both = mean_of(trace, trace)
    assert figures(stream, both, 1) == pytest.approx(figures(stream, trace, 1))
    assert excess_by_batch(stream, both, trace, 10, 5) == pytest.approx(np.zeros(4))
    assert (excess_by_batch(stream, made_up(stream, 2), trace, 10, 5) != 0).all()


def test_differences_are_paired_by_seed() -> None:
    base = [{"ne": 0.8, "auc": 0.7, "top1_changed": 0.4, "rbo_distance": 0.2}]
    base.append({"ne": 0.9, "auc": 0.6, "top1_changed": 0.2, "rbo_distance": 0.1})
    other = [
        {name: value * (0.5 if "ne" not in name else 1.0) + (name == "ne") * 0.01 for name, value in one.items()}
        for one in base
    ]
    found = summary(other, base)
    assert found["ne_difference"] == {"mean": 0.01, "ci": [0.01, 0.01]}
    assert found["top1_ratio"] == {"mean": 0.5, "ci": [0.5, 0.5]}


def test_the_truth_is_what_the_stream_is_judged_by() -> None:
    stream = stream_of(3)
    rows = np.concatenate(stream.truth).astype(np.float32)
    truth = stream.probe.truth_PNKT
    best = figures(stream, Trace(rows, truth, truth), 1)
    learned = figures(stream, run_stream(stream, world_model(WORLD), 0), 1)
    assert best["ne"] < learned["ne"] and best["bad_pairs"] == 0 < learned["bad_pairs"]
    assert best["calibration"] == pytest.approx(1.0, abs=1e-6)


def test_a_seed_gives_the_same_trace_and_another_one_another() -> None:
    stream = stream_of(0)
    one, again, other = (run_stream(stream, world_model(WORLD), seed) for seed in (0, 0, 1))
    assert np.array_equal(one.score_RT, again.score_RT) and np.array_equal(one.before_PNKT, again.before_PNKT)
    assert np.array_equal(one.end_PNKT, again.end_PNKT)
    assert not np.array_equal(one.end_PNKT, other.end_PNKT)
    shuffled = run_stream(stream, world_model(WORLD), 0, shuffle=True)
    assert shuffled.score_RT.shape == one.score_RT.shape and not np.array_equal(shuffled.end_PNKT, one.end_PNKT)


def test_a_term_of_weight_0_changes_no_bit_and_a_strong_one_holds_the_ranking() -> None:
    stream, base = stream_of(0, periods=4), world_model(WORLD)
    free, weightless, strong = (
        run_stream(stream, config, 0)
        for config in (
            base, held(base, weight=0.0, refresh_ms=every(2, 5)), held(base, weight=8.0, refresh_ms=every(2, 5)),
        )
    )  # fmt: skip
    assert np.array_equal(free.end_PNKT, weightless.end_PNKT)
    assert np.array_equal(free.end_PNKT[0], strong.end_PNKT[0])  # no teacher before the first period is over
    churn = [figures(stream, trace, 2)["rbo_distance"] for trace in (free, strong)]
    assert churn[1] < 0.8 * churn[0]


def test_refits_from_scratch_change_more_than_warm_ones_and_the_term_holds_both() -> None:
    stream = stream_of(1, periods=4)
    base = world_model(WORLD)
    term = ScoreRegularizationConfig(teacher="served", weight=2.0, drift_guard=None)
    churn = {}
    for name, config in (("free", base), ("held", replace(base, score_regularization=term))):
        for init in ("scratch", "warm"):
            trace = run_refits(stream, config, 0, init=init, epochs=2)
            assert (trace.score_RT[:2_000] == 0.5).all()
            churn[name, init] = figures(stream, trace, 2)["rbo_distance"]
    assert churn["held", "scratch"] < churn["free", "scratch"] > churn["free", "warm"] > churn["held", "warm"]


def test_a_log_gives_its_last_slates_to_the_probe_and_the_rest_to_periods() -> None:
    made = stream_of(0)
    encoder = FeatureEncoder(made.schema, world_model(WORLD).encoding)
    data = CompareData(schema=made.schema, fields=encoder.fields, batches=made.batches)
    stream = log_stream(data, periods=2, publishes=3, probe_share=0.2, weights_T=np.ones(2))
    assert (stream.period, stream.publish, len(stream.batches), stream.num_periods) == (12, 4, 24, 2)
    assert stream.probe.rows.num_rows == 6 * 200 == stream.probe.is_item_NK.sum()
    labels = np.concatenate([batch.labels.label_BT for batch in made.batches[-6:]])
    assert np.array_equal(stream.probe.truth_PNKT[0][stream.probe.is_item_NK], labels)
    with pytest.raises(ValueError, match="^periods: 50 is not allowed"):
        log_stream(data, periods=50, publishes=3, probe_share=0.2, weights_T=np.ones(2))


def test_result_has_floors_points_and_all_parts(result: dict[str, Any]) -> None:
    assert [(point["form"], point["weight"]) for point in result["curve"]] == [
        (form, 1.0) for form in ("ce", "prob_mse", "logit_mse")
    ]
    for name in ("seed", "refresh"):
        assert 0 < result["floors"][name]["rbo_distance"]["mean"] < 1
    assert result["stream"]["no term"]["ne_difference"]["mean"] == 0
    assert set(result["refits"]["against_warm"]) == {"scratch", "scratch + ce 1", "warm", "warm + ce 1"}
    assert set(result["drift"]["variants"]) == {"weight 1, age 1", "weight 1, age 1, with alarm"}
    assert len(result["drift"]["age_periods"]) == 20
    json.dumps(result)


def test_page_shows_all_plots_and_refuses_without_the_seed_floor(result: dict[str, Any]) -> None:
    page = study_stability_page(result)
    assert page.count("<svg") == len(plots(result)) == 8
    assert page.count("seed floor") > 4 and "seed floor (scratch)" in page
    assert all('font-family="sans-serif"' in chart for chart in svg_files(result).values())
    bare = deepcopy(result)
    del bare["floors"]["seed"]
    with pytest.raises(ValueError, match="churn without its seed floor is not shown"):
        study_stability_page(bare)


def test_trade_off_chart_puts_points_where_they_belong() -> None:
    line = [Point(0.4, 0.0, 0, 0, "first"), Point(0.2, 0.01, 0, 0, "second")]
    chart = trade_off_chart(
        {"ce": line}, [Point(0.3, 0.005, 0.01, 0.001, "half")], [Band(low=0.38, high=0.42, text="floor")],
        x_label="churn", y_label="NE", level=(0.001, "free"),
    )  # fmt: skip
    assert chart.count("<circle") == 2 and chart.count("<polyline") == 1
    assert all(text in chart for text in ("first", "second", "half", "floor", "free", "churn", "NE", "ce"))


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (StabilityStudyConfig, "seeds", 0), (StabilityStudyConfig, "periods", 4),
        (StabilityStudyConfig, "publishes", 7),
        (LogStudyConfig, "rows", 0), (LogStudyConfig, "first_period", 4), (LogStudyConfig, "probe_share", 1.0),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(kind: Any, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{setting}: .* is not allowed; "):
        kind(**{setting: value})


def test_command_needs_the_configuration_of_a_log(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["study", "stability", "--log", str(tmp_path)])
    assert done.exit_code != 0 and "--config: needed with --log" in done.stderr
