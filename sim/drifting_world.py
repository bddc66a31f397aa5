"""A world whose truth drifts, for the study of stability: the probability of every label is known, at every moment.

    logit_t(u, i, task) = b_task + s_t U[segment of u] . V_t[kind of i, task] + s_a A_t[i, task]

Tastes V and appeals A wander: each batch mixes a little noise into them so that their variance stays 1, and after one
period their correlation with what they were is sqrt(1 - drift^2). They may jump once.

Letters: B rows, T tasks, N lists, K candidates of a list, R rank of the taste.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftingWorldConfig:
    """One world."""

    base_rates: tuple[float, ...] = (0.25, 0.06)
    """Rough share of positives of each task, between 0 and 1."""
    drift: float = 0.15
    """How much of a taste is new after one period, as the standard deviation of the new part; 0 to 1."""
    period_rows: int = 6_000
    """Rows of a period; a multiple of `batch_rows`."""
    batch_rows: int = 200
    """Rows of a batch, over which the truth stands still; at least 1."""
    jump_period: int | None = None
    """The period at whose start the tastes jump; null: never."""
    jump: float = 0.85
    """As `drift`, for the jump."""
    num_segments: int = 16
    """Of users."""
    num_kinds: int = 24
    """Of items."""
    num_items: int = 240
    taste_rank: int = 4
    """R; at least 1."""
    taste_scale: float = 1.1
    """Standard deviation of the taste's part of a logit."""
    appeal_scale: float = 0.8
    """Standard deviation of the item's own part of a logit."""

    def __post_init__(self) -> None:
        if not self.base_rates or not all(0 < rate < 1 for rate in self.base_rates):
            raise ValueError(f"base_rates: {self.base_rates} is not allowed; between 0 and 1 each")
        for name in ("drift", "jump"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; 0 to 1")
        for name in ("batch_rows", "num_segments", "num_kinds", "num_items", "taste_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
        if self.period_rows < 1 or self.period_rows % self.batch_rows:
            raise ValueError(f"period_rows: {self.period_rows} is not allowed; a multiple of {self.batch_rows}")


class DriftingRows(NamedTuple):
    """Rows as they happened, with the truth of that moment."""

    segment_B: Int64Array
    item_B: Int64Array
    probability_BT: Float64Array
    label_BT: npt.NDArray[np.float32]


class DriftingLists(NamedTuple):
    """Requests that stand still: a user's segment and K candidates, by rising item."""

    segment_N: Int64Array
    item_NK: Int64Array


class DriftingWorld:
    """A world drawn from a seed; the same seed gives the same rows.

    >>> world = DriftingWorld(DriftingWorldConfig(period_rows=8, batch_rows=4), seed=0)
    >>> [len(rows.label_BT) for rows in world.periods(2)]
    [4, 4, 4, 4]
    """

    def __init__(self, config: DriftingWorldConfig, seed: int) -> None:
        self._config = config
        self._rng, drift_rng, self._list_rng = np.random.default_rng(seed).spawn(3)
        self._drift_rng = drift_rng
        rates_T = np.array(config.base_rates)
        num_tasks = len(rates_T)
        self._bias_T = np.log(rates_T / (1 - rates_T))
        self.kind_of_item = drift_rng.integers(0, config.num_kinds, config.num_items)
        """The kind of each item."""
        self._segment_SR = drift_rng.standard_normal((config.num_segments, config.taste_rank))
        self._taste_KTR = drift_rng.standard_normal((config.num_kinds, num_tasks, config.taste_rank))
        self._appeal_IT = drift_rng.standard_normal((config.num_items, num_tasks))

    def periods(self, number: int) -> Iterator[DriftingRows]:
        """Yields the batches of the first `number` periods, each after the world has moved on a little."""
        config = self._config
        per_period = config.period_rows // config.batch_rows
        kept = (1 - config.drift**2) ** (1 / (2 * per_period))  # so that a period keeps sqrt(1 - drift^2)
        for batch in range(number * per_period):
            is_jump = config.jump_period is not None and batch == config.jump_period * per_period
            self._move(np.sqrt(1 - config.jump**2) if is_jump else kept)
            segment_B = self._rng.integers(0, config.num_segments, config.batch_rows)
            item_B = self._rng.integers(0, config.num_items, config.batch_rows)
            probability_BT = self.probability(segment_B, item_B)
            label_BT = (self._rng.random(probability_BT.shape) < probability_BT).astype(np.float32)
            yield DriftingRows(segment_B, item_B, probability_BT, label_BT)

    def probability(self, segment_B: Int64Array, item_B: Int64Array) -> Float64Array:
        """Returns the true probability of each task's label now, [B, T]."""
        config = self._config
        taste_BT = np.einsum("br,btr->bt", self._segment_SR[segment_B], self._taste_KTR[self.kind_of_item[item_B]])
        taste_BT *= config.taste_scale / np.sqrt(config.taste_rank)
        logit_BT = self._bias_T + taste_BT + config.appeal_scale * self._appeal_IT[item_B]
        return np.asarray(1 / (1 + np.exp(-logit_BT)))

    def lists(self, number: int, candidates: int) -> DriftingLists:
        """Returns requests of distinct candidates, drawn evenly."""
        rng, num_items = self._list_rng, self._config.num_items
        item_NK = np.stack([np.sort(rng.choice(num_items, candidates, replace=False)) for _ in range(number)])
        return DriftingLists(rng.integers(0, self._config.num_segments, number), item_NK)

    def _move(self, kept: float) -> None:
        new = np.sqrt(1 - kept**2)
        for wandering in (self._taste_KTR, self._appeal_IT):
            wandering *= kept
            wandering += new * self._drift_rng.standard_normal(wandering.shape)
