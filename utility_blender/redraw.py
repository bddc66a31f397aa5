"""The law that explored requests were drawn by: fresh draws of it, and its density for whole columns of requests.

`r_t = c_t exp(tau e_t)`, e_t standard normal and truncated: see `utility_blender.explore`. A weight that equals its
centre was not drawn. Shape letters: N requests, M draws of each, T tasks.
"""

import math

import numpy as np

from utility_blender.contexts import Floats
from utility_blender.outcomes import Outcomes


def redraw(outcomes: Outcomes, num: int, rng: np.random.Generator) -> Floats:
    """Returns M = `num` draws around the logged centre of each request, weights_NMT.

    Raises:
        ValueError: a request was not drawn by the lognormal law.
    """
    if not (np.isfinite(outcomes.tau_N) & np.isfinite(outcomes.truncate_N)).all():
        raise ValueError("outcomes: some were not drawn by the lognormal law; only its draws can be drawn again")
    jitter_NMT = rng.standard_normal((outcomes.num_requests, num, len(outcomes.tasks)))
    limit_NMT = np.broadcast_to(outcomes.truncate_N[:, None, None], jitter_NMT.shape)
    while (outside_NMT := np.abs(jitter_NMT) > limit_NMT).any():
        jitter_NMT[outside_NMT] = rng.standard_normal(int(outside_NMT.sum()))
    tau_NT = np.where(outcomes.weights_NT != outcomes.center_NT, outcomes.tau_N[:, None], 0.0)
    weights_NMT: Floats = outcomes.center_NT[:, None, :] * np.exp(tau_NT[:, None, :] * jitter_NMT)
    return weights_NMT


def log_densities(weights_NT: Floats, center_NT: Floats, tau_N: Floats, truncate_N: Floats) -> Floats:
    """Returns `ln mu(r | c)` of each request over its drawn weights; -inf where the law cannot draw them."""
    is_drawn_NT = weights_NT != center_NT
    ratio_NT = np.divide(weights_NT, center_NT, out=np.full_like(weights_NT, -1.0), where=center_NT != 0)
    jitter_NT = np.log(np.where(ratio_NT > 0, ratio_NT, 1.0)) / tau_N[:, None]
    # At the edge: what the rounding of exp and log does to a draw, as in `explore.log_density`.
    is_possible_NT = ~is_drawn_NT | ((ratio_NT > 0) & (np.abs(jitter_NT) <= truncate_N[:, None] + 1e-9))
    log_kept_N = np.array([math.log(math.erf(truncate / math.sqrt(2.0))) for truncate in truncate_N.tolist()])
    size_NT = np.where(is_drawn_NT & is_possible_NT, np.abs(weights_NT), 1.0)
    log_NT = -np.log(tau_N[:, None] * size_NT * math.sqrt(2.0 * math.pi)) - jitter_NT**2 / 2.0 - log_kept_N[:, None]
    log_N: Floats = np.where(is_possible_NT.all(axis=1), np.where(is_drawn_NT, log_NT, 0.0).sum(axis=1), -np.inf)
    return log_N
