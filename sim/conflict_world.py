"""A world of several scenarios and conflicting tasks whose truth is known: the probability of every label.

    logit_st(u, i) = b_st + s (A_st p_u) . (C_st q_i) / sqrt(R) + s_0 v_st . q_i

p_u and q_i are sums of a vector for the user's (item's) id and vectors for each of its features, so that some of the
taste can be learned from features and some only from ids. What of them meets in a scenario and task (A_st, C_st) and
the appeal v_st are made from the first task's shared ones by two angles: tasks differ by `task_correlation` (negative:
they conflict), scenarios by `scenario_correlation`.

Letters: B rows, T tasks, M scenarios, Z width of p and q, R rank of the taste.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictWorldConfig:
    """One world."""

    scenario_shares: tuple[float, ...] = (0.55, 0.3, 0.1, 0.05)
    """Share of each scenario in the rows; they sum to 1."""
    base_rates: tuple[float, ...] = (0.25, 0.08)
    """Rough share of positives of each task."""
    task_correlation: float = -0.3
    """How alike the tastes behind two tasks are; -1 to 1."""
    scenario_correlation: float = 0.5
    """How alike the tastes of two scenarios are; 0 to 1."""
    num_users: int = 500
    num_items: int = 300
    num_user_values: tuple[int, ...] = (8, 12)
    """Values of each user feature."""
    num_item_values: tuple[int, ...] = (10, 20)
    """Values of each item feature."""
    taste_width: int = 6
    """Z."""
    taste_rank: int = 2
    """R; at least 1."""
    taste_scale: float = 1.0
    """Standard deviation of the taste's part of a logit."""
    appeal_scale: float = 1.0
    """Standard deviation of the item's part of a logit that is the same for all users."""
    id_share: float = 0.1
    """Share of the variance of p_u and q_i that is the id's own, not its features'; 0 to 1."""

    def __post_init__(self) -> None:
        if self.taste_rank < 1:
            raise ValueError(f"taste_rank: {self.taste_rank} is not allowed; at least 1")
        if not self.scenario_shares or abs(sum(self.scenario_shares) - 1.0) > 1e-9 or min(self.scenario_shares) <= 0:
            raise ValueError(f"scenario_shares: {self.scenario_shares} is not allowed; shares above 0 that sum to 1")
        if not self.base_rates or not all(0 < rate < 1 for rate in self.base_rates):
            raise ValueError(f"base_rates: {self.base_rates} is not allowed; between 0 and 1 each")
        for name, lowest in (("task_correlation", -1), ("scenario_correlation", 0), ("id_share", 0)):
            if not lowest <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; {lowest} to 1")


class ConflictRows(NamedTuple):
    """Rows as they happened, with the truth behind them."""

    scenario_B: Int64Array
    user_B: Int64Array
    item_B: Int64Array
    user_values_BF: Int64Array
    """The user's features."""
    item_values_BF: Int64Array
    """The item's features."""
    probability_BT: Float64Array
    label_BT: npt.NDArray[np.float32]


