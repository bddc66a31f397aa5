"""The world of scored requests in the blender's own terms: explored outcomes, the oracle, what a policy is truly worth.

Shape letters: N requests, C candidates, T tasks (one per action, in the same order), K shown.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.scored_world import ScoredRequests, ScoredWorld
from utility_blender.contexts import Contexts, Floats
from utility_blender.explore import ExploreConfig, draw
from utility_blender.outcomes import NOT_SHOWN, Ints, Outcomes
from utility_blender.policy import Policy, StaticPolicy
from utility_blender.reward import RewardConfig

SCENARIO = "home"
NUMERIC = ("user.age", "user.tenure", "context.hour")
"""Names of the numbers of the context; the mood is `context.mood`."""
MOOD = "context.mood"
_MOODS = ("buy", "look", "read")
_SCALE_REQUESTS = 2_000


@dataclass(frozen=True, slots=True)
class OraclePolicy:
    """The best weights there are: `rho * m(x)`, in units of the scale."""

    world: ScoredWorld
    scale_T: Floats

    def weights(self, contexts: Contexts) -> Floats:
        """See `Policy.weights`."""
        numbers_NF = np.array([contexts.columns[name] for name in NUMERIC], np.float64).T
        mood_N = np.array([_MOODS.index(mood) for mood in contexts.columns[MOOD]])
        best_NT: Floats = self.world.multipliers(numbers_NF, mood_N) * self.world.config.reward * self.scale_T
        return best_NT


@dataclass(frozen=True, slots=True)
class World:
    """A world and the units of its weights."""

    scored: ScoredWorld
    scale_T: Floats
    """What one unit of each score is; served utility is `sum_t w_t score_t / scale_t`."""

    @property
    def reward(self) -> RewardConfig:
        """The reward table, without winsorising: rewards here have no tail."""
        config = self.scored.config
        return RewardConfig(values=dict(zip(config.actions, config.reward, strict=True)), winsorize=1.0)

    @property
    def static(self) -> StaticPolicy:
        """Production's weights."""
        return StaticPolicy({SCENARIO: self.scored.production_A * self.scale_T})

    @property
    def oracle(self) -> OraclePolicy:
        """The best weights."""
        return OraclePolicy(self.scored, self.scale_T)

    def explored(
        self, num: int, center: Policy, explore: ExploreConfig, *, seed: int, version: int = 0, start_ms: int = 0
    ) -> Outcomes:
        """Returns requests served with weights drawn around `center`, one a second, and what users did.

        Another seed: other users, draws and actions.
        """
        requests, rng = self.scored.requests(num, seed=seed), np.random.default_rng([seed, 3])
        contexts = contexts_of(requests)
        center_NT = center.weights(contexts)
        draws = [draw(center_T, explore, rng) for center_T in center_NT]
        return self.served(
            requests, center_NT, np.array([weights_T for weights_T, _ in draws]), np.array([one for _, one in draws]),
            tau=explore.tau, truncate=explore.truncate, rng=rng, version=version, start_ms=start_ms,
        )  # fmt: skip

    def explored_on_grid(
        self, num: int, center: Policy, heads: Sequence[int], levels_L: Floats, *, seed: int, start_ms: int = 0
    ) -> Outcomes:
        """Returns requests served with the weights of some tasks times one of `levels_L` each, all equally likely."""
        requests, rng = self.scored.requests(num, seed=seed), np.random.default_rng([seed, 4])
        center_NT = center.weights(contexts_of(requests))
        weights_NT = center_NT.copy()
        weights_NT[:, heads] *= rng.choice(levels_L, (num, len(heads)))
        log_density = -len(heads) * math.log(len(levels_L))
        return self.served(
            requests, center_NT, weights_NT, np.full(num, log_density), tau=math.nan, truncate=math.nan, rng=rng,
            start_ms=start_ms,
        )  # fmt: skip

    def served(
        self,
        requests: ScoredRequests,
        center_NT: Floats,
        weights_NT: Floats,
        log_density_N: Floats,
        *,
        tau: float,
        truncate: float,
        rng: np.random.Generator,
        version: int = 0,
        start_ms: int = 0,
    ) -> Outcomes:
        """Returns what comes of requests served with given weights."""
        num, config = len(requests.user_N), self.scored.config
        top_NK = _top(self._utilities(requests, weights_NT), config.num_shown)
        position_NC = np.full(requests.scores_NCA.shape[:2], NOT_SHOWN)
        np.put_along_axis(position_NC, top_NK, np.arange(config.num_shown)[None, :], axis=1)
        factor_NA = self.scored.multipliers(requests.numbers_NF, requests.mood_N) * requests.activity_N[:, None]
        chance_NKA = np.take_along_axis(requests.scores_NCA, top_NK[:, :, None], axis=1) * factor_NA[:, None, :]
        value_NCA = np.zeros(requests.scores_NCA.shape)
        np.put_along_axis(value_NCA, top_NK[:, :, None], rng.random(chance_NKA.shape) < chance_NKA, axis=1)
        ts_ms_N = start_ms + 1_000 * np.arange(num)
        return Outcomes(
            tasks=config.actions,
            actions=config.actions,
            request_id=[f"r-{ts_ms}" for ts_ms in ts_ms_N.tolist()],
            user_id=[f"u-{start_ms}-{user}" for user in requests.user_N.tolist()],
            contexts=contexts_of(requests),
            ts_ms_N=ts_ms_N,
            center_NT=center_NT,
            weights_NT=weights_NT,
            log_density_N=log_density_N,
            tau_N=np.full(num, tau),
            truncate_N=np.full(num, truncate),
            scale_NT=np.tile(self.scale_T, (num, 1)),
            snapshot_N=np.ones(num, np.int64),
            blender_N=np.full(num, version),
            scores_NCT=requests.scores_NCA,
            position_NC=position_NC,
            value_NCA=value_NCA,
        )

    def values(self, requests: ScoredRequests, weights_NT: Floats) -> Floats:
        """Returns the expected reward of each request under some weights, value_N: no draw in it."""
        config = self.scored.config
        top_NK = _top(self._utilities(requests, weights_NT), config.num_shown)
        factor_NA = self.scored.multipliers(requests.numbers_NF, requests.mood_N) * requests.activity_N[:, None]
        shown_NA = np.take_along_axis(requests.scores_NCA, top_NK[:, :, None], axis=1).sum(axis=1, dtype=np.float64)
        value_N: Floats = (shown_NA * factor_NA) @ np.array(config.reward)
        return value_N

    def _utilities(self, requests: ScoredRequests, weights_NT: Floats) -> Floats:
        """The same sum in the same order as serving."""
        factor_NT = weights_NT / self.scale_T
        utility_NC: Floats = (requests.scores_NCA * factor_NT[:, None, :]).sum(axis=2, dtype=np.float64)
        return utility_NC


