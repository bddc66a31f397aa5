"""The published form: its loss as written down, and the defects that come with it.

Design, sections 2 and 3, and acceptance tests 5, 6 and 11.
"""

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.utility_blender.some_outcomes import some_outcomes
from utility_blender.centring import angles
from utility_blender.fit import fit
from utility_blender.fit_mlp import AdamConfig
from utility_blender.learn_config import LearnConfig, PublishedConfig
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy, StaticPolicy
from utility_blender.published import Rows, best_bias, loss, rows_of
from utility_blender.reward import RewardConfig

OPTIONS = [
    PublishedConfig(penalty=0.3, hide=hide, prior=prior, row=row)
    for hide in ("literal", "relabel")
    for prior in ("per_row", "per_batch")
    for row in ("item", "request")
]
REWARD = RewardConfig(values={"click": 1.0, "order": -2.0}, winsorize=1.0)
STATIC = StaticPolicy({name: np.array([1.0, 5.0]) for name in ("home", "search")})


def rows_by_hand(outcomes: Outcomes, request: int, config: PublishedConfig) -> list[tuple[int, float]]:
    """Returns (y, R) of every row of a request, literally."""
    rows: list[tuple[int, float]] = []
    total, anything = 0.0, False
    for item in range(outcomes.position_NC.shape[1]):
        if outcomes.position_NC[request, item] < 0:
            continue
        done = [name for place, name in enumerate(outcomes.actions) if outcomes.value_NCA[request, item, place] > 0]
        for action in done:
            total, anything = total + REWARD.values[action], True
            rows.append((1, REWARD.values[action]))
        if not done:
            rows.append((0, 1.0))
    if config.row == "request":
        rows = [(1, total)] if anything else [(0, 1.0)]
    return [(0, -worth) if worth < 0 and config.hide == "relabel" else (y, worth) for y, worth in rows]


@pytest.mark.parametrize("config", OPTIONS, ids=str)
def test_the_loss_is_the_one_written_down_and_its_gradient_that_of_finite_differences(config: PublishedConfig) -> None:
    outcomes = some_outcomes(30)
    rng = np.random.default_rng(1)
    f_NT, static_NT, bias = rng.normal(size=(30, 2)), np.tile([1.0, 5.0], (30, 1)), 0.3
    rows = rows_of(outcomes, REWARD, config)

    def by_hand() -> float:
        total, prior, num = 0.0, 0.0, 0
        for request in range(30):
            z = float(outcomes.weights_NT[request] @ f_NT[request]) + bias
            distance = float(((static_NT[request] - f_NT[request]) ** 2).sum())
            mine = rows_by_hand(outcomes, request, config)
            for y, worth in mine:
                total += worth * -(math.log(1 / (1 + math.exp(-z))) if y else math.log(1 / (1 + math.exp(z))))
            prior += distance * (len(mine) if config.prior == "per_row" else 1 / 30)
            num += len(mine)
        return (total + config.penalty * prior) / num

    value, by_f_NT, by_bias = loss(rows, outcomes.weights_NT, f_NT, static_NT, bias, config)
    assert value == pytest.approx(by_hand(), rel=1e-9)
    for place in [(0, 0), (7, 1), (29, 0)]:
        before = f_NT[place]
        f_NT[place] = before + 1e-6
        above = by_hand()
        f_NT[place] = before - 1e-6
        below = by_hand()
        f_NT[place] = before
        assert by_f_NT[place] == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-9)
    bias += 1e-6
    above = by_hand()
    bias -= 2e-6
    assert by_bias == pytest.approx((above - by_hand()) / 2e-6, rel=1e-4, abs=1e-9)


def world(num: int, *, hide: float = 0.0, seed: int = 0) -> Outcomes:
    """Returns outcomes in which clicks do not depend on the weights at all, but on the mood: buy .5, look .05."""
    outcomes, rng = some_outcomes(num, seed=seed), np.random.default_rng(seed + 100)
    rate_N = np.where(np.array(outcomes.contexts.columns["context.mood"]) == "buy", 0.5, 0.05)
    value_NCA = np.zeros_like(outcomes.value_NCA)
    value_NCA[..., 0] = rng.random(value_NCA.shape[:2]) < rate_N[:, None]
    value_NCA[..., 1] = rng.random(value_NCA.shape[:2]) < hide
    return replace(outcomes, value_NCA=value_NCA * outcomes.shown_NC[..., None])


