"""Figures of binary scores as pure functions in float64, and the sums they follow from. Letter: H histogram bins.

NE = mean cross-entropy / entropy of the base rate (He et al., ADKDD 2014): below 1 beats predicting the base rate.
Calibration = sum of scores / positives. AUC comes from a histogram of logits, `NUM_BINS` bins over +-`LOGIT_RANGE`:
pairs that share a bin count one half, so it is off by at most half the share of (positive, negative) pairs in one bin.
In practice by far less, because inside so narrow a bin the order is close to chance: below 5e-5 when logits have a
standard deviation of 2, below 1e-3 when it is 0.05 (`tests/model/test_metrics.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_BINS = 4096
LOGIT_RANGE = 16.0
MAX_LOGIT = 32.0
"""Scores of exactly 0 or 1 are taken as this logit, so that one wrong certainty costs 32 nats and not infinity."""

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Arrays = dict[str, npt.NDArray[Any]]
"""State as named arrays, for the checkpoint."""
Figures = dict[str, float | None]
"""`n, positives, auc, ne, calibration`; None where undefined (no label, or one class only)."""


def cross_entropy(logit: Float64Array, label: Float64Array) -> Float64Array:
    """Returns -log p(label) per element, in nats.

    >>> cross_entropy(np.array([0.0, 800.0]), np.array([1.0, 1.0]))
    array([0.69314718, 0.        ])
    """
    return np.logaddexp(0.0, np.where(label > 0, -logit, logit))


def base_rate_entropy(positives: float, n: float) -> float:
    """Returns the entropy of a coin with p = positives / n, in nats; 0 if one class is missing."""
    rate = positives / n if n else 0.0
    return 0.0 if rate in (0.0, 1.0) else float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))


def normalized_entropy(cross_entropy_sum: float, positives: float, n: float) -> float | None:
    """Returns NE; None without both classes.

    >>> normalized_entropy(2 * np.log(2), positives=1, n=2)
    1.0
    """
    entropy = base_rate_entropy(positives, n)
    return float(cross_entropy_sum / n / entropy) if entropy > 0 else None


def auc_of_histograms(positives_H: npt.NDArray[np.integer], negatives_H: npt.NDArray[np.integer]) -> float | None:
    """Returns the area under the ROC curve of scores binned in rising order; None without both classes.

    >>> auc_of_histograms(np.array([0, 1, 1]), np.array([1, 1, 0]))
    0.875
    """
    num_positives, num_negatives = int(positives_H.sum()), int(negatives_H.sum())
    if not num_positives or not num_negatives:
        return None
    negatives_below_H = np.cumsum(negatives_H, dtype=np.float64) - 0.5 * negatives_H
    return float(positives_H @ negatives_below_H / (num_positives * num_negatives))


def logit_of(probability: npt.NDArray[np.floating]) -> Float64Array:
    """Returns the logit in float64, within +-`MAX_LOGIT`; NaN stays NaN."""
    p = np.asarray(probability, np.float64)
    with np.errstate(divide="ignore"):
        logit: Float64Array = np.clip(np.log(p) - np.log1p(-p), -MAX_LOGIT, MAX_LOGIT)
    return logit


def bin_of(logit: Float64Array) -> Int64Array:
    """Returns the histogram bin of each logit; those out of range share the outermost bins."""
    scaled = (logit + LOGIT_RANGE) * (NUM_BINS / (2 * LOGIT_RANGE))
    return np.clip(scaled, 0, NUM_BINS - 1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class ScoredLabels:
    """Labels that count, flat: N entries, one per row and task whose label is final. Made by `scored_labels`."""

    cell_N: Int64Array
    """scenario * T + task."""
    terms_4N: Float64Array
    """What each adds to the sums of a `Tally`."""
    place_N: Int64Array
    """Where each is in the histograms of a `Tally`."""

    def take(self, chosen_N: BoolArray) -> "ScoredLabels":
        """Returns the chosen entries."""
        return ScoredLabels(self.cell_N[chosen_N], self.terms_4N[:, chosen_N], self.place_N[chosen_N])


def scored_labels(cell_N: Int64Array, label_N: Float64Array, logit_N: Float64Array) -> ScoredLabels:
    """Returns labels (0 or 1) with their scores, ready to be counted into any number of tallies."""
    ones_N, score_N = np.ones(len(label_N)), 1.0 / (1.0 + np.exp(-logit_N))
    terms_4N = np.stack([ones_N, label_N, cross_entropy(logit_N, label_N), score_N])
    return ScoredLabels(cell_N, terms_4N, (cell_N * 2 + label_N.astype(np.int64)) * NUM_BINS + bin_of(logit_N))


class Tally:
    """Sums per scenario and task from which every figure follows; tallies add up."""

    def __init__(self, num_cells: int) -> None:
        self.sums = np.zeros((4, num_cells))
        """n, positives, cross-entropy, scores."""
        self.histograms = np.zeros((num_cells, 2, NUM_BINS), np.int64)
        """Negatives, positives."""

    def add(self, scored: ScoredLabels) -> None:
        """Counts some labels in."""
        num_cells = self.sums.shape[1]
        for row, terms_N in enumerate(scored.terms_4N):
            self.sums[row] += np.bincount(scored.cell_N, weights=terms_N, minlength=num_cells)
        np.add.at(self.histograms.reshape(-1), scored.place_N, 1)

    def merge(self, other: "Tally") -> None:
        """Adds another tally in."""
        self.sums += other.sums
        self.histograms += other.histograms

    @staticmethod
    def total(parts: "Sequence[Tally]") -> "Tally":
        """Returns the sum of at least one tally."""
        whole = Tally(parts[0].sums.shape[1])
        for part in parts:
            whole.merge(part)
        return whole

    def with_cells(self, num_cells: int) -> "Tally":
        """Returns the same counts with room for more cells, after those there are."""
        larger, num_old = Tally(self.sums.shape[1] + num_cells), self.sums.shape[1]
        larger.sums[:, :num_old], larger.histograms[:num_old] = self.sums, self.histograms
        return larger

    def clear(self) -> None:
        """Back to nothing counted."""
        self.sums[:] = 0.0
        self.histograms[:] = 0

    def figures(self, cells: list[int]) -> Figures:
        """Returns the figures over the union of some cells."""
        n, positives, entropy, scores = map(float, self.sums[:, cells].sum(axis=1))
        negatives_H, positives_H = self.histograms[cells].sum(axis=0)
        return {
            "n": int(n),
            "positives": int(positives),
            "auc": auc_of_histograms(positives_H, negatives_H),
            "ne": normalized_entropy(entropy, positives, n),
            "calibration": scores / positives if positives else None,
        }

    def state(self) -> Arrays:
        """Returns all that is needed to go on exactly; the histograms, mostly empty, as (index, count)."""
        flat = self.histograms.reshape(-1)
        filled = np.flatnonzero(flat)
        return {"sums": self.sums.copy(), "bins": filled, "counts": flat[filled]}

    def load_state(self, state: Arrays) -> None:
        """Takes up a state of the same shape."""
        self.clear()
        self.sums[:] = state["sums"]
        self.histograms.reshape(-1)[state["bins"].astype(np.int64)] = state["counts"]
