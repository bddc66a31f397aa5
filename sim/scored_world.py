"""A world of requests whose candidates carry honest scores, and in which the best weights of a utility are known.

    P(action a on item j | request) = score_ja * m_a(x) * activity_user

So items are worth `activity * sum_a rho_a m_a(x) score_ja`: no ranking by score beats the weights `rho * m(x)`, which
depend on the context. Production weights are the best constant ones bent by `misjudged`. Design: blender.md, section 6.

Shape letters: N requests, C candidates, A actions (each with a score), F numbers of the context, V values of the mood.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
NUM_NUMBERS = 3
"""F: two numbers of the user and one of the request."""
NUM_MOODS = 3
"""V."""
_MOST_ACTIVE = 1.3
_MOST_PROBABLE = 0.38
"""Highest score: times the largest multiplier (2) and activity it is still a probability."""
_PART = 10_000
"""Requests drawn at once, which bounds the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredWorldConfig:
    """One world."""

    actions: tuple[str, ...] = ("repin", "closeup", "long_click", "hide")
    reward: tuple[float, ...] = (3.0, 1.0, 1.0, -2.0)
    """rho: what each action is worth; not 0."""
    rates: tuple[float, ...] = (0.08, 0.14, 0.10, 0.05)
    """Rough mean of each score over all candidates; between 0 and 0.38."""
    misjudged: tuple[float, ...] = (0.7, 1.5, 1.3, 0.6)
    """Factor between production's weight of each action and the best constant one; above 0."""
    num_candidates: int = 40
    num_shown: int = 8
    """At most as many as candidates."""
    spread: float = 1.0
    """Standard deviation of a score's logit over the candidates."""
    alike: float = 0.3
    """Correlation of two scores over the candidates; 0 to 1."""
    taste: float = 1.2
    """How far multipliers go: 0 is the same for all contexts; at any size they stay within a factor of 2."""
    requests_per_user: float = 5.0
    """On average; at least 1. Requests of a user share numbers and activity, so their rewards correlate."""

    def __post_init__(self) -> None:
        for name in ("reward", "rates", "misjudged"):
            if len(getattr(self, name)) != len(self.actions):
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; one number for each of {self.actions}")
        if 0 in self.reward:
            raise ValueError(f"reward: {self.reward} is not allowed; none 0, or its weight could not be explored")
        if not all(0 < rate < _MOST_PROBABLE for rate in self.rates):
            raise ValueError(f"rates: {self.rates} is not allowed; between 0 and {_MOST_PROBABLE} each")
        if min(self.misjudged) <= 0:
            raise ValueError(f"misjudged: {self.misjudged} is not allowed; above 0 each")
        if not 1 <= self.num_shown <= self.num_candidates:
            raise ValueError(f"num_shown: {self.num_shown} is not allowed; 1 to {self.num_candidates}")
        if self.requests_per_user < 1:
            raise ValueError(f"requests_per_user: {self.requests_per_user} is not allowed; at least 1")


class ScoredRequests(NamedTuple):
    """Requests with their scored candidates, before anything is shown."""

    user_N: Int64Array
    numbers_NF: Float64Array
    """Two numbers of the user, one of the request; standard normal."""
    mood_N: Int64Array
    activity_N: Float64Array
    """Factor on all probabilities of the user's; nobody sees it."""
    scores_NCA: npt.NDArray[np.float32]


