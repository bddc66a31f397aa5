"""Items that come and go: a fixed number of slots, each filled by one generation of item after the other.

Which item fills a slot is a function of time, and what an item is like is a function of (seed, slot, generation). So
the catalogue at any moment does not depend on what was asked before; the arrays below only cache the present.

D latent dimensions; S slots.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

CATEGORIES = (
    "shoes", "hats", "jackets", "bags", "watches", "books", "games", "music", "plants", "kitchen", "tools", "toys",
)  # fmt: skip
BRANDS = (
    "alder", "birch", "cedar", "dune", "ember", "fjord", "grove", "harbor", "iris", "juniper", "kelp", "larch",
    "maple", "north", "oak", "pine", "quartz", "river", "slate", "tide", "umber", "vale", "willow", "yarrow",
)  # fmt: skip
TAGS = (
    "new", "red", "blue", "green", "black", "white", "small", "large", "light", "sturdy", "soft", "vintage",
    "handmade", "recycled", "gift", "outdoor", "indoor", "winter", "summer", "limited", "classic", "bold", "plain",
    "set",
)  # fmt: skip
ORIGIN_MS = 1_767_225_600_000
"""2026-01-01 UTC: where generations count from. Any fixed instant does; a near one keeps item ids short."""
NUM_LATENT = 8
_PRICE_SD = 0.6

Floats = NDArray[np.float64]


def unit(vectors: Floats) -> Floats:
    """Returns the vectors scaled to length one along the last axis."""
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


class Catalogue:
    """The items alive at a moment, as columns over slots.

    Attributes (after `move_to`): `vec_SD` unit latent vectors, `appeal_S`, `price_z_S` standardised log price,
    `category_S` index into `CATEGORIES`, `id` item ids, and `features` by name, the last two as plain lists.
    """

    def __init__(self, *, seed: int, num_items: int, item_life_ms: int) -> None:
        self._seed = seed
        self._life_ms = item_life_ms
        # Births are spread evenly over a life, so that new items appear at a steady pace.
        self._offset_S = (np.arange(num_items) * item_life_ms) // num_items
        self._generation_S = np.full(num_items, np.iinfo(np.int64).min)
        self._valid_from_ms, self._valid_until_ms = 0, -1
        rng = np.random.default_rng([seed, 1])
        self.category_vec = unit(rng.standard_normal((len(CATEGORIES), NUM_LATENT)))
        self._brand_vec = unit(rng.standard_normal((len(BRANDS), NUM_LATENT)))
        self._tag_vec = unit(rng.standard_normal((len(TAGS), NUM_LATENT)))
        self._category_price = rng.normal(3.5, 0.7, len(CATEGORIES))
        self.vec_SD = np.zeros((num_items, NUM_LATENT))
        self.appeal_S = np.zeros(num_items)
        self.price_z_S = np.zeros(num_items)
        self.category_S = np.zeros(num_items, dtype=np.int64)
        self.id: list[str] = [""] * num_items
        self.features: dict[str, list[Any]] = {
            "category": [""] * num_items,
            "brand": [""] * num_items,
            "price": [0.0] * num_items,
            "tags": [[] for _ in range(num_items)],
        }

    def move_to(self, now_ms: int) -> None:
        """Fills every slot with the item that lives there at `now_ms`."""
        if self._valid_from_ms <= now_ms < self._valid_until_ms:
            return
        age_S = now_ms - ORIGIN_MS + self._offset_S
        generation_S = age_S // self._life_ms
        for slot in np.flatnonzero(generation_S != self._generation_S).tolist():
            self._fill(slot, int(generation_S[slot]))
        self._generation_S = generation_S
        into_life_S = age_S % self._life_ms
        self._valid_from_ms = now_ms - int(into_life_S.min())
        self._valid_until_ms = now_ms + self._life_ms - int(into_life_S.max())

    def _fill(self, slot: int, generation: int) -> None:
        rng = np.random.default_rng([self._seed, 2, slot, generation & 0xFFFFFFFFFFFFFFFF])
        category = int(rng.integers(len(CATEGORIES)))
        brand = int(rng.integers(len(BRANDS)))
        tags = sorted(rng.choice(len(TAGS), size=int(rng.integers(0, 5)), replace=False).tolist())
        own = unit(rng.standard_normal(NUM_LATENT))
        tag_vec = self._tag_vec[tags].sum(axis=0) if tags else np.zeros(NUM_LATENT)
        latent = self.category_vec[category] + 0.4 * self._brand_vec[brand] + 0.15 * tag_vec + 0.35 * own
        price_z = float(rng.standard_normal())
        self.vec_SD[slot] = unit(latent)
        self.appeal_S[slot] = rng.standard_normal()
        self.price_z_S[slot] = price_z
        self.category_S[slot] = category
        self.id[slot] = f"i{slot}-{generation}"
        self.features["category"][slot] = CATEGORIES[category]
        self.features["brand"][slot] = BRANDS[brand]
        self.features["price"][slot] = round(float(np.exp(self._category_price[category] + _PRICE_SD * price_z)), 2)
        self.features["tags"][slot] = [TAGS[tag] for tag in tags]