class ConflictWorld:
    """A world drawn from a seed; the same seed gives the same rows.

    >>> world = ConflictWorld(ConflictWorldConfig(num_users=10, num_items=10), seed=0)
    >>> [len(rows.label_BT) for rows in world.rows(5, batch_rows=3)]
    [3, 2]
    """

    def __init__(self, config: ConflictWorldConfig, seed: int) -> None:
        self._config = config
        self._rng = np.random.default_rng(seed)
        self._user_values = self._values(config.num_users, config.num_user_values)
        self._item_values = self._values(config.num_items, config.num_item_values)
        self._taste_of_user = self._vectors(self._user_values, config.num_user_values)
        self._taste_of_item = self._vectors(self._item_values, config.num_item_values)
        num_factors = config.taste_rank * config.taste_width
        self._user_taste_MTF, self._item_taste_MTF = self._tilted(num_factors), self._tilted(num_factors)
        self._appeal_MTZ = self._tilted(config.taste_width)
        rates_T = np.array(config.base_rates)
        self._bias_MT = np.log(rates_T / (1 - rates_T)) + 0.3 * self._rng.standard_normal(
            (len(config.scenario_shares), len(rates_T))
        )

    def rows(self, num_rows: int, *, batch_rows: int = 512) -> Iterator[ConflictRows]:
        """Yields `num_rows` new rows, `batch_rows` at a time."""
        for start in range(0, num_rows, batch_rows):
            yield self._batch(min(batch_rows, num_rows - start))

    def _batch(self, num_rows: int) -> ConflictRows:
        config, rng = self._config, self._rng
        scenario_B = rng.choice(len(config.scenario_shares), num_rows, p=config.scenario_shares)
        user_B, item_B = rng.integers(0, config.num_users, num_rows), rng.integers(0, config.num_items, num_rows)
        p_BZ, q_BZ = self._taste_of_user[user_B], self._taste_of_item[item_B]
        # Divided by the roots of Z and R, so that the sums have the standard deviation that the configuration says.
        scale = np.sqrt(config.taste_width)
        user_BTR = self._met(self._user_taste_MTF[scenario_B], p_BZ) / scale
        item_BTR = self._met(self._item_taste_MTF[scenario_B], q_BZ) / scale
        taste_BT = (user_BTR * item_BTR).sum(axis=2) / np.sqrt(config.taste_rank)
        appeal_BT = np.einsum("btz,bz->bt", self._appeal_MTZ[scenario_B], q_BZ) / scale
        logit_BT = self._bias_MT[scenario_B] + config.taste_scale * taste_BT + config.appeal_scale * appeal_BT
        probability_BT: Float64Array = 1 / (1 + np.exp(-logit_BT))
        return ConflictRows(
            scenario_B=scenario_B,
            user_B=user_B,
            item_B=item_B,
            user_values_BF=self._user_values[user_B],
            item_values_BF=self._item_values[item_B],
            probability_BT=probability_BT,
            label_BT=(rng.random(probability_BT.shape) < probability_BT).astype(np.float32),
        )

    def _met(self, factors_BTF: Float64Array, vectors_BZ: Float64Array) -> Float64Array:
        """Returns what of each vector meets the other side, [B, T, R]."""
        factors_BTRZ = factors_BTF.reshape(*factors_BTF.shape[:2], self._config.taste_rank, -1)
        met_BTR: Float64Array = np.einsum("btrz,bz->btr", factors_BTRZ, vectors_BZ)
        return met_BTR

    def _values(self, num_entries: int, num_values: tuple[int, ...]) -> Int64Array:
        return np.stack([self._rng.integers(0, number, num_entries) for number in num_values], axis=1)

    def _vectors(self, values_NF: Int64Array, num_values: tuple[int, ...]) -> Float64Array:
        """Returns a vector of unit variance per user or item: its features' and its own."""
        width, id_share = self._config.taste_width, self._config.id_share
        feature_share = (1 - id_share) / len(num_values)
        vectors_NZ: Float64Array = np.sqrt(id_share) * self._rng.standard_normal((len(values_NF), width))
        for values_N, number in zip(values_NF.T, num_values, strict=True):
            vectors_NZ += np.sqrt(feature_share) * self._rng.standard_normal((number, width))[values_N]
        return vectors_NZ

    def _tilted(self, width: int) -> Float64Array:
        """Returns a vector of unit variance per scenario and task, alike as the correlations say, [M, T, width]."""
        config = self._config
        num_scenarios, num_tasks = len(config.scenario_shares), len(config.base_rates)
        of_task_TZ = np.empty((num_tasks, width))
        for task in range(num_tasks):
            fresh_Z = self._rng.standard_normal(width)
            of_task_TZ[task] = _mixed(of_task_TZ[0], fresh_Z, config.task_correlation) if task else fresh_Z
        fresh_MTZ = self._rng.standard_normal((num_scenarios, num_tasks, width))
        # Two scenarios share the part of the task's, so each holds the root of their correlation of it.
        return _mixed(of_task_TZ[None], fresh_MTZ, float(np.sqrt(config.scenario_correlation)))


def _mixed(shared: Float64Array, fresh: Float64Array, correlation: float) -> Float64Array:
    mixed: Float64Array = correlation * shared + np.sqrt(1 - correlation**2) * fresh
    return mixed
