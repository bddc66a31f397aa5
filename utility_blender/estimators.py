"""Estimators of a policy's value from importance weights, as functions of sums: of all requests, or of a resample.

IPS, SNIPS: Swaminathan and Joachims (2015); DR: Dudik et al. (2011). Each takes sums over requests, which may have
any shape, so that the bootstrap evaluates thousands of resamples at once.

Shape letters: N requests, T tasks.
"""

import numpy as np

from utility_blender.contexts import Floats
from utility_blender.outcomes import Outcomes
from utility_blender.redraw import log_densities


def ips(omega_reward: Floats, num: Floats) -> Floats:
    """Returns `sum(omega R) / N`: unbiased where there is support, 0 where there is none."""
    return omega_reward / num


def snips(omega_reward: Floats, omega: Floats) -> Floats:
    """Returns `sum(omega R) / sum(omega)`, the self-normalised estimate: steady, and blind to missing support."""
    return omega_reward / np.maximum(omega, np.finfo(np.float64).tiny)


def doubly_robust(predicted: Floats, num: Floats, omega_residual: Floats, omega: Floats) -> Floats:
    """Returns `mean Q(x, w) + sum(omega (R - Q(x, r))) / sum(omega)`, from the sums of its parts."""
    return predicted / num + snips(omega_residual, omega)


def effective_share(omega_N: Floats) -> float:
    """Returns `(sum omega)^2 / (N sum omega^2)`; 0 where all weights are 0.

    >>> effective_share(np.array([1.0, 1.0])), effective_share(np.array([2.0, 0.0]))
    (1.0, 0.5)
    """
    squares = float((omega_N**2).sum())
    return float(omega_N.sum()) ** 2 / (len(omega_N) * squares) if squares > 0 else 0.0


def density_ratios(outcomes: Outcomes, center_NT: Floats, tau_N: Floats, truncate_N: Floats) -> Floats:
    """Returns the exact importance weights of a target that draws by a law of its own, omega_N.

    The target's draws must be possible under the logged law; its own law gives 1 for every request.
    """
    target_N = log_densities(outcomes.weights_NT, center_NT, tau_N, truncate_N)
    ratio_N: Floats = np.exp(target_N - outcomes.log_density_N)
    return ratio_N


def reward_at_hit(outcomes: Outcomes, weights_NT: Floats, reward_N: Floats) -> tuple[float, float]:
    """Returns the mean reward of the requests that drew what the policy chooses, and their share of all requests.

    For grids of equally likely arms (PRL-PUTS, arXiv 2605.16344): Reward@HIT is then SNIPS. NaN where nothing was hit.
    """
    hit_N = np.isclose(outcomes.weights_NT, weights_NT, rtol=1e-9, atol=0.0).all(axis=1)
    return (float(reward_N[hit_N].mean()) if hit_N.any() else float("nan")), float(hit_N.mean())
