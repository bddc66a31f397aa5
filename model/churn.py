"""How far two models rank and score the same requests apart: churn, score drift and calibration.

Letters: N requests, K candidates (padded), B rows. A is the old model, B the new one. The candidates of a request
stand in the order of their item ids, so that equal scores rank by item id for both models: else churn would count ties.
A request's value is over its own candidates; a depth or k beyond their number means all of them.

RBO: Webber, Moffat, Zobel 2010, cut at a depth and divided by its mass there. Wins and losses: Milani Fard et al. 2016.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PSI_FLOOR = 1e-4
LOGIT_FLOOR = 1e-7


def ranks(score_NK: FloatArray, is_item_NK: BoolArray) -> IntArray:
    """Returns each candidate's place, 0 = first; what is no item comes after all that are, a NaN last among them."""
    order_NK = np.lexsort((-score_NK, ~is_item_NK))
    rank_NK = np.empty_like(order_NK)
    np.put_along_axis(rank_NK, order_NK, np.arange(order_NK.shape[1])[None], axis=1)
    return rank_NK


def rbo(a_NK: IntArray, b_NK: IntArray, is_item_NK: BoolArray, *, p: float = 0.9, depth: int = 10) -> Float64Array:
    """Returns the rank-biased overlap of two rankings, [N]; 1 = the same items at every depth.

    (1 - p) / (1 - p^D) sum_{d=1..D} p^(d-1) |A_:d and B_:d| / d,  D = min(depth, candidates).
    """
    num_N = is_item_NK.sum(1)
    d_D = np.arange(1, depth + 1)
    weight_ND = np.where(d_D <= num_N[:, None], p ** (d_D - 1.0), 0.0)
    both_ND = np.cumsum(_at_deeper_rank(a_NK, b_NK, is_item_NK, depth), axis=1)
    return np.asarray((weight_ND * both_ND / d_D).sum(1) / np.maximum(weight_ND.sum(1), LOGIT_FLOOR))


def rbo_mass(p: float, depth: int) -> float:
    """Returns how much of RBO's weight lies on the first `depth` places of rankings without end (its equation 21)."""
    tail = sum(p**d / d for d in range(1, depth))
    return float(1 - p ** (depth - 1) + (1 - p) / p * depth * (np.log(1 / (1 - p)) - tail))


def overlap(a_NK: IntArray, b_NK: IntArray, is_item_NK: BoolArray, k: int) -> Float64Array:
    """Returns the share of the first k that both have, [N]."""
    both_N = _at_deeper_rank(a_NK, b_NK, is_item_NK, k).sum(1)
    return np.asarray(both_N / np.maximum(np.minimum(k, is_item_NK.sum(1)), 1))


def jaccard(a_NK: IntArray, b_NK: IntArray, is_item_NK: BoolArray, k: int) -> Float64Array:
    """Returns |A_k and B_k| / |A_k or B_k|, [N]."""
    both_N = _at_deeper_rank(a_NK, b_NK, is_item_NK, k).sum(1)
    return np.asarray(both_N / np.maximum(2 * np.minimum(k, is_item_NK.sum(1)) - both_N, 1))


def top1_changed(a_NK: IntArray, b_NK: IntArray) -> BoolArray:
    """Returns which requests have another first item, [N]."""
    return np.asarray(a_NK.argmin(1) != b_NK.argmin(1))


def affected(a_NK: IntArray, b_NK: IntArray, is_item_NK: BoolArray, k: int) -> BoolArray:
    """Returns which requests show anything else in their first k, set or order, [N]."""
    is_shown_NK = is_item_NK & (np.minimum(a_NK, b_NK) < k)
    return np.asarray(((a_NK != b_NK) & is_shown_NK).any(1))


def kendall_tau_b(a_NK: FloatArray, b_NK: FloatArray, is_item_NK: BoolArray) -> Float64Array:
    """Returns Kendall's tau_b of two models' scores, [N]: ties stay ties; NaN where a model gives one score to all."""
    concordant_N, pairs_a_N, pairs_b_N = (np.zeros(len(a_NK)) for _ in range(3))
    for shift in range(1, a_NK.shape[1]):
        is_pair_NK = is_item_NK[:, shift:] & is_item_NK[:, :-shift]
        a_sign_NK = np.sign(a_NK[:, shift:] - a_NK[:, :-shift]) * is_pair_NK
        b_sign_NK = np.sign(b_NK[:, shift:] - b_NK[:, :-shift]) * is_pair_NK
        concordant_N += (a_sign_NK * b_sign_NK).sum(1)
        pairs_a_N += np.abs(a_sign_NK).sum(1)
        pairs_b_N += np.abs(b_sign_NK).sum(1)
    with np.errstate(invalid="ignore"):
        return np.asarray(concordant_N / np.sqrt(pairs_a_N * pairs_b_N))


