"""Figures against known truth: NE, AUC and calibration, whole and by bucket, and their interval over seeds.

Truth may be labels (0 or 1) or known probabilities. With probabilities a figure is its own expectation over the labels,
so that the noise of the labels is not in it. Letters: N items, B buckets, S seeds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
_TINY = 1e-12
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t, 97.5 %, for 1, 2, ... degrees of freedom."""


def entropy(probability: Float64Array) -> Float64Array:
    """Returns the entropy of a coin, in nats."""
    return cross_entropy(probability, probability)


def cross_entropy(truth: Float64Array, score: Float64Array) -> Float64Array:
    """Returns the expected log loss of each score, in nats."""
    f = np.clip(score, _TINY, 1 - _TINY)
    loss: Float64Array = -(truth * np.log(f) + (1 - truth) * np.log1p(-f))
    return loss


def normalized_entropy(truth_N: Float64Array, score_N: Float64Array) -> float:
    """Returns the mean cross-entropy over the entropy of the base rate.

    >>> normalized_entropy(np.array([0.0, 1.0]), np.array([0.5, 0.5]))
    1.0
    """
    return float(cross_entropy(truth_N, score_N).mean() / entropy(truth_N.mean()))


def calibration(truth_N: Float64Array, score_N: Float64Array) -> float:
    """Returns the sum of scores over the sum of truth."""
    return float(score_N.sum() / truth_N.sum())


def auc(truth_N: Float64Array, score_N: Float64Array) -> float:
    """Returns the probability that a positive scores above a negative; scores must not tie.

    >>> auc(np.array([0.0, 1.0, 0.0]), np.array([0.1, 0.8, 0.9]))
    0.5
    """
    truth_N = truth_N[np.argsort(score_N)]
    negative_N = 1 - truth_N
    below_N = np.cumsum(negative_N) - negative_N
    # An item is never compared with itself, though with known probabilities it is partly both.
    pairs = truth_N.sum() * negative_N.sum() - truth_N @ negative_N
    return float(truth_N @ below_N / pairs)


def by_bucket(bucket_N: npt.NDArray[np.int64], num_buckets: int, truth_N: Float64Array, score_N: Float64Array) -> Any:
    """Returns `ne`, `auc` and `calibration` of each bucket, `[B]`; every bucket must have items."""
    order_N = np.argsort(bucket_N, kind="stable")
    ends_B = np.searchsorted(bucket_N[order_N], np.arange(1, num_buckets))
    parts = list(zip(np.split(truth_N[order_N], ends_B), np.split(score_N[order_N], ends_B), strict=True))
    figures = {"ne": normalized_entropy, "auc": auc, "calibration": calibration}
    return {name: np.array([figure(truth, score) for truth, score in parts]) for name, figure in figures.items()}


def over_seeds(values_S: Sequence[float]) -> dict[str, Any]:
    """Returns the mean and its 95 % interval by Student's t; the interval is null for a single seed.

    >>> over_seeds([1.0, 1.2])
    {'mean': 1.1, 'ci': [-0.1706, 2.3706]}
    """
    mean = float(np.mean(values_S))
    if len(values_S) < 2:
        return {"mean": round(mean, 5), "ci": None}
    quantile = _T_975[min(len(values_S) - 1, len(_T_975)) - 1]
    half = quantile * float(np.std(values_S, ddof=1) / np.sqrt(len(values_S)))
    return {"mean": round(mean, 5), "ci": [round(mean - half, 5), round(mean + half, 5)]}
