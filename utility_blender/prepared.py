"""What a regression on explored directions needs of outcomes: encoded contexts, standardised rewards, tilts.

Shape letters: N requests, X width of an encoded context, T tasks.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from utility_blender.centring import Tilt, tilts
from utility_blender.contexts import ContextEncoder, Contexts, Floats, fit_encoder
from utility_blender.credit import Credit, item_credit, request_credit
from utility_blender.learn_config import LearnConfig
from utility_blender.outcomes import Ints, Outcomes
from utility_blender.reward import RewardConfig, Winsor, fit_winsor, item_rewards, request_rewards


@dataclass(frozen=True, slots=True)
class Standard:
    """Rewards to standard scores, per scenario: winsorised, then less the mean, over the standard deviation."""

    winsor: Winsor
    moments: Mapping[str, tuple[float, float]]
    """Scenario -> mean and standard deviation of its winsorised rewards."""

    def __call__(self, reward_N: Floats, scenario: Sequence[str]) -> Floats:
        """Returns standard rewards; of a scenario that was not fitted, only the winsorised ones."""
        moments_N2 = np.array([self.moments.get(name, (0.0, 1.0)) for name in scenario]).reshape(-1, 2)
        standard_N: Floats = (self.winsor(reward_N, scenario) - moments_N2[:, 0]) / moments_N2[:, 1]
        return standard_N

    def of_items(self, reward_NC: Floats, scenario: Sequence[str], size_N: Ints) -> Floats:
        """Returns what items shown add to standard rewards, each with its part of the mean.

        No item counts for more than the largest request, nor for less than the smallest.
        """
        rows = [self.winsor.limits.get(name, (-math.inf, math.inf)) for name in scenario]
        low_N, high_N = np.array(rows).reshape(-1, 2).T
        moments_N2 = np.array([self.moments.get(name, (0.0, 1.0)) for name in scenario]).reshape(-1, 2)
        cut_NC = np.clip(reward_NC, np.minimum(low_N, 0.0)[:, None], np.maximum(high_N, 0.0)[:, None])
        part_N = moments_N2[:, 0] / np.maximum(size_N, 1)
        standard_NC: Floats = (cut_NC - part_N[:, None]) / moments_N2[:, 1:]
        return standard_NC


def fit_standard(reward_N: Floats, scenario: Sequence[str], quantile: float) -> Standard:
    """Returns the standard of these rewards; where all are equal, the deviation counts as 1."""
    winsor = fit_winsor(reward_N, scenario, quantile)
    cut_N, names = winsor(reward_N, scenario), np.array(scenario)
    moments = {}
    for name in sorted(set(scenario)):
        mine_N = cut_N[names == name]
        moments[str(name)] = (float(mine_N.mean()), float(mine_N.std()) or 1.0)
    return Standard(winsor, moments)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Outcomes as a regression takes them."""

    x_NX: Floats
    reward_N: Floats
    """Standard rewards."""
    tilt: Tilt
    credit: Credit
    """Of the standard rewards."""


def prepare(
    outcomes: Outcomes,
    reward: RewardConfig,
    standard: Standard,
    encoder: ContextEncoder,
    config: LearnConfig,
    rng: np.random.Generator,
) -> Prepared:
    """Returns the outcomes prepared; `rng` draws the exploration again.

    Rewards that count an action once per request do not split into items: the request has the credit then.
    """
    scenario = outcomes.contexts.scenario
    reward_N = standard(request_rewards(outcomes, reward), scenario)
    tilt = tilts(outcomes, rng)
    if config.credit == "request" or reward.aggregate == "binary":
        credit = request_credit(tilt, reward_N)
    else:
        of_items_NC = standard.of_items(item_rewards(outcomes, reward), scenario, outcomes.size_N)
        credit = item_credit(outcomes, of_items_NC, rng)
    return Prepared(encoder.encode(outcomes.contexts), reward_N, tilt, credit)


def encoder_of(contexts: Contexts, names: Sequence[str], *, numeric: Sequence[str], own_from: int) -> ContextEncoder:
    """Returns an encoder of the named features, and of the scenarios that have enough requests.

    Scenarios with fewer than `own_from` have no column: they share one function, which moves each one's own weights.

    Raises:
        ValueError: a feature that no request has.
    """
    if missing := [name for name in names if name not in contexts.columns]:
        known = ", ".join(contexts.columns) or "none"
        raise ValueError(f"learn.context: {', '.join(missing)} is not logged with outcomes; these are: {known}")
    chosen = Contexts(scenario=contexts.scenario, columns={name: contexts.columns[name] for name in names})
    counts = Counter(contexts.scenario)
    encoder = fit_encoder(chosen, numeric=numeric)
    return replace(encoder, scenarios=tuple(name for name in encoder.scenarios if counts[name] >= own_from))