@dataclass(frozen=True, slots=True)
class PairChurn:
    """Pairs of one request whose labels differ and whose order the new model turned, by request."""

    good_N: IntArray
    """Newly right."""
    bad_N: IntArray
    """Newly wrong."""

    @property
    def wlr(self) -> float:
        """Wins over losses; infinite without a loss, 1 when nothing turned."""
        good, bad = int(self.good_N.sum()), int(self.bad_N.sum())
        return good / bad if bad else (float("inf") if good else 1.0)


def good_bad_churn(a_NK: IntArray, b_NK: IntArray, label_NK: Float64Array, is_labelled_NK: BoolArray) -> PairChurn:
    """Returns the turned pairs between labelled candidates of unlike labels, given both models' ranks."""
    good_N, bad_N = np.zeros(len(a_NK), np.int64), np.zeros(len(a_NK), np.int64)
    for shift in range(1, a_NK.shape[1]):
        is_pair_NK = is_labelled_NK[:, shift:] & is_labelled_NK[:, :-shift]
        better_NK = np.sign(label_NK[:, shift:] - label_NK[:, :-shift]) * is_pair_NK
        a_right_NK = better_NK * np.sign(a_NK[:, :-shift] - a_NK[:, shift:])
        b_right_NK = better_NK * np.sign(b_NK[:, :-shift] - b_NK[:, shift:])
        good_N += ((a_right_NK < 0) & (b_right_NK > 0)).sum(1)
        bad_N += ((a_right_NK > 0) & (b_right_NK < 0)).sum(1)
    return PairChurn(good_N, bad_N)


def mean_abs_drift(a_B: FloatArray, b_B: FloatArray) -> float:
    """Returns the mean of |p_A - p_B|."""
    return float(np.abs(np.asarray(a_B, np.float64) - b_B).mean())


def spd(a_B: FloatArray, b_B: FloatArray) -> float:
    """Returns the symmetric relative difference, the mean of 2 |p_A - p_B| / (p_A + p_B); 0 where both are 0."""
    a_B, b_B = np.asarray(a_B, np.float64), np.asarray(b_B, np.float64)
    total_B = a_B + b_B
    return float((2 * np.abs(a_B - b_B) / np.where(total_B > 0, total_B, 1)).mean())


def logit_rmse(a_B: FloatArray, b_B: FloatArray) -> float:
    """Returns the root mean square of z_A - z_B, from probabilities held within 1e-7 of 0 and 1."""
    return float(np.sqrt(np.square(_logit(a_B) - _logit(b_B)).mean()))


def psi(a_B: FloatArray, b_B: FloatArray, *, bins: int = 10) -> float:
    """Returns the population stability index of B's scores over A's quantile bins, shares floored at 1e-4.

    sum_i (b_i - a_i) ln(b_i / a_i). A and B may be of unlike lengths. A value that is several of A's quantiles has a
    bin of its own.
    """
    a_B, b_B = np.asarray(a_B, np.float64), np.asarray(b_B, np.float64)
    values, times = np.unique(np.quantile(a_B, np.arange(1, bins) / bins, method="lower"), return_counts=True)
    edges = np.sort(np.concatenate([values, np.nextafter(values[times > 1], -np.inf)]))
    a_share = np.bincount(np.searchsorted(edges, a_B), minlength=len(edges) + 1) / len(a_B)
    b_share = np.bincount(np.searchsorted(edges, b_B), minlength=len(edges) + 1) / len(b_B)
    a_share, b_share = np.maximum(a_share, PSI_FLOOR), np.maximum(b_share, PSI_FLOOR)
    return float(((b_share - a_share) * np.log(b_share / a_share)).sum())


def calibration(score_B: FloatArray, label_B: npt.NDArray[np.generic]) -> float:
    """Returns sum of scores / sum of labels; NaN without a positive."""
    positives = float(np.asarray(label_B, np.float64).sum())
    return float(np.asarray(score_B, np.float64).sum()) / positives if positives else float("nan")


def ece(score_B: FloatArray, label_B: npt.NDArray[np.generic], *, bins: int = 15) -> float:
    """Returns the expected calibration error over bins of equal mass: sum_i n_i / n |mean score - mean label|."""
    order = np.argsort(score_B, kind="stable")
    gap_B = (np.asarray(score_B, np.float64) - np.asarray(label_B, np.float64))[order]
    return float(sum(abs(part.sum()) for part in np.array_split(gap_B, bins)) / len(gap_B))


def _at_deeper_rank(a_NK: IntArray, b_NK: IntArray, is_item_NK: BoolArray, depth: int) -> IntArray:
    """Returns how many items enter the intersection at each depth, [N, depth]: each where its deeper rank is."""
    deeper_NK = np.maximum(a_NK, b_NK)
    n, k = np.nonzero(is_item_NK & (deeper_NK < depth))
    flat = np.bincount(n * depth + deeper_NK[n, k], minlength=len(a_NK) * depth)
    return flat.reshape(len(a_NK), depth)


def _logit(score_B: FloatArray) -> Float64Array:
    held = np.clip(np.asarray(score_B, np.float64), LOGIT_FLOOR, 1 - LOGIT_FLOOR)
    return np.asarray(np.log(held) - np.log1p(-held))
