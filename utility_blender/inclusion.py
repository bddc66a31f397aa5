"""Item inclusion: how likely exploration was to show each candidate, and what a slate is worth by that.

    p_ij = share of M + 1 draws, the logged one among them, that put candidate j into the slate of request i
    V(w) = 1/N sum_i sum_{j shown, j in slate(w)} reward_ij / p_ij

The reward of an item must not depend on its neighbours or its rank. What exploration never shows counts 0, so the
estimate is pessimistic where support is missing. Counting the logged draw makes it all but unbiased: the expectation of
`1[shown] / p` is `1 - (1 - p)^(M+1)`. Design of the blender, section 9.

Shape letters: N requests, M draws, C candidates, T tasks, K columns of values.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utility_blender.contexts import Floats
from utility_blender.outcomes import Bools, Ints, Outcomes, slates, utilities


class Inclusion(NamedTuple):
    """Of M fresh draws per request, how many showed each candidate."""

    count_NC: Ints
    num_draws: int


def count_shown(outcomes: Outcomes, weights_NMT: Floats) -> Ints:
    """Returns how many of some draws put each candidate into the slate, count_NC. Needs N * M * C numbers of memory."""
    count_NC: Ints = shown_by(outcomes, weights_NMT).sum(axis=1)
    return count_NC


def shown_by(outcomes: Outcomes, weights_NMT: Floats) -> Bools:
    """Returns which of some draws put each candidate into the slate, shown_NMC."""
    shown_NMC = np.zeros((*weights_NMT.shape[:2], outcomes.position_NC.shape[1]), np.bool_)
    # Single precision decides only between candidates that are as good as level; level ones stay level in it.
    factor_NMT: NDArray[np.float32] = (weights_NMT / outcomes.scale_NT[:, None, :]).astype(np.float32)
    size_N = outcomes.size_N
    for size in np.unique(size_N).tolist():
        rows = np.flatnonzero(size_N == size)
        shape = (len(rows), weights_NMT.shape[1], outcomes.position_NC.shape[1])
        utility_NMC: NDArray[np.float32] = np.zeros(shape, np.float32)
        for task in range(len(outcomes.tasks)):
            utility_NMC += factor_NMT[rows, :, task, None] * outcomes.scores_NCT[rows, None, :, task]
        utility_NMC[np.broadcast_to(~outcomes.present_NC[rows, None, :], utility_NMC.shape)] = -np.inf
        shown_NMC[rows] = _best(utility_NMC, size)
    return shown_NMC


def _best(utility_NMC: NDArray[np.float32], size: int) -> Bools:
    """Returns the `size` best of the last axis; level ones by the place further left, as in serving."""
    num_candidates = utility_NMC.shape[2]
    if size == 0:
        return np.zeros(utility_NMC.shape, np.bool_)
    edge_NM = np.partition(utility_NMC, num_candidates - size, axis=2)[:, :, num_candidates - size]
    best_NMC: Bools = utility_NMC >= edge_NM[:, :, None]
    is_level_NM = best_NMC.sum(axis=2) > size
    if is_level_NM.any():
        best_NMC[is_level_NM] = slates(utility_NMC[is_level_NM], np.full(int(is_level_NM.sum()), size))
    return best_NMC


def importance(outcomes: Outcomes, inclusion: Inclusion, weights_NT: Floats) -> Floats:
    """Returns `1[j shown and in slate(w)] / p_ij`, omega_NC: what to multiply values of items with."""
    slate_NC = slates(utilities(outcomes, weights_NT), outcomes.size_N)
    share_NC = (inclusion.count_NC + 1) / (inclusion.num_draws + 1)
    omega_NC: Floats = np.where(slate_NC & outcomes.shown_NC, 1.0 / share_NC, 0.0)
    return omega_NC


def uncovered(outcomes: Outcomes, inclusion: Inclusion, weights_NT: Floats) -> Floats:
    """Returns how many items of each request's slate under other weights no fresh draw showed, uncovered_N."""
    slate_NC = slates(utilities(outcomes, weights_NT), outcomes.size_N)
    uncovered_N: Floats = (slate_NC & (inclusion.count_NC == 0)).sum(axis=1).astype(np.float64)
    return uncovered_N


def replays(outcomes: Outcomes) -> Bools:
    """Returns whether the logged weights of each request give its logged slate, in its order, replays_N."""
    utility_NC = utilities(outcomes, outcomes.weights_NT)
    order_NC = np.argsort(-utility_NC, axis=1, kind="stable")
    position_NC = np.take_along_axis(outcomes.position_NC, order_NC, axis=1)
    place_C = np.arange(position_NC.shape[1])
    is_slate_NC = place_C < outcomes.size_N[:, None]
    is_right_NC = np.where(is_slate_NC, position_NC == place_C, position_NC < 0)
    replays_N: Bools = np.all(is_right_NC, axis=1)
    return replays_N
