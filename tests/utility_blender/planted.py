"""Policies of known quality in the world of scored requests: a good one, and bad ones that fooled some estimator.

Learned here by plain least squares, apart from the methods of the package.
"""

from dataclasses import dataclass, replace

import numpy as np

from freshrank.study_blender_world import NUMERIC, World, world_of
from sim.scored_world import ScoredWorld, ScoredWorldConfig
from utility_blender.contexts import ContextEncoder, Contexts, Floats, fit_encoder
from utility_blender.explore import ExploreConfig
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy
from utility_blender.reward import request_rewards

EXPLORE = ExploreConfig(share=0.01, tau=0.3)


def make_world(seed: int = 0) -> World:
    """Returns the world of the design's section 6."""
    return world_of(ScoredWorld(ScoredWorldConfig(), seed=seed))


@dataclass(frozen=True)
class Step:
    """One step from the centre along a linear function of the context, cut to a factor of `clip` per weight."""

    center: Policy
    encoder: ContextEncoder
    slope_XT: Floats
    length: float
    clip: float = 2.0

    def weights(self, contexts: Contexts) -> Floats:
        """See `Policy.weights`."""
        return self.moved(self.center.weights(contexts), self.encoder.encode(contexts))

    def moved(self, center_NT: Floats, x_NX: Floats) -> Floats:
        """Returns the weights of encoded contexts."""
        step_NT = self.length * (x_NX @ self.slope_XT)
        wanted_NT = center_NT + np.linalg.norm(center_NT, axis=1, keepdims=True) * step_NT
        bounds = np.stack([center_NT / self.clip, center_NT * self.clip])
        weights_NT: Floats = np.clip(wanted_NT, bounds.min(axis=0), bounds.max(axis=0))
        return weights_NT


@dataclass(frozen=True)
class Factors:
    """The centre's weights times constant factors."""

    center: Policy
    factor_T: tuple[float, ...]

    def weights(self, contexts: Contexts) -> Floats:
        """See `Policy.weights`."""
        weights_NT: Floats = self.center.weights(contexts) * np.array(self.factor_T)
        return weights_NT


@dataclass(frozen=True)
class Slope:
    """The served f(x) of the published loss, raw: weights along the uncentred slope, whatever their sign."""

    encoder: ContextEncoder
    start_XT: Floats

    def weights(self, contexts: Contexts) -> Floats:
        """See `Policy.weights`."""
        weights_NT: Floats = self.encoder.encode(contexts) @ self.start_XT
        return weights_NT


def step(
    world: World, outcomes: Outcomes, center: Policy, *, angle: float, seed: int | None = None, sign: float = 1.0
) -> Step:
    """Returns the step whose median angle is `angle` degrees; with a `seed`, of permuted rewards: a placebo."""
    reward_N = request_rewards(outcomes, world.reward)
    if seed is not None:
        reward_N = np.random.default_rng(seed).permutation(reward_N)
    encoder = fit_encoder(outcomes.contexts, numeric=NUMERIC)
    x_NX = encoder.encode(outcomes.contexts)
    center_NT = outcomes.center_NT / np.linalg.norm(outcomes.center_NT, axis=1, keepdims=True)
    tilt_NT = outcomes.weights_NT / np.linalg.norm(outcomes.weights_NT, axis=1, keepdims=True) - center_NT
    tilt_NT -= tilt_NT.mean(axis=0)
    crossed = (x_NX[:, :, None] * tilt_NT[:, None, :]).reshape(len(x_NX), -1)
    regressors = np.concatenate([x_NX, crossed], axis=1)
    gram = regressors.T @ regressors + 10.0 * np.eye(regressors.shape[1])
    slope = np.linalg.solve(gram, regressors.T @ (reward_N - reward_N.mean()))[x_NX.shape[1] :]
    slope_XT = sign * slope.reshape(x_NX.shape[1], -1) / reward_N.std()
    low, high = 1e-6, 1e3
    for _ in range(40):
        length = float(np.sqrt(low * high))
        found = Step(center, encoder, slope_XT, length)
        is_far = median_angle(found.moved(outcomes.center_NT, x_NX), outcomes.center_NT) > angle
        low, high = (low, length) if is_far else (length, high)
    return found


def median_angle(a_NT: Floats, b_NT: Floats) -> float:
    """Returns the median angle between rows, degrees."""
    cosine_N = (a_NT * b_NT).sum(axis=1) / np.sqrt((a_NT**2).sum(axis=1) * (b_NT**2).sum(axis=1))
    return float(np.median(np.degrees(np.arccos(np.clip(cosine_N, -1, 1)))))


def literal(world: World, outcomes: Outcomes, center: Policy, *, penalty: float) -> Slope:
    """Returns what minimises the published loss with `hide: literal`, one gradient step from production.

    `f(x) = s + E[R (y - g) r | x] / (2 penalty)` over shown items and actions, as the design derives it; raw weights.
    """
    encoder = fit_encoder(outcomes.contexts, numeric=NUMERIC)
    x_NX = encoder.encode(outcomes.contexts)
    worth_A = np.array([world.reward.values[action] for action in outcomes.actions])
    rate = float((outcomes.value_NCA.sum(axis=2) > 0)[outcomes.shown_NC].mean())
    acted_N = (outcomes.value_NCA * worth_A).sum(axis=(1, 2)) * (1 - rate)
    idle_N = rate * ((outcomes.value_NCA.sum(axis=2) == 0) & outcomes.shown_NC).sum(axis=1)
    pull_NT = (acted_N - idle_N)[:, None] * outcomes.weights_NT / outcomes.size_N[:, None]
    center_NT = center.weights(outcomes.contexts)
    goal_NT = center_NT + pull_NT / (2 * penalty)
    gram = x_NX.T @ x_NX + np.eye(x_NX.shape[1])
    return Slope(encoder, np.linalg.solve(gram, x_NX.T @ goal_NT))


def restated(outcomes: Outcomes, factor: float) -> Outcomes:
    """Returns the outcomes with another jitter than they were drawn with."""
    return replace(outcomes, tau_N=outcomes.tau_N * factor)
