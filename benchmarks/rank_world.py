"""What a ranker is asked in the benchmarks: 20 fields, 8 of them per item, with values of realistic cardinality."""

import json
from typing import Any

import numpy as np

from model.features import FeatureEncoder
from model.hashing import MISSING_KEY
from ranker.rank import request_columns
from ranker.request import RequestDecoder, RequestLimits
from ranker.stats import RankerStats
from stream.schema import FeatureConfig, FeaturesConfig, SchemaConfig, Sequence, TaskConfig
from utility_blender.blend import BlenderConfig

NUM_CANDIDATES = 500
NUM_ITEMS, NUM_USERS = 50_000, 5_000
CATEGORICAL, NUMERIC = FeatureConfig(kind="categorical"), FeatureConfig(kind="numeric")
SCHEMA = SchemaConfig(
    scenarios=("home", "search", "deals"),
    tasks={name: TaskConfig(action=name, window_ms=60_000) for name in ("click", "order", "hide")},
    features=FeaturesConfig(  # with the ids and two history fields: 12 of the request, 8 of the item
        user={"age": CATEGORICAL, "city": CATEGORICAL, "gender": CATEGORICAL, "tier": CATEGORICAL, "spend": NUMERIC},
        context={"device": CATEGORICAL, "hour": CATEGORICAL, "referrer": CATEGORICAL, "battery": NUMERIC},
        item={
            "category": CATEGORICAL,
            "brand": CATEGORICAL,
            "seller": CATEGORICAL,
            "colour": CATEGORICAL,
            "price": NUMERIC,
            "rating": NUMERIC,
            "tags": FeatureConfig(kind="categorical", many=True),
        },
    ),
)
BLENDER = BlenderConfig(weights={"default": {"click": 1.0, "order": 5.0, "hide": -2.0}})


class World:
    """Seeded users and items with features of realistic cardinality, and requests among them."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = rng = np.random.default_rng(seed)
        self.item_ids = [f"item-{n}" for n in range(NUM_ITEMS)]
        self.items: dict[str, list[Any]] = {
            name: [f"{name}-{value}" for value in np.minimum(rng.zipf(1.3, NUM_ITEMS), largest)]
            for name, largest in (("category", 300), ("brand", 4_000), ("seller", 9_000), ("colour", 30))
        }
        self.items["price"] = np.round(rng.lognormal(3, 1, NUM_ITEMS), 2).tolist()
        self.items["rating"] = np.round(rng.uniform(1, 5, NUM_ITEMS), 1).tolist()
        self.items["tags"] = [
            [f"tag-{tag}" for tag in rng.integers(0, 500, rng.integers(0, 5))] for _ in range(NUM_ITEMS)
        ]

    def request(self) -> dict[str, Any]:
        """Returns the body of one request."""
        rng = self._rng
        rows = rng.choice(NUM_ITEMS, NUM_CANDIDATES, replace=False).tolist()
        return {
            "user_id": f"user-{rng.integers(NUM_USERS)}",
            "scenario": str(rng.choice(SCHEMA.scenarios)),
            "size": 10,
            "user": {
                "age": int(rng.integers(10)),
                "city": f"city-{rng.integers(500)}",
                "gender": str(rng.choice(["f", "m"])),
                "tier": int(rng.integers(5)),
                "spend": float(np.round(rng.lognormal(4, 1), 2)),
            },
            "context": {
                "device": str(rng.choice(["ios", "android", "web"])),
                "hour": int(rng.integers(24)),
                "referrer": f"ref-{rng.integers(200)}",
                "battery": float(np.round(rng.random(), 2)),
            },
            "candidates": {
                "id": [self.item_ids[row] for row in rows],
                "features": {name: [column[row] for row in rows] for name, column in self.items.items()},
            },
        }

    def sequence(self) -> Sequence:
        """Returns a user's last 50 actions."""
        rows = self._rng.integers(0, NUM_ITEMS, 50).tolist()
        actions = self._rng.choice(["click", "click", "click", "order"], 50).tolist()
        return Sequence(
            [self.item_ids[row] for row in rows], actions, [1_790_000_000_000 - 9_000 * n for n in range(50)]
        )

    def keys(self, bodies: list[bytes], encoder: FeatureEncoder) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Returns the distinct keys of all items and of the requests: what a model trained on them has rows for."""
        decoder = RequestDecoder(SCHEMA, RequestLimits(max_candidates=NUM_ITEMS), RankerStats())
        everything = self.request()
        everything["candidates"] = {"id": self.item_ids, "features": self.items}
        found = []
        for body in (json.dumps(everything).encode(), *bodies):
            batch = encoder.encode_columns(request_columns(decoder.rank(body), self.sequence(), 0))
            lists = (entries.keys_N for entries in (*batch.request_lists, *batch.item_lists))
            found += [batch.request_keys_FR.ravel(), batch.item_keys_FB.ravel(), *lists]
        keys = np.unique(np.concatenate(found))
        own: np.ndarray[Any, np.dtype[np.int64]] = keys[keys != MISSING_KEY]
        return own
