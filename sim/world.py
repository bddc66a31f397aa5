"""A world with known truth: users whose tastes drift, items that come and go, requests with their candidates.

Everything is a function of (seed, id, time): the same seed is the same world in every process, whatever was asked
before. `sim.behaviour` says what users do in it.

D latent dimensions; N candidates of a request.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.catalogue import CATEGORIES, NUM_LATENT, ORIGIN_MS, Catalogue, Floats, unit
from sim.config import SimConfig
from sim.mood import MoodConfig
from sim.scenario import ScenarioConfig
from stream.schema import FeatureConfig, FeaturesConfig

CITIES = ("lyon", "porto", "ghent", "turin", "graz", "malmo", "brno", "split", "cork", "bergen")
NUM_AGE_BANDS = 6
DEVICES = ("ios", "android", "web")

FEATURES = FeaturesConfig(
    user={"age_band": FeatureConfig(kind="categorical"), "city": FeatureConfig(kind="categorical")},
    item={
        "category": FeatureConfig(kind="categorical"),
        "brand": FeatureConfig(kind="categorical"),
        "price": FeatureConfig(kind="numeric"),
        "tags": FeatureConfig(kind="categorical", many=True),
    },
    context={"device": FeatureConfig(kind="categorical"), "query": FeatureConfig(kind="categorical")},
)
"""The features every request of this world carries, as a run's config declares them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSet:
    """What can be ranked for one request: what goes over the wire, and the truth about it that does not."""

    id: list[str]
    features: dict[str, list[Any]]
    """Columns by item feature, one value per candidate."""
    vec_ND: Floats
    appeal_N: Floats
    price_z_N: Floats
    matches_N: NDArray[np.bool_]
    """Whether the candidate is of the query's category; all false without a query."""


