"""`global`: one vector of weights for all contexts of a scenario, the baseline of everything that depends on them.

Of 400 arms of the exploration law the one that a linear model with one slope for all contexts likes best. Curves are
left out: from 50,000 requests they are noise, and cost half of the gain. With scores calibrated in every context and
additive rewards, `rho * scale` would be best without any learning (design: blender.md, section 5).
"""

from collections.abc import Sequence

import numpy as np

from utility_blender.fit import Fitted
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import LearnedPolicy
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy, StaticPolicy
from utility_blender.quadratic_model import fit_quadratic_model
from utility_blender.reward import RewardConfig

_REQUESTS = 2_000
"""Requests that the arms are compared over."""


def fit_global(
    outcomes: Outcomes,
    center: Policy,
    static: StaticPolicy,
    config: LearnConfig,
    reward: RewardConfig,
    *,
    numeric: Sequence[str],
    seed: int,
) -> Fitted:
    """See `utility_blender.fit.fit`; of all the outcomes, there is nothing to choose.

    Scenarios without outcomes keep the production weights. Around a centre that depends on the context, the step is
    made from its mean.
    """
    model = fit_quadratic_model(outcomes, reward, config=config, numeric=numeric, seed=seed, plain=True)
    names_N = np.array(outcomes.contexts.scenario)
    some = outcomes.take(np.linspace(0, outcomes.num_requests - 1, min(outcomes.num_requests, _REQUESTS)).astype(int))
    best_T = model.best_of_all(some.contexts, some.center_NT)
    base = dict(static.weights_of)
    for name in sorted(set(outcomes.contexts.scenario)):
        base[name] = outcomes.center_NT[names_N == name].mean(axis=0) * best_T
    return Fitted(
        LearnedPolicy(outcomes.tasks, base),
        {"ridge": config.ridge, "arms": len(model.arms_AT), "factors": best_T.tolist()},
    )
