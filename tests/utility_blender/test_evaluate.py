import json
from dataclasses import replace

import numpy as np
import pytest

from freshrank.study_blender_world import judge_of
from tests.utility_blender.planted import EXPLORE, Factors, literal, make_world, restated, step
from utility_blender.contexts import Contexts, Floats
from utility_blender.cross_fit import CrossFit
from utility_blender.evaluate import Evaluation, admissible, evaluate
from utility_blender.gate import decide
from utility_blender.gate_config import GateConfig
from utility_blender.ope_report import WEIGHT_BINS
from utility_blender.policy import Policy
from utility_blender.reward import RewardConfig, request_rewards

CONFIG = GateConfig(resamples=200)
WORLD = make_world()
FIT = WORLD.explored(20_000, WORLD.static, EXPLORE, seed=100)
SLICE = WORLD.explored(5_000, WORLD.static, EXPLORE, seed=1_000)
EVALUATION = Evaluation(WORLD.static, SLICE, WORLD.reward, CONFIG, seed=0)
JUDGE = judge_of(WORLD, 20_000, seed=10_000)
GOOD = step(WORLD, FIT, WORLD.static, angle=8.0)


def test_the_centre_is_worth_what_it_is_worth_when_served() -> None:
    group = EVALUATION.of(GOOD).groups[0]
    assert abs(group.value_center.value - JUDGE.static_value) < 2 * group.value_center.se
    assert all(abs(w.value - 1) < 0.03 for name, w in group.mean_weights.items() if name.endswith("center"))


def test_estimates_of_an_admitted_policy_are_near_the_truth() -> None:
    truth = JUDGE.value(GOOD) - JUDGE.static_value
    group = EVALUATION.of(GOOD).groups[0]
    assert truth > 0.05
    assert abs(group.item.value - truth) < 2 * group.item.se + 0.1 * truth
    assert abs(group.dr.value - truth) < 2 * group.dr.se + 0.1 * truth
    assert group.item.se < group.dr.se


def test_the_centre_against_itself_lifts_nothing_exactly() -> None:
    group = EVALUATION.of(WORLD.static).groups[0]
    assert (group.item.value, group.item.se) == (0.0, 0.0)
    assert [group.dr.value, group.dm] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert group.static_mean is None
    assert not decide(EVALUATION.of(WORLD.static), CONFIG).passed


def test_planted_bad_policies_are_refused() -> None:
    bad: dict[str, Policy] = {
        "reversed": step(WORLD, FIT, WORLD.static, angle=13.0, sign=-1.0),
        "placebo": step(WORLD, FIT, WORLD.static, angle=13.0, seed=0),
        "hide weighs nothing": Factors(WORLD.static, (1, 1, 1, 0)),
        "published, literal": literal(WORLD, FIT, WORLD.static, penalty=0.02),
    }
    for name, policy in bad.items():
        assert JUDGE.value(policy) < JUDGE.static_value, name
        decision = decide(EVALUATION.of(policy), CONFIG)
        assert not decision.passed, name
        assert any("item inclusion" in reason for reason in decision.reasons), name


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_jitter_stated_wrongly_shows_in_the_mean_weight_of_the_centre(factor: float) -> None:
    report = Evaluation(WORLD.static, restated(SLICE, factor), WORLD.reward, CONFIG, seed=0).of(GOOD)
    assert report.densities < 1
    reasons = decide(report, CONFIG).reasons
    assert any(reason.startswith("home: mean weight, kernel_center") for reason in reasons)


def test_the_same_seed_gives_the_same_report_as_plain_data() -> None:
    few = SLICE.take(range(2_000))
    reports = [evaluate(GOOD, WORLD.static, few, WORLD.reward, CONFIG, seed=7).as_dict() for _ in range(2)]
    assert json.dumps(reports[0]) == json.dumps(reports[1])
    counts = reports[0]["groups"][0]["weight_counts"]
    assert {name: sum(bins) for name, bins in counts.items()} == {"item": 2_000 * 8, "kernel": 2_000}
    assert len(counts["item"]) == len(WEIGHT_BINS)


def test_small_scenarios_are_pooled_and_their_actions_still_told_apart() -> None:
    num = 3_000
    names = ["big"] * 2_000 + ["one", "two"] * 500
    mixed = replace(SLICE.take(range(num)), contexts=Contexts(scenario=names, columns={}))

    class Everywhere:
        def weights(self, contexts: Contexts) -> Floats:
            return np.tile(SLICE.center_NT[0], (len(contexts), 1))

    config = GateConfig(resamples=200, pool_below=2_000)
    groups = evaluate(Everywhere(), Everywhere(), mixed, WORLD.reward, config, seed=0).groups
    assert [(group.name, group.scenarios, group.num_requests) for group in groups] == [
        ("big", ("big",), 2_000),
        ("pooled", ("one", "two"), 1_000),
    ]
    assert list(groups[0].actions) == ["big"]
    assert list(groups[1].actions) == ["pooled", "one", "two"]


def test_a_slice_that_does_not_replay_is_void_and_a_short_one_not_judged() -> None:
    broken = SLICE.take(range(2_000))
    broken.scores_NCT[5] = broken.scores_NCT[5, ::-1]
    report = evaluate(GOOD, WORLD.static, broken, WORLD.reward, CONFIG, seed=0)
    assert report.replayed == 1_999 / 2_000
    assert report.groups == ()
    assert not decide(report, CONFIG).passed
    short = evaluate(GOOD, WORLD.static, SLICE.take(range(1_999)), WORLD.reward, CONFIG, seed=0)
    assert decide(short, CONFIG).reasons == ("explored requests: 1999; must be at least 2000",)


def test_rewards_that_do_not_split_into_items_are_refused() -> None:
    binary = RewardConfig(values={"repin": 1.0}, aggregate="binary")
    with pytest.raises(ValueError, match=r"^reward\.aggregate: binary rewards do not split into items"):
        evaluate(GOOD, WORLD.static, SLICE, binary, CONFIG, seed=0)


def test_denied_snapshots_and_requests_that_were_not_drawn_stay_out() -> None:
    some = SLICE.take(range(4))
    some.snapshot_N[:] = [3, 4, 5, 5]
    some.log_density_N[3] = np.nan
    assert admissible(some, denied={4}).tolist() == [True, False, True, False]


def test_the_models_error_is_in_the_interval_of_the_doubly_robust_lift() -> None:
    """Refitting on resampled users scatters the model's lift as widely as the linear noise term says."""
    few = SLICE.take(range(1_500))
    reward_N, num = request_rewards(few, WORLD.reward), 1_500
    weights_NT = GOOD.weights(few.contexts)
    each_N = np.full(num, 1 / num)
    noise_N = CrossFit(few, reward_N, seed=0).noise([(each_N, weights_NT), (-each_N, few.center_NT)])
    rng, lifts = np.random.default_rng(0), []
    for _ in range(40):
        other_N = rng.permutation(reward_N - reward_N.mean())  # pure noise, of the same size
        fitted = CrossFit(few, other_N, seed=0)
        lifts.append(float((fitted.predict(weights_NT) - fitted.predict(few.center_NT)).mean()))
    assert np.std(lifts) == pytest.approx(np.sqrt((noise_N**2).sum()), rel=0.4)