class World:
    """Users and items of a seed. All methods are deterministic in their arguments.

    >>> world = World(SimConfig(num_users=3, num_items=50))
    >>> world.users()
    ('u0', 'u1', 'u2')
    >>> [len(c.id) for c in [world.candidates("u1", "home", 1_790_000_000_000, 5)]]
    [5]
    """

    def __init__(self, config: SimConfig) -> None:
        self.config = config
        self.catalogue = Catalogue(
            seed=config.seed, num_items=config.num_items, item_life_ms=round(config.item_life_s * 1_000)
        )
        self._users = tuple(f"u{index}" for index in range(config.num_users))
        self._index_of = {user_id: index for index, user_id in enumerate(self._users)}
        rng = np.random.default_rng([config.seed, 3])
        # Two poles per age band and city; a user's poles lean on those of their groups, so user features carry signal.
        age_poles = unit(rng.standard_normal((NUM_AGE_BANDS, 2, NUM_LATENT)))
        city_poles = unit(rng.standard_normal((len(CITIES), 2, NUM_LATENT)))
        # One phase per age band: a whole group drifts together, which is what a model can notice.
        self._phase_by_age = rng.uniform(0, 2 * np.pi, NUM_AGE_BANDS)
        num = config.num_users
        self._age, self._city, self._device = np.zeros((3, num), dtype=np.int64)
        self._poles = np.zeros((num, 2, NUM_LATENT))
        for index in range(num):
            own = np.random.default_rng([config.seed, 4, index])
            self._age[index] = own.integers(NUM_AGE_BANDS)
            self._city[index] = own.integers(len(CITIES))
            self._device[index] = own.integers(len(DEVICES))
            noise = unit(own.standard_normal((2, NUM_LATENT)))
            self._poles[index] = unit(age_poles[self._age[index]] + 0.6 * city_poles[self._city[index]] + 0.6 * noise)

    @property
    def scenario_names(self) -> tuple[str, ...]:
        """The scenarios of the config, in its order."""
        return tuple(self.config.scenarios)

    def users(self) -> tuple[str, ...]:
        """Returns all user ids."""
        return self._users

    def user_features(self, user_id: str) -> dict[str, Any]:
        """Returns the user's features by name.

        Raises:
            ValueError: not a user of this world.
        """
        index = self.user_index(user_id)
        return {"age_band": int(self._age[index]), "city": CITIES[self._city[index]]}

    def user_index(self, user_id: str) -> int:
        """Returns the user's place in `users()`.

        Raises:
            ValueError: not a user of this world.
        """
        index = self._index_of.get(user_id)
        if index is None:
            raise ValueError(f"user_id: {user_id!r} is not allowed; u0 to u{len(self._users) - 1}")
        return index

    def taste(self, user_id: str, now_ms: int) -> Floats:
        """Returns the user's taste at a moment: a unit vector `[D]` that goes round between the user's two poles."""
        index = self.user_index(user_id)
        turns = (now_ms - ORIGIN_MS) / (1_000 * self.config.drift_period_s)
        angle = 2 * np.pi * turns + self._phase_by_age[self._age[index]]
        first, second = self._poles[index]
        return unit(math.cos(angle) * first + math.sin(angle) * second)

    def context(self, user_id: str, scenario: str, now_ms: int) -> dict[str, Any]:
        """Returns the request's context by name; `query` is None in scenarios without one."""
        query = self._query(user_id, scenario, now_ms)
        device = DEVICES[self._device[self.user_index(user_id)]]
        context = {"device": device, "query": None if query is None else CATEGORIES[query]}
        mood = self.mood(user_id, now_ms)
        return context if mood is None else {**context, "mood": mood[0]}

    def mood(self, user_id: str, now_ms: int) -> tuple[str, MoodConfig] | None:
        """Returns the mood of a request and what it does; None in a world without moods."""
        moods = self.config.moods
        if not moods:
            return None
        share_M = np.array([mood.share for mood in moods.values()])
        place = int(self._request_rng(user_id, now_ms, 7).choice(len(moods), p=share_M / share_M.sum()))
        return list(moods.items())[place]

    def candidates(self, user_id: str, scenario: str, now_ms: int, num: int) -> CandidateSet:
        """Returns `num` different items alive at `now_ms`, at random; with a query, up to half of them match it."""
        self.catalogue.move_to(now_ms)
        query = self._query(user_id, scenario, now_ms)
        order = self._request_rng(user_id, now_ms, 6).permutation(self.config.num_items)
        if query is None:
            slots = order[:num]
            matches_N = np.zeros(num, dtype=np.bool_)
        else:
            is_match = self.catalogue.category_S[order] == query
            wanted = order[is_match][: num // 2]
            slots = np.concatenate([wanted, order[~is_match], order[is_match][num // 2 :]])[:num]
            matches_N = self.catalogue.category_S[slots] == query
        return self._candidate_set(slots.tolist(), matches_N)

    def _candidate_set(self, slots: list[int], matches_N: NDArray[np.bool_]) -> CandidateSet:
        return CandidateSet(
            id=[self.catalogue.id[slot] for slot in slots],
            features={name: [column[slot] for slot in slots] for name, column in self.catalogue.features.items()},
            vec_ND=self.catalogue.vec_SD[slots],
            appeal_N=self.catalogue.appeal_S[slots],
            price_z_N=self.catalogue.price_z_S[slots],
            matches_N=matches_N,
        )

    def known_items(self, item_ids: Sequence[str], now_ms: int) -> CandidateSet:
        """Returns items alive at `now_ms` by their ids, as candidates of a request without a query.

        Raises:
            ValueError: one of them is not alive then.
        """
        self.catalogue.move_to(now_ms)
        slot_of = {item_id: slot for slot, item_id in enumerate(self.catalogue.id)}
        if gone := [item_id for item_id in item_ids if item_id not in slot_of]:
            raise ValueError(f"item_id: {gone[0]!r} is not alive at {now_ms}")
        return self._candidate_set([slot_of[item_id] for item_id in item_ids], np.zeros(len(item_ids), np.bool_))

    def _query(self, user_id: str, scenario: str, now_ms: int) -> int | None:
        """Returns the index of the category asked for: mostly one that the user likes at that moment."""
        if not self.scenario(scenario).has_query:
            return None
        rng = self._request_rng(user_id, now_ms, 5)
        liking = 2.0 * math.sqrt(NUM_LATENT) * (self.catalogue.category_vec @ self.taste(user_id, now_ms))
        return int(np.argmax(liking + rng.gumbel(size=len(CATEGORIES))))

    def scenario(self, name: str) -> ScenarioConfig:
        """Returns the coefficients of a scenario.

        Raises:
            ValueError: not a scenario of this world.
        """
        if name not in self.config.scenarios:
            raise ValueError(f"scenario: {name!r} is not allowed; one of {', '.join(self.config.scenarios)}")
        return self.config.scenarios[name]

    def _request_rng(self, user_id: str, now_ms: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, purpose, self.user_index(user_id), now_ms])