@dataclass(frozen=True, slots=True)
class Judge:
    """The truth on requests nobody learned from."""

    world: World
    requests: ScoredRequests
    static_value: float
    """Mean expected reward under production's weights."""
    oracle_value: float

    def value(self, policy: Policy) -> float:
        """Returns the mean expected reward under a policy."""
        return float(self.world.values(self.requests, policy.weights(contexts_of(self.requests))).mean())

    def oracle_share(self, policy: Policy) -> float:
        """Returns which share of the oracle's lift over production a policy gets: 0 production, 1 the oracle."""
        return (self.value(policy) - self.static_value) / (self.oracle_value - self.static_value)


def world_of(scored: ScoredWorld, *, scaled: bool = True) -> World:
    """Returns the world with each score's standard deviation over candidates as its scale; 1 if not `scaled`."""
    scores_NCA = scored.requests(_SCALE_REQUESTS, seed=0).scores_NCA
    scale_T = scores_NCA.std(axis=(0, 1), dtype=np.float64) if scaled else np.ones(scores_NCA.shape[2])
    return World(scored, scale_T)


def judge_of(world: World, num: int, *, seed: int) -> Judge:
    """Returns the judge who looks at `num` new requests."""
    requests = world.scored.requests(num, seed=seed)
    contexts = contexts_of(requests)
    static, oracle = (
        float(world.values(requests, policy.weights(contexts)).mean()) for policy in (world.static, world.oracle)
    )
    return Judge(world, requests, static, oracle)


def contexts_of(requests: ScoredRequests) -> Contexts:
    """Returns what a blender sees of the requests."""
    columns: dict[str, list[float] | list[str]] = {
        name: requests.numbers_NF[:, place].tolist() for place, name in enumerate(NUMERIC)
    }
    columns[MOOD] = [_MOODS[mood] for mood in requests.mood_N.tolist()]
    return Contexts(scenario=[SCENARIO] * len(requests.user_N), columns=columns)


def _top(utility_NC: Floats, num_shown: int) -> Ints:
    """Returns the indices of the best; of equals the one further left."""
    order_NC: Ints = np.argsort(-utility_NC, axis=1, kind="stable")
    return order_NC[:, :num_shown]
