"""Weights of several gradients whose mix is shortest: a quadratic programme so small that it is solved by enumeration.

    minimise w' Q w   over   sum_j w_j = total,  w_j >= c_j          Q = G G', the gradients' inner products

Letters: T gradients (tasks), F those of them whose weight is free, A the others, at their bounds. All in float64.
"""

import itertools

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
_TIE = 1e-14
"""Objectives (at most 1) that differ by less are equal, so that equal gradients share their weight equally."""


def shortest_mix(gram_TT: Float64Array, bound_T: Float64Array, total: float = 1.0) -> Float64Array:
    """Returns the exact minimiser, [T].

    Tries every non-empty set F of free weights (2^T - 1 of them: T up to about 10): the stationary point of the
    objective on F with the others at their bounds solves

        [[Q_FF, 1], [1', 0]] [w_F; -nu] = [-Q_FA c_A; total - sum c_A]

    by least squares, since parallel gradients make Q_FF singular. Of those that keep their bounds the best is returned;
    of equally good ones that with the most free weights. Without any gradient it is `equal_mix`.
    """
    num_tasks = len(bound_T)
    trace = float(np.trace(gram_TT))
    if trace <= 0:
        return equal_mix(bound_T, total)
    gram_TT = gram_TT / trace
    best_T, least = equal_mix(bound_T, total), np.inf
    for size in range(num_tasks, 0, -1):
        for free in itertools.combinations(range(num_tasks), size):
            weight_T = _stationary(gram_TT, bound_T, total, list(free))
            if weight_T is not None and (objective := float(weight_T @ gram_TT @ weight_T)) < least - _TIE:
                best_T, least = weight_T, objective
    return best_T


def relaxed_mix(gram_TT: Float64Array, bound_T: Float64Array, total: float = 1.0) -> Float64Array:
    """Returns PE-LTR's two-step approximation (Lin et al., RecSys 2019), [T]: solve without w >= c, then project.

    Exact for two tasks; with more of them its mix may be longer than the exact one's. Departure: the paper's projection
    prints sum v = 1, which only fits bounds of 0; here it is total - sum c.
    """
    trace = float(np.trace(gram_TT))
    if trace <= 0:
        return equal_mix(bound_T, total)
    gram_TT = gram_TT / trace
    room = total - float(bound_T.sum())
    target = np.append(-gram_TT @ bound_T, room)
    # (M'M)^-1 M z is the least-squares solution of M w = z, M being symmetric.
    excess_T = np.linalg.lstsq(_bordered(gram_TT), target, rcond=None)[0][:-1]
    return bound_T + onto_simplex(excess_T, room)


def equal_mix(bound_T: Float64Array, total: float = 1.0) -> Float64Array:
    """Returns equal weights, or the nearest that the bounds allow, [T].

    >>> equal_mix(np.array([0.7, 0.0, 0.0])).round(9).tolist()
    [0.7, 0.15, 0.15]
    """
    room = total - float(bound_T.sum())
    return bound_T + onto_simplex(total / len(bound_T) - bound_T, room)


def onto_simplex(point_T: Float64Array, total: float) -> Float64Array:
    """Returns the point of {v >= 0, sum v = total} that is nearest, [T]; all zero where `total` is not above 0.

    >>> onto_simplex(np.array([0.9, 0.5, -1.0]), 1.0).round(9).tolist()
    [0.7, 0.3, 0.0]
    """
    if total <= 0:
        return np.zeros_like(point_T)
    falling_T = np.sort(point_T)[::-1]
    level_T = (np.cumsum(falling_T) - total) / np.arange(1, len(point_T) + 1)
    num_kept = max(1, int(np.count_nonzero(falling_T > level_T)))
    result_T: Float64Array = np.maximum(point_T - level_T[num_kept - 1], 0.0)
    return result_T


def _stationary(gram_TT: Float64Array, bound_T: Float64Array, total: float, free: list[int]) -> Float64Array | None:
    """Returns the stationary point with these weights free, [T]; None if it breaks a bound."""
    held_T = bound_T.copy()
    held_T[free] = 0.0
    target = np.append(-(gram_TT @ held_T)[free], total - held_T.sum())
    free_F = np.linalg.lstsq(_bordered(gram_TT[np.ix_(free, free)]), target, rcond=None)[0][:-1]
    if (free_F < bound_T[free] - _TIE).any():
        return None
    weight_T = held_T
    weight_T[free] = np.maximum(free_F, bound_T[free])
    return weight_T if abs(weight_T.sum() - total) < 1e-9 else None


def _bordered(gram_FF: Float64Array) -> Float64Array:
    size = len(gram_FF)
    matrix = np.ones((size + 1, size + 1))
    matrix[:size, :size] = gram_FF
    matrix[size, size] = 0.0
    return matrix
