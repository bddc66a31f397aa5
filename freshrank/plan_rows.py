"""How many embedding rows there are, how many a snapshot holds, and what they weigh. Pure arithmetic."""

from dataclasses import dataclass

import numpy as np

from freshrank.plan_costs import Costs
from freshrank.plan_load import Load, Preset

DENSE = {"small": 710_000, "published": 1_690_000}
"""Dense parameters of HiNet's presets, three scenarios and two tasks."""
KEY_BYTES, FLOAT_BYTES = 8, 4
TRAINED_BYTES = 4 + 6 * 8 + 32
"""Of a row in the trainer beside its weights: accumulator, clocks, counts, place, key, two slots of the id table."""
SERVED_BYTES = 48
"""Of a row in a ranker beside its weights: 2 to 8 slots of 16 bytes, three on average."""
MAX_PAYLOAD_BYTES = 512 * 2**20
"""The largest value of Redis, and so the largest full snapshot."""
_GROUPS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of the model, and what one snapshot holds of them."""

    total: int
    hot: int
    """Rows that snapshots hold and rankers keep; the others are in the row store."""
    delta: float
    """Rows of a delta."""
    delta_bytes: float
    full_bytes: float
    """Of the hot rows, with the dense weights."""


def rows_of(load: Load, costs: Costs, interval_s: float) -> Rows:
    """Returns the rows of a load whose snapshots are so many seconds apart."""
    total = load.items + load.users + load.other_values
    row_bytes = KEY_BYTES + FLOAT_BYTES * load.width
    weights_bytes = dense_bytes(load.preset)
    hot = min(total, load.hot_rows or total, int((MAX_PAYLOAD_BYTES - weights_bytes) // row_bytes))
    delta = (
        distinct(load.items, costs["zipf.items"], load.rows_per_s * interval_s)
        + distinct(load.users, costs["zipf.users"], load.rows_per_s / load.slate * interval_s)
        + distinct(load.other_values, 1.0, load.rows_per_s * interval_s)
    )
    delta = min(delta, float(hot))
    return Rows(
        total=total,
        hot=hot,
        delta=delta,
        delta_bytes=delta * row_bytes + weights_bytes,
        full_bytes=hot * row_bytes + weights_bytes,
    )


def dense_bytes(preset: Preset) -> float:
    """Returns the bytes of the dense weights, and of their gradients."""
    return float(FLOAT_BYTES * DENSE[preset])


def distinct(count: int, exponent: float, draws: float) -> float:
    """Returns how many of `count` things whose popularity falls as rank^-exponent come up in so many draws, on average.

    >>> round(distinct(1_000, 0.0, 1_000)), round(distinct(10, 1.0, 1e6)), distinct(0, 1.0, 5)
    (632, 10, 0.0)
    """
    if count == 0:
        return 0.0
    edge_G = np.unique(
        np.geomspace(1, count + 1, _GROUPS).astype(np.int64)
    )  # groups of ranks as likely as their middle
    size_G = np.diff(edge_G).astype(np.float64)
    weight_G = ((edge_G[:-1] + edge_G[1:] - 1) / 2.0) ** -exponent
    chance_G = weight_G / (weight_G * size_G).sum()
    return float((size_G * -np.expm1(-draws * chance_G)).sum())
