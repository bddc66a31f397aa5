"""The default's first step in closed form: `w = c + eta G(x)`, G the least squares of tilt (R - b(x)) on x.

To first order this is what `reward_regression` finds with penalty = 1 / (2 eta), but with a linear G and no training:
the cross-check of every fit, and the fallback where rows are few. Everything else (rewards, tilts, the clip, how the
size of the step is chosen) is the default's. Shape letters: N requests, X width of a context, T tasks.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from utility_blender.fit import Fitted, split_by_time
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import Link, as_learned
from utility_blender.mlp import Mlp
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy, StaticPolicy
from utility_blender.prepared import Prepared, encoder_of, fit_standard, prepare
from utility_blender.reward import RewardConfig, request_rewards
from utility_blender.reward_regression import extended
from utility_blender.step_choice import choose_step


def fit_one_step(
    outcomes: Outcomes,
    center: Policy,
    static: StaticPolicy,
    config: LearnConfig,
    reward: RewardConfig,
    *,
    numeric: Sequence[str],
    seed: int,
) -> Fitted:
    """Returns the policy in service with one more step; see `fit`."""
    served = as_learned(center, outcomes.tasks)
    earlier, later = split_by_time(outcomes)
    rng = np.random.default_rng([seed, 3])
    encoder = encoder_of(outcomes.contexts, config.context, numeric=numeric, own_from=config.own_from)
    standard = fit_standard(request_rewards(earlier, reward), earlier.contexts.scenario, reward.winsorize)
    prepared = prepare(earlier, reward, standard, encoder, config, rng)
    slope = slope_of(prepared)

    def steps() -> Iterator[tuple[float, Link]]:
        for penalty in config.penalties:
            yield penalty, Link(encoder, slope.times(1 / (2 * penalty)), config.clip, config.strength)

    link, report = choose_step(steps(), later, reward, config, rng)
    report = {"method": "one_step", "eta": 1 / (2 * report["penalty"]), **report}
    return extended(served, link, report, outcomes, config, rng)


def slope_of(prepared: Prepared) -> Mlp:
    """Returns G, one linear layer: least squares of the pulls on x and an intercept.

    The base of each context is that of the rewards on the same. Columns that say the same share the credit (least
    norm).
    """
    one_x_NX = np.concatenate([np.ones((len(prepared.x_NX), 1)), prepared.x_NX], axis=1)
    base_N = one_x_NX @ np.linalg.lstsq(one_x_NX, prepared.reward_N, rcond=None)[0]
    slope_XT = np.linalg.lstsq(one_x_NX, prepared.credit.pulls(base_N), rcond=None)[0]
    return Mlp(((slope_XT[1:], slope_XT[0]),))
