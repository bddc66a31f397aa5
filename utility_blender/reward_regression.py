"""The default way to learn weights: the standard reward is regressed on the tilt of the explored weights.

    L = mean 1/2 (R - b(x) - tilt . f(x))^2 + penalty |f(x) - u(c(x))|^2,      f(x) = u(c(x)) + g(x)
    w(x) = clip(|c| f(x), between c / clip and c clip)

R is winsorised and standardised per scenario; tilt is the direction drawn, less the mean direction of its law (see
`centring`); b, the reward a context gives anyway, is fitted first; c is the policy in service, and g starts as zero, so
step 0 serves what is served now, exactly. Of the loss, the part `tilt (R - b)` is taken item by item, which is the same
with far less noise (see `credit`). The design (blender.md, section 4) has directions at the length of s; here
they have length 1, and a step is relative to the length of c: a penalty then means the same whatever s is.

The penalty is a step size: to first order `g = E[tilt (R - b) | x] / (2 penalty)`. It is chosen among those whose step
the log can judge, by the estimated value on later requests. Shape letters: N requests, X width of a context, T tasks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utility_blender.contexts import Floats
from utility_blender.distil import distilled
from utility_blender.fit import Fitted, split_by_time
from utility_blender.fit_mlp import fit_mlp
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import LearnedPolicy, Link, as_learned
from utility_blender.mlp import Mlp, new_mlp
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy, StaticPolicy
from utility_blender.prepared import Prepared, encoder_of, fit_standard, prepare
from utility_blender.reward import RewardConfig, request_rewards
from utility_blender.step_choice import choose_step, reach_of


def fit_reward_regression(
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
    encoder = encoder_of(outcomes.contexts, config.context, numeric=numeric, own_from=config.own_from)

    def steps(given: Outcomes, penalties: Sequence[float]) -> Iterator[tuple[float, Link]]:
        rng = np.random.default_rng(seed)
        standard = fit_standard(request_rewards(given, reward), given.contexts.scenario, reward.winsorize)
        prepared = prepare(given, reward, standard, encoder, config, rng)
        pull_NT = prepared.credit.pulls(fit_base(prepared, config, rng)(prepared.x_NX)[:, 0])
        for penalty in penalties:
            mlp = fit_step(prepared, pull_NT, penalty, config, seed)
            yield penalty, Link(encoder, mlp, config.clip, config.strength)

    rng = np.random.default_rng([seed, 1])
    link, report = choose_step(steps(earlier, config.penalties), later, reward, config, rng)
    for penalty, again in steps(outcomes, [one for one in config.penalties if one <= report["penalty"]]):
        median, is_admitted = reach_of(again, later, report["angle_explored"], config)
        if not is_admitted:
            break
        link, report["penalty_refitted"] = again, penalty
        if median >= report["angle"]:  # more rows, less noise: the same penalty would make a shorter step
            break
    report = {"method": "reward_regression", **report}
    return extended(served, link, report, outcomes, config, rng)


def extended(
    served: LearnedPolicy,
    link: Link,
    report: dict[str, Any],
    outcomes: Outcomes,
    config: LearnConfig,
    rng: np.random.Generator,
) -> Fitted:
    """Returns a policy with one more link; as one network, if the chain would be too long and that says the same."""
    policy = served.then(link)
    if len(policy.links) > config.max_links:
        one, report["distilled_angle"] = distilled(policy, outcomes.contexts, config, rng)
        policy = one if report["distilled_angle"] <= 1.0 else policy
    return Fitted(policy, report)


def fit_base(prepared: Prepared, config: LearnConfig, rng: np.random.Generator) -> Mlp:
    """Returns b: the standard reward expected of a context, whatever the weights."""

    def gradients(rows_B: NDArray[np.int64], y_BY: Floats, _: Floats) -> tuple[Floats, Floats]:
        return (y_BY - prepared.reward_N[rows_B, None]) / len(rows_B), np.zeros(0)

    start = new_mlp((prepared.x_NX.shape[1], *config.hidden_base, 1), rng)
    return fit_mlp(start, prepared.x_NX, gradients, config.adam, rng)[0]


def fit_step(prepared: Prepared, pull_NT: Floats, penalty: float, config: LearnConfig, seed: int) -> Mlp:
    """Returns g for one penalty; `pull_NT` is what `Credit.pulls` says, less the base.

    What is trained is `m = g (2 penalty + v) / sqrt(v)`, v the variance of the tilt: it hardly depends on the penalty,
    so one learning rate serves all of them, and a step vanishes with 1 / penalty to the last digit. Training is short,
    or m learns the noise; its length, one number, is then set to where the loss is least, exactly.
    """
    tilt, spread_NTT = prepared.tilt, prepared.credit.spread_NTT
    sd = np.sqrt(tilt.variance)
    kept = tilt.variance / (2 * penalty + tilt.variance)
    target_NT = (pull_NT - _times(spread_NTT, tilt.center_NT)) / sd
    curvature_NTT = kept * spread_NTT / tilt.variance + (1 - kept) * np.eye(pull_NT.shape[1])

    def gradients(rows_B: NDArray[np.int64], m_BT: Floats, _: Floats) -> tuple[Floats, Floats]:
        return (_times(curvature_NTT[rows_B], m_BT) - target_NT[rows_B]) / len(rows_B), np.zeros(0)

    rng = np.random.default_rng([seed, 2])
    start = new_mlp((prepared.x_NX.shape[1], *config.hidden, pull_NT.shape[1]), rng)
    mlp, _ = fit_mlp(start, prepared.x_NX, gradients, config.adam, rng)
    m_NT = mlp(prepared.x_NX)
    square = float((m_NT * _times(curvature_NTT, m_NT)).sum())
    length = max(float((target_NT * m_NT).sum()) / square, 0.0) if square > 0 else 0.0
    return mlp.times(length * float(sd / (2 * penalty + tilt.variance)))


def _times(matrix_NTT: Floats, vector_NT: Floats) -> Floats:
    product_NT: Floats = (matrix_NTT @ vector_NT[:, :, None])[:, :, 0]
    return product_NT


def fit_static_mean(
    outcomes: Outcomes,
    center: Policy,
    static: StaticPolicy,
    config: LearnConfig,
    reward: RewardConfig,
    *,
    numeric: Sequence[str],
    seed: int,
) -> Fitted:
    """Returns the mean of what `reward_regression` learned: one vector per scenario; see `fit`."""
    fitted = fit_reward_regression(outcomes, center, static, config, reward, numeric=numeric, seed=seed)
    return Fitted(static_mean(fitted.policy, outcomes, static), {**fitted.report, "method": "static_mean"})


def static_mean(policy: Policy, outcomes: Outcomes, static: StaticPolicy) -> Policy:
    """Returns the mean weights of a policy over the log by scenario: what it gains, personalisation does not explain.

    Scenarios that are not in the log keep their production weights.
    """
    weights_NT = policy.weights(outcomes.contexts)
    names = np.array(outcomes.contexts.scenario)
    means: dict[str, Any] = dict(static.weights_of)
    for name in sorted(set(outcomes.contexts.scenario)):
        means[str(name)] = weights_NT[names == name].mean(axis=0)
    return as_learned(StaticPolicy(means), outcomes.tasks)
