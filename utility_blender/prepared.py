"""What a regression on explored directions needs of outcomes: encoded contexts, standardised rewards, tilts.

Shape letters: N requests, X width of an encoded context, T tasks.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from utility_blender.centring import Tilt, tilts
from utility_blender.contexts import ContextEncoder, Contexts, Floats, fit_encoder
from utility_blender.outcomes import Outcomes
from utility_blender.reward import RewardConfig, Winsor, fit_winsor, request_rewards


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


def prepare(
    outcomes: Outcomes, reward: RewardConfig, standard: Standard, encoder: ContextEncoder, rng: np.random.Generator
) -> Prepared:
    """Returns the outcomes prepared; `rng` draws the exploration's mean."""
    scenario = outcomes.contexts.scenario
    return Prepared(
        x_NX=encoder.encode(outcomes.contexts),
        reward_N=standard(request_rewards(outcomes, reward), scenario),
        tilt=tilts(outcomes, rng),
    )


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
