"""What the study of the blender takes apart: steps of one size after the other, with and without what makes them work.

Shape letters: N requests, X width of an encoded context, T tasks.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from utility_blender.contexts import Floats
from utility_blender.fit_mlp import fit_mlp
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import LearnedPolicy, Link, as_learned
from utility_blender.mlp import Mlp, new_mlp
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy
from utility_blender.prepared import Prepared, encoder_of, fit_standard, prepare
from utility_blender.reward import RewardConfig, request_rewards
from utility_blender.reward_regression import fit_base, fit_step

Ablation = Literal["nothing", "centring", "base", "both"]
"""What is left out, the whole request having the credit: the centred directions (weights are then taken as drawn), the
base of each context (one constant serves all), or both, with rewards as they are instead of in standard deviations."""
RIDGE = 10.0
"""Of the closed form, in rows."""


class Steps:
    """Steps from one log, each a policy."""

    def __init__(
        self,
        outcomes: Outcomes,
        center: Policy,
        config: LearnConfig,
        reward: RewardConfig,
        *,
        numeric: Sequence[str],
        seed: int,
    ) -> None:
        self._center, self._config, self._seed = as_learned(center, outcomes.tasks), config, seed
        rng = np.random.default_rng(seed)
        reward_N, scenario = request_rewards(outcomes, reward), outcomes.contexts.scenario
        self._encoder = encoder_of(outcomes.contexts, config.context, numeric=numeric, own_from=config.own_from)
        standard = fit_standard(reward_N, scenario, reward.winsorize)
        self._prepared = prepare(outcomes, reward, standard, self._encoder, config, rng)
        self._reward_N = reward_N
        self._raw_NT = outcomes.weights_NT / np.linalg.norm(outcomes.center_NT, axis=1, keepdims=True)
        base_N = fit_base(self._prepared, config, rng)(self._prepared.x_NX)[:, 0]
        self._residual_N = self._prepared.reward_N - base_N
        self._pull_NT = self._prepared.credit.pulls(base_N)

    def regression(self, penalties: Sequence[float], clip: float) -> Iterator[LearnedPolicy]:
        """Yields the policy of `reward_regression` for each penalty, whatever its angle."""
        for penalty in penalties:
            mlp = fit_step(self._prepared, self._pull_NT, penalty, self._config, self._seed)
            yield self._center.then(Link(self._encoder, mlp, clip))

    def one_step(self, etas: Sequence[float], clip: float) -> Iterator[LearnedPolicy]:
        """Yields the policy of the closed form per step size: least squares of the pulls on the context."""
        x_NX = np.concatenate([np.ones((len(self._pull_NT), 1)), self._prepared.x_NX], axis=1)
        gram_XX = x_NX.T @ x_NX + RIDGE * np.eye(x_NX.shape[1])
        found_XT = np.linalg.solve(gram_XX, x_NX.T @ self._pull_NT)
        linear = Mlp(((found_XT[1:], found_XT[0]),))
        for eta in etas:
            yield self._center.then(Link(self._encoder, linear.times(eta), clip))

    def without(self, ablation: Ablation, penalties: Sequence[float]) -> Iterator[LearnedPolicy]:
        """Yields the regression without something that it has for good reasons, for each penalty; no clip."""
        drawn_NT, reward_N = self._prepared.tilt.tilt_NT, self._residual_N
        if ablation in ("centring", "both"):
            drawn_NT = self._raw_NT
        if ablation == "base":
            reward_N = self._prepared.reward_N
        elif ablation == "both":
            reward_N = self._reward_N
        for penalty in penalties:
            mlp = _plain_step(self._prepared, drawn_NT, reward_N, penalty, self._config, self._seed)
            yield self._center.then(Link(self._encoder, mlp, math.inf))


def _plain_step(
    prepared: Prepared, drawn_NT: Floats, reward_N: Floats, penalty: float, config: LearnConfig, seed: int
) -> Mlp:
    """Returns g of `mean 1/2 (R - b - drawn . (u(c) + g(x)))^2 + penalty |g(x)|^2`, b a constant learned beside it."""
    center_NT = prepared.tilt.center_NT
    target_N = reward_N - (drawn_NT * center_NT).sum(axis=1)
    size = float((drawn_NT**2).mean() / (2 * penalty + (drawn_NT**2).mean()) / np.sqrt((drawn_NT**2).mean()))

    def gradients(rows_B: NDArray[np.int64], m_BT: Floats, constant_1: Floats) -> tuple[Floats, Floats]:
        step_BT = size * m_BT
        miss_B = target_N[rows_B] - constant_1[0] - (drawn_NT[rows_B] * step_BT).sum(axis=1)
        by_step_BT = 2 * penalty * step_BT - miss_B[:, None] * drawn_NT[rows_B]
        # In the units of m, whose curvature is about 1 whatever the penalty: one learning rate then serves them all.
        scale = size / (size**2 * (2 * penalty + float((drawn_NT**2).mean())))
        return scale * by_step_BT / len(rows_B), -np.array([miss_B.mean()])

    rng = np.random.default_rng([seed, 2])
    start = new_mlp((prepared.x_NX.shape[1], *config.hidden, drawn_NT.shape[1]), rng)
    mlp, _ = fit_mlp(start, prepared.x_NX, gradients, config.adam_base, rng, extra_E=np.array([target_N.mean()]))
    return mlp.times(size)
