"""Rewards: the table, how items and requests add up, and where tails are cut."""

import math
import re
from typing import Any

import numpy as np
import pytest

from tests.utility_blender.some_outcomes import some_outcomes
from utility_blender.reward import RewardConfig, fit_winsor, item_rewards, request_rewards

TABLE = RewardConfig(values={"click": 1.0, "order": -5.0, "never": 100.0})


def test_a_request_is_worth_the_sum_of_its_items_by_hand() -> None:
    outcomes = some_outcomes(40)
    outcomes.value_NCA[3, :, 0] *= 2.5
    by_hand_N = [
        sum(
            value * {"click": 1.0, "order": -5.0}[action]
            for item in request
            for value, action in zip(item, outcomes.actions, strict=True)
        )
        for request in outcomes.value_NCA.tolist()
    ]
    assert request_rewards(outcomes, TABLE).tolist() == pytest.approx(by_hand_N)
    assert item_rewards(outcomes, TABLE).sum(axis=1).tolist() == pytest.approx(by_hand_N)


def test_binary_counts_an_action_once_per_request_and_does_not_split() -> None:
    outcomes = some_outcomes(40)
    binary = RewardConfig(values=TABLE.values, aggregate="binary")
    any_NA = outcomes.value_NCA.any(axis=1)
    assert request_rewards(outcomes, binary).tolist() == (any_NA @ np.array([1.0, -5.0])).tolist()
    assert (outcomes.value_NCA.sum(axis=1) > 1).any()
    with pytest.raises(
        ValueError, match=re.escape("reward.aggregate: binary rewards do not split into items; use sum")
    ):
        item_rewards(outcomes, binary)


def test_tails_are_cut_per_scenario_at_quantiles_that_were_met() -> None:
    reward_N = np.concatenate([np.arange(1000.0), np.arange(1000.0) * -7])
    scenario = ["home"] * 1000 + ["search"] * 1000
    winsor = fit_winsor(reward_N, scenario, 0.99)
    assert winsor.limits == {"home": (9.0, 990.0), "search": (-6930.0, -63.0)}
    assert winsor(np.array([5000.0, 5000.0, 5000.0]), ["home", "search", "new"]).tolist() == [990.0, -63.0, 5000.0]
    uncut = fit_winsor(reward_N, scenario, 1.0)
    assert uncut(reward_N, scenario).tolist() == reward_N.tolist()
    assert winsor(np.array([]), []).tolist() == []


def test_another_table_is_another_version_and_the_order_of_actions_is_none() -> None:
    same = RewardConfig(values={"never": 100.0, "order": -5.0, "click": 1.0}, winsorize=0.9)
    assert same.version() == TABLE.version()
    assert RewardConfig(values={**TABLE.values, "click": 1.5}).version() != TABLE.version()
    assert RewardConfig(values=TABLE.values, aggregate="binary").version() != TABLE.version()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"values": {"click": math.inf}}, "values.click: inf is not allowed; a finite number"),
        ({"aggregate": "mean"}, "aggregate: 'mean' is not allowed; one of sum, binary"),
        ({"winsorize": 0.5}, "winsorize: 0.5 is not allowed; in (0.5, 1]"),
    ],
)
def test_settings_that_are_refused_say_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RewardConfig(**settings)
