"""The simulated pipeline against queueing theory where it has a closed form, and against golden quantiles."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from freshrank.plan_costs import packaged_costs
from freshrank.plan_failures import failures_of, weighted_quantiles, with_failures
from freshrank.plan_pipeline import Outage, Pipeline
from freshrank.plan_simulation import simulate, train

INSTANT: dict[str, Any] = dict.fromkeys(
    ("way_ms", "fetch_wait_ms", "commit_ms", "max_wait_ms", "step_ms", "row_ms", "build_ms", "store_ms", "apply_ms"),
    0.0,
)
INSTANT |= {"full_build_ms": 0.0, "full_store_ms": 0.0, "full_apply_ms": 0.0, "request_ms": 0.0, "batch_rows": 1}
USUAL = Pipeline(rows_per_s=5_000, joiners=3, commit_spread=0.7, step_spread=0.3)


def run(
    pipeline: Pipeline, *, seconds: float = 120.0, seed: int = 1, **given: Any
) -> np.ndarray[Any, np.dtype[np.float64]]:
    rng = np.random.default_rng(seed)
    return simulate(pipeline, from_ms=3_000, until_ms=1e3 * seconds, num_actions=20_000, rng=rng, **given)


@pytest.mark.parametrize(("took_ms", "spread"), [(0.0, 0.0), (30.0, 0.0), (40.0, 0.8)])
def test_the_wait_for_a_commit_is_the_mean_residual_time_of_the_renewal_process(took_ms: float, spread: float) -> None:
    pipeline = Pipeline(**INSTANT | {"rows_per_s": 100, "joiners": 5, "commit_ms": took_ms, "commit_spread": spread})
    mean = 100 + took_ms * np.exp(spread**2 / 2)
    variance = took_ms**2 * np.exp(spread**2) * (np.exp(spread**2) - 1)
    joined_A = run(pipeline)[:, 0]
    assert joined_A.mean() == pytest.approx((mean**2 + variance) / (2 * mean), rel=0.02)


def test_the_wait_for_a_publish_is_half_the_interval_where_steps_cost_nothing() -> None:
    stages_A5 = run(Pipeline(**INSTANT | {"rows_per_s": 100, "joiners": 20, "publish_interval_ms": 700.0}))
    assert stages_A5[:, 2].mean() == pytest.approx(350, rel=0.03)
    assert stages_A5[:, 2].max() <= 700 + 1e-6


def test_the_wait_for_a_request_is_exponential() -> None:
    served_A = run(Pipeline(**INSTANT | {"rows_per_s": 100, "request_ms": 20.0}))[:, 4]
    assert served_A.mean() == pytest.approx(20, rel=0.03)
    assert np.quantile(served_A, 0.99) == pytest.approx(20 * np.log(100), rel=0.05)


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_single_rows_that_come_by_chance_wait_as_in_an_m_d_1_queue(busy: float) -> None:
    rng, step_ms, number = np.random.default_rng(0), 2.0, 100_000
    arrived_M = np.cumsum(rng.exponential(step_ms / busy, number))
    pipeline = Pipeline(
        **INSTANT | {"rows_per_s": 1e3 * busy / step_ms, "step_ms": step_ms, "publish_interval_ms": 1e12}
    )
    done = train(pipeline, arrived_M.tolist(), np.arange(1.0, number + 1).tolist(), rng, None)
    waited_ms = np.mean(np.asarray(done.learned_M) - arrived_M) - step_ms
    assert waited_ms == pytest.approx(step_ms * busy / (2 * (1 - busy)), rel=0.05)


def test_a_micro_batch_that_never_fills_waits_for_its_oldest_row_and_the_others_share_that() -> None:
    rng, per_ms, wait_ms, number = np.random.default_rng(0), 0.05, 40.0, 100_000
    arrived_M = np.cumsum(rng.exponential(1 / per_ms, number))
    given = INSTANT | {
        "rows_per_s": 1e3 * per_ms,
        "batch_rows": 10**9,
        "max_wait_ms": wait_ms,
        "publish_interval_ms": 1e12,
    }
    done = train(Pipeline(**given), arrived_M.tolist(), np.arange(1.0, number + 1).tolist(), rng, None)
    others = per_ms * wait_ms
    expected_ms = (wait_ms + others * wait_ms / 2) / (1 + others)
    assert np.mean(np.asarray(done.learned_M) - arrived_M) == pytest.approx(expected_ms, rel=0.03)


def test_a_full_micro_batch_has_the_rows_it_should() -> None:
    pipeline = Pipeline(
        **INSTANT | {"rows_per_s": 1_000, "batch_rows": 50, "max_wait_ms": 1e6, "publish_interval_ms": 1e12}
    )
    arrived = np.arange(1_000.0)
    done = train(pipeline, arrived.tolist(), (arrived + 1).tolist(), np.random.default_rng(0), None)
    assert np.unique(done.learned_M, return_counts=True)[1].tolist() == [50] * 20


def test_a_trainer_that_died_catches_up_with_the_room_it_has() -> None:
    """Behind by the outage and half a checkpoint interval, at utilisation u: u / (1 - u) times as long."""
    pipeline = replace(USUAL, step_spread=0.0, commit_spread=0.0, rows_per_s=10_000, checkpoint_interval_ms=4_000.0)
    busy, away_ms, again_ms = pipeline.utilisation, 6_000, 2_000
    assert 0.5 < busy < 0.9
    trained_A = run(pipeline, outage=Outage(broken="trainer", from_ms=20_000, lasts_ms=away_ms))[:, :2].sum(axis=1)
    late_ms = (120_000 - 3_000) * np.mean(trained_A > np.median(trained_A) + 400)
    behind_ms = away_ms + again_ms * busy
    hardly_late_ms = 400 / (1 - busy)  # a delay falls by 1 - u per ms, so those below 400 ms came so long
    assert late_ms == pytest.approx(behind_ms + behind_ms * busy / (1 - busy) - hardly_late_ms, rel=0.1)


@pytest.mark.parametrize(("broken", "longest_s"), [("joiner", 3.0), ("redis", 3.0), ("kafka", 3.0)])
def test_what_is_away_delays_actions_by_so_long_and_nothing_is_lost(broken: Any, longest_s: float) -> None:
    quiet_A5 = run(USUAL, seconds=40)
    stages_A5 = run(USUAL, seconds=40, outage=Outage(broken=broken, from_ms=10_000, lasts_ms=1e3 * longest_s))
    assert np.isfinite(stages_A5).all() and (stages_A5 > -1e-6).all()
    longest_ms = stages_A5.sum(axis=1).max()
    assert 1e3 * longest_s < longest_ms < quiet_A5.sum(axis=1).max() + 2.5e3 * longest_s


def test_the_same_seed_gives_the_same_bits_and_these_quantiles() -> None:
    stages_A5 = run(USUAL)
    assert np.array_equal(stages_A5, run(USUAL))
    assert not np.array_equal(stages_A5, run(USUAL, seed=2))
    found = np.quantile(stages_A5.sum(axis=1), [0.5, 0.9, 0.99, 0.999])
    assert found == pytest.approx([696.0, 1093.0, 1300.0, 1497.0], rel=0.02)


def test_a_trainer_that_cannot_keep_up_is_refused() -> None:
    with pytest.raises(ValueError, match="rows_per_s: 90,000 is not allowed; the trainer learns"):
        replace(USUAL, rows_per_s=90_000)
    with pytest.raises(ValueError, match="joiners: 0 is not allowed; above 0"):
        replace(USUAL, joiners=0)


def test_rare_failures_move_the_tail_and_not_the_middle() -> None:
    steady_A = run(USUAL).sum(axis=1)
    failures = failures_of(packaged_costs(), joiners=3, ranks=2)
    (p50, p99, p999), effects = with_failures(USUAL, steady_A, failures)
    assert p50 == pytest.approx(np.median(steady_A), rel=0.01)
    assert p99 >= np.quantile(steady_A, 0.99) * 0.999
    assert {effect.failure.broken for effect in effects} == {"joiner", "trainer", "redis", "kafka"}
    often = [replace(failure, per_day=failure.per_day * 300) for failure in failures]
    (_, often_p99, often_p999), _ = with_failures(USUAL, steady_A, often)
    assert often_p99 > 2 * p99 and often_p999 > p999


def test_weighted_quantiles_of_equal_weights_are_the_quantiles() -> None:
    value_A = np.random.default_rng(0).normal(size=1_001)
    found = weighted_quantiles(value_A, np.full(1_001, 0.5), (0.1, 0.5, 0.99))
    assert found == pytest.approx(np.quantile(value_A, [0.1, 0.5, 0.99], method="inverted_cdf").tolist())