def learn(outcomes: Outcomes, **options: Any) -> Policy:
    published = PublishedConfig(**options)
    adam = AdamConfig(epochs=30, batch=256, rate=3e-3)
    config = LearnConfig(method="published", context=("context.mood",), published=published, adam_base=adam)
    return fit(outcomes, STATIC, STATIC, config, REWARD, numeric=(), seed=1).policy


def test_the_published_penalty_serves_production_and_says_what_survives_it() -> None:
    """Section 3.4: a prior per row never washes out."""
    outcomes = world(4_000, seed=3)
    config = LearnConfig(method="published", context=("context.mood",))
    fitted = fit(outcomes, STATIC, STATIC, config, REWARD, numeric=(), seed=1)
    assert fitted.report["kept"] < 0.01
    weights_NT = fitted.policy.weights(outcomes.contexts)
    assert np.median(angles(weights_NT, STATIC.weights(outcomes.contexts))) < 2.5


def test_one_bias_for_all_contexts_turns_rankings_around_where_little_is_clicked() -> None:
    """Acceptance test 6, the documented defect: nothing depends on the weights here, yet f turns with the base rate."""
    outcomes = world(4_000)
    outcomes = replace(outcomes, center_NT=outcomes.center_NT / 5, weights_NT=outcomes.weights_NT / 5)
    static = StaticPolicy({name: weights_T / 5 for name, weights_T in STATIC.weights_of.items()})
    config = LearnConfig(
        method="published",
        context=("context.mood",),
        published=PublishedConfig(penalty=1e-4),
        adam_base=AdamConfig(epochs=60, batch=256, rate=0.02),
    )
    policy = fit(outcomes, static, static, config, REWARD, numeric=(), seed=1).policy
    mood = np.array(outcomes.contexts.columns["context.mood"])
    along_N = (policy.weights(outcomes.contexts) * static.weights(outcomes.contexts)).sum(axis=1)
    assert along_N[mood == "look"].max() < 0 < along_N[mood == "buy"].min()


@pytest.mark.parametrize("row", ["item", "request"])
def test_hides_taken_literally_run_away_and_are_caught_and_relabelled_ones_are_not(row: str) -> None:
    """Section 3.6: with 2 N_hide above the sum of the positive rewards there is no minimum."""
    outcomes = world(2_000, hide=0.6)
    message = re.escape("published: the bias ran away to -")
    with pytest.raises(ValueError, match=message):
        learn(outcomes, hide="literal", row=row, penalty=0.02)
    weights_NT = learn(outcomes, hide="relabel", row=row, penalty=0.02).weights(outcomes.contexts)
    assert np.isfinite(weights_NT).all()


def test_a_bias_that_runs_away_in_training_is_caught() -> None:
    rows = Rows(np.array([1.0, 1.0]), np.array([3.0, 1.0]), np.array([4.0, 2.0]))
    assert best_bias(rows, np.zeros(2)) == pytest.approx(math.log(2 / 4))
    with pytest.raises(ValueError, match="the bias ran away"):
        best_bias(Rows(np.array([1.0]), np.array([0.0]), np.array([1.0])), np.zeros(1))


def test_a_relabelled_hide_that_is_worse_pushes_further() -> None:
    """Acceptance test 11."""
    outcomes = world(4_000, hide=0.2)
    # hides become likelier with the weight of the second task
    ratio_N = outcomes.weights_NT[:, 1] / outcomes.weights_NT[:, 0] / 5.0
    rng = np.random.default_rng(0)
    outcomes.value_NCA[..., 1] = (rng.random(outcomes.position_NC.shape) < 0.2 * ratio_N[:, None]) & outcomes.shown_NC
    shares = []  # of the task that brings hides: each unit of harm moves it further down
    for hide in (-1.0, -2.0, -4.0):
        reward = RewardConfig(values={"click": 1.0, "order": hide})
        config = LearnConfig(method="published", published=PublishedConfig(hide="relabel", penalty=0.3))
        policy = fit(outcomes, STATIC, STATIC, config, reward, numeric=(), seed=1).policy
        weights_T = policy.weights(outcomes.contexts)[0]
        shares.append(float(weights_T[1] / np.linalg.norm(weights_T)))
    assert shares == sorted(shares, reverse=True) and shares[-1] < shares[0]