class ScoredWorld:
    """A world drawn from a seed: what of the context moves which action.

    >>> world = ScoredWorld(ScoredWorldConfig(), seed=0)
    >>> world.requests(2, seed=1).scores_NCA.shape
    (2, 40, 4)
    """

    def __init__(self, config: ScoredWorldConfig, seed: int) -> None:
        self.config = config
        rng = np.random.default_rng([seed, 0])
        num_actions = len(config.actions)
        self._of_numbers_FA = _apart(NUM_NUMBERS, num_actions, rng)
        self._of_mood_VA = _apart(NUM_MOODS, num_actions, rng)
        self._of_pair_A = rng.choice([-0.5, 0.5], num_actions)
        sample = self._without_candidates(20_000, np.random.default_rng([seed, 1]))
        mean_A = self.multipliers(sample.numbers_NF, sample.mood_N).mean(axis=0)
        self.production_A: Float64Array = np.array(config.reward) * mean_A * np.array(config.misjudged)
        """Production's weights of the raw scores."""

    def requests(self, num: int, *, seed: int) -> ScoredRequests:
        """Returns new requests of new users; the same seed gives the same ones."""
        rng = np.random.default_rng([seed, 2])
        return self._without_candidates(num, rng)._replace(scores_NCA=self._scores(num, rng))

    def multipliers(self, numbers_NF: Float64Array, mood_N: Int64Array) -> Float64Array:
        """Returns m(x), multiplier_NA in [1/2, 2]."""
        pair_N = numbers_NF[:, 0] * numbers_NF[:, 2]
        direction_NA = numbers_NF @ self._of_numbers_FA + self._of_mood_VA[mood_N] + pair_N[:, None] * self._of_pair_A
        multiplier_NA: Float64Array = 2.0 ** np.tanh(self.config.taste * direction_NA)
        return multiplier_NA

    def probabilities(self, requests: ScoredRequests) -> Float64Array:
        """Returns the probability of each action on each candidate if it is shown, probability_NCA."""
        factor_NA = self.multipliers(requests.numbers_NF, requests.mood_N) * requests.activity_N[:, None]
        probability_NCA: Float64Array = requests.scores_NCA * factor_NA[:, None, :]
        return probability_NCA

    def _without_candidates(self, num: int, rng: np.random.Generator) -> ScoredRequests:
        num_users = max(round(num / self.config.requests_per_user), 1)
        user_N = rng.integers(0, num_users, num)
        of_user = rng.standard_normal((num_users, 2))
        return ScoredRequests(
            user_N=user_N,
            numbers_NF=np.concatenate([of_user[user_N], rng.standard_normal((num, 1))], axis=1),
            mood_N=rng.integers(0, NUM_MOODS, num),
            activity_N=rng.uniform(2 - _MOST_ACTIVE, _MOST_ACTIVE, num_users)[user_N],
            scores_NCA=np.empty((num, 0, len(self.config.actions)), np.float32),
        )

    def _scores(self, num: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        config = self.config
        num_candidates, num_actions = config.num_candidates, len(config.actions)
        share_A = np.array(config.rates) / _MOST_PROBABLE
        logit_A = np.log(share_A / (1 - share_A))
        scores_NCA = np.empty((num, num_candidates, num_actions), np.float32)
        for start in range(0, num, _PART):
            size = min(_PART, num - start)
            shared = rng.standard_normal((size, num_candidates, 1), np.float32)
            own = rng.standard_normal((size, num_candidates, num_actions), np.float32)
            z = np.sqrt(config.alike) * shared + np.sqrt(1 - config.alike) * own
            scores_NCA[start : start + size] = _MOST_PROBABLE / (1 + np.exp(-(logit_A + config.spread * z)))
        return scores_NCA


def _apart(num_factors: int, num_actions: int, rng: np.random.Generator) -> Float64Array:
    """Returns factors that move the actions equally far and as far apart as there is room for.

    Worlds then differ in their directions and hardly in what the best weights gain.
    """
    corners_AA = np.eye(num_actions) - 1 / num_actions
    corners_AF = np.linalg.svd(corners_AA)[0][:, : min(num_factors, num_actions - 1)]
    corners_AF /= np.linalg.norm(corners_AF, axis=1, keepdims=True)
    rotation_FF = np.linalg.qr(rng.standard_normal((num_factors, num_factors)))[0]
    apart_FA: Float64Array = rotation_FF[:, : corners_AF.shape[1]] @ corners_AF.T
    return apart_FA
