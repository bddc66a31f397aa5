"""A kernel on directions: requests whose drawn weights point nearly where the policy's do count for it.

    d_i = 1 - cos(r_i, w(x_i)),   K_h(d) = exp(-d / h),   omega_i = K_h(d_i) / m_i,   m_i = mean of K_h over fresh draws

Rankings depend on the direction of the weights only, so that is where nearness is measured. Kernels for continuous
actions: Kallus and Zhou (2018); the normalisation by fresh draws of the logged law and the choice of h are ours.

Shape letters: N requests, M draws, T tasks.
"""

import numpy as np

from utility_blender.contexts import Floats
from utility_blender.gate_config import MIN_KERNEL_DRAWS

BANDWIDTHS = (0.005, 0.01, 0.02, 0.05)


def distance(a_NT: Floats, b_NT: Floats) -> Floats:
    """Returns `1 - cos` of the angle between weights, distance_N (or of any shape before T).

    >>> distance(np.array([[1.0, 0.0]]), np.array([[3.0, 0.0]]))
    array([0.])
    """
    length_N = np.sqrt(_dot(a_NT, a_NT) * _dot(b_NT, b_NT))
    distance_N: Floats = 1.0 - _dot(a_NT, b_NT) / length_N
    return distance_N


def bandwidth(explored_N: Floats) -> float:
    """Returns the widest of `BANDWIDTHS` up to the mean distance of drawn from central weights, `explored_N`.

    A wider kernel counts all draws alike and shrinks every lift to 0; a narrower one lets few requests speak: at half
    the width the error of a lift is twice as large. Where all are too wide: that mean itself.
    """
    widest = float(explored_N.mean())
    return max((h for h in BANDWIDTHS if h <= widest), default=widest)


def kernel_means(weights_NT: Floats, draws_NMT: Floats, h: float) -> Floats:
    """Returns m, the mean of the kernel over the draws, mean_N.

    Raises:
        ValueError: fewer than 400 draws; weights would be biased upwards.
    """
    if draws_NMT.shape[1] < MIN_KERNEL_DRAWS:
        raise ValueError(f"kernel_draws: {draws_NMT.shape[1]} is not allowed; at least {MIN_KERNEL_DRAWS}")
    mean_N: Floats = np.exp(-distance(draws_NMT, weights_NT[:, None, :]) / h).mean(axis=1)
    return mean_N


def kernel_weights(weights_NT: Floats, drawn_NT: Floats, mean_N: Floats, h: float) -> Floats:
    """Returns the importance weight of each logged draw, omega_N."""
    kernel_N = np.exp(-distance(drawn_NT, weights_NT) / h)
    # Where the kernel is 0 for all draws there is no support; its own weight then is 0 as well, and shows in the mean.
    omega_N: Floats = np.divide(kernel_N, mean_N, out=np.zeros_like(mean_N), where=mean_N > 0)
    return omega_N


def _dot(a_NT: Floats, b_NT: Floats) -> Floats:
    dot_N: Floats = np.einsum("...t,...t->...", a_NT, b_NT)
    return dot_N
