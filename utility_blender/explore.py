"""Exploration of the blender's weights: which requests draw, what they draw, and how likely that draw was.

Shape letters: T tasks. The law (design of the off-policy gate): `r_t = c_t exp(tau e_t)` with `e_t` standard normal,
truncated at `+-truncate`, independent per task. Signs never flip and the order of magnitude never moves, so an
explored ranking stays close to production; the exact density is logged, which is what makes the log reusable. Of more
than six tasks, those that hardly count are left alone. The law `grid` is for `grid_q`: two tasks, a few factors each.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

MAX_SHARE = 0.0125
"""Largest share of live requests that may explore: the cap published for PRL-PUTS (arXiv 2605.16344)."""
ALL_UP_TO = 6
"""Of more tasks than this, only those with `MIN_PART` are drawn: each further one makes every direction rarer."""
MIN_PART = 0.05
"""Least part of the sum of all weights' sizes. A weight is a contribution in standard deviations of its score."""
LawName = Literal["lognormal", "grid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExploreConfig:
    """Which requests explore, and how far."""

    share: float = 0.0
    """Share of requests that draw their weights, in [0, 0.0125]; 0 switches exploration off."""
    allow_above_cap: bool = False
    """Lets `share` go up to 1. For simulated users only: real ones are protected by the cap."""
    law: LawName = "lognormal"
    """`lognormal`, or `grid`: the two largest weights times one of `grid_levels` factors each, all equally likely."""
    grid_levels: int = 7
    """Factors per weight of the law `grid`; at least 2."""
    grid_most: float = 2.0
    """Factors of the law `grid` go from one over this to this, evenly in their logarithm; above 1."""
    tau: float = 0.3
    """Relative size of the jitter, the standard deviation of ln(weight) before truncation; in (0, 1]."""
    truncate: float = 2.0
    """Draws further than this many standard deviations from the centre are not made; above 0."""
    salt: str = "explore"
    """Mixed into the hash of the request id; a new salt chooses other requests. At most 64 bytes, not empty."""
    excluded_scenarios: tuple[str, ...] = ()
    """Scenarios whose requests never explore."""
    min_history: int = 0
    """Actions a user's sequence must hold for requests to explore; 0: new users explore as well."""
    excluding_feature: str = ""
    """User feature that marks users who never explore, by any value but null, 0 and the empty string; empty: none."""
    holdout: float = 0.01
    """Share of users who keep the production weights while learned ones serve, in [0, 0.5]; they never explore then. By
    them one knows what learning is worth."""
    kill_switch: bool = True
    """Rankers explore only while the switch in Redis is on: `freshrank blender explore on`. Off, absent or unreadable:
    no request explores, within 2 s. False leaves the switch out."""

    def __post_init__(self) -> None:
        cap = 1.0 if self.allow_above_cap else MAX_SHARE
        if not 0 <= self.share <= cap:
            hint = "" if self.allow_above_cap else " (allow_above_cap lifts this for simulated users)"
            raise ValueError(f"share: {self.share} is not allowed; in [0, {cap}]{hint}")
        if self.law not in get_args(LawName):
            raise ValueError(f"law: {self.law!r} is not allowed; one of {', '.join(get_args(LawName))}")
        if self.grid_levels < 2:
            raise ValueError(f"grid_levels: {self.grid_levels} is not allowed; at least 2")
        if not 1 < self.grid_most < math.inf:
            raise ValueError(f"grid_most: {self.grid_most} is not allowed; a finite number above 1")
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau: {self.tau} is not allowed; in (0, 1]")
        if not 0 < self.truncate < math.inf:
            raise ValueError(f"truncate: {self.truncate} is not allowed; a finite number above 0")
        if self.min_history < 0:
            raise ValueError(f"min_history: {self.min_history} is not allowed; at least 0")
        if not 0 <= self.holdout <= 0.5:
            raise ValueError(f"holdout: {self.holdout} is not allowed; in [0, 0.5]")
        if not 1 <= len(self.salt.encode()) <= hashlib.blake2b.MAX_KEY_SIZE:
            raise ValueError(f"salt: {self.salt!r} is not allowed; 1 to {hashlib.blake2b.MAX_KEY_SIZE} bytes")


def may_explore(user: Mapping[str, Any], num_actions: int, config: ExploreConfig) -> bool:
    """Returns whether a user's requests may explore at all: not those of new users, nor of marked ones.

    Args:
        user: Features of the user by name.
        num_actions: Actions in the user's sequence.
        config: Who is excluded.
    """
    if num_actions < config.min_history:
        return False
    return not config.excluding_feature or user.get(config.excluding_feature) in (None, "", 0)


def request_rng(request_id: str, config: ExploreConfig) -> np.random.Generator | None:
    """Returns the generator of an explored request, always in the same state; None if the request does not explore.

    Membership and seed come from different bytes of one keyed hash, so who explores says nothing about what is drawn.
    """
    if config.share == 0:
        return None
    digest = _digest(request_id, config)
    if int.from_bytes(digest[:8], "little") >= config.share * 2.0**64:
        return None
    return np.random.default_rng(int.from_bytes(digest[8:], "little"))


def is_control(request_id: str, config: ExploreConfig) -> bool:
    """Returns whether a request is one that explored ones are compared with: as many, and never the same ones."""
    place = int.from_bytes(_digest(request_id, config)[:8], "little") / 2.0**64
    return config.share <= place < 2 * config.share


def _digest(request_id: str, config: ExploreConfig) -> bytes:
    return hashlib.blake2b(request_id.encode(), key=config.salt.encode(), digest_size=24).digest()


def is_held_out(user_id: str, config: ExploreConfig) -> bool:
    """Returns whether a user keeps the production weights; always the same answer under one salt."""
    digest = hashlib.blake2b(user_id.encode(), key=config.salt.encode(), person=b"holdout", digest_size=8).digest()
    return int.from_bytes(digest, "little") < config.holdout * 2.0**64


def drawn_tasks(center_T: NDArray[np.float64], config: ExploreConfig) -> NDArray[np.bool_]:
    """Returns which weights a draw around this centre moves; the others stay what they are."""
    size_T = np.abs(center_T)
    if config.law == "grid":
        chosen_T = np.zeros(len(center_T), np.bool_)
        chosen_T[np.argsort(-size_T, kind="stable")[:2]] = True
        return chosen_T
    if len(center_T) <= ALL_UP_TO:
        return np.ones(len(center_T), np.bool_)
    large_T: NDArray[np.bool_] = size_T >= MIN_PART * size_T.sum()
    return large_T


def draw(
    center_T: NDArray[np.float64], config: ExploreConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Returns weights_T drawn around `center_T` (no zero in it) and the natural logarithm of their density."""
    is_drawn_T = drawn_tasks(center_T, config)
    weights_T = center_T.copy()
    if config.law == "grid":
        weights_T[is_drawn_T] *= _factors(config)[rng.integers(0, config.grid_levels, int(is_drawn_T.sum()))]
    else:
        jitter_D = rng.standard_normal(int(is_drawn_T.sum()))
        while (outside_D := np.abs(jitter_D) > config.truncate).any():
            jitter_D[outside_D] = rng.standard_normal(int(outside_D.sum()))
        weights_T[is_drawn_T] *= np.exp(config.tau * jitter_D)
    return weights_T, log_density(weights_T, center_T, config)


def log_density(weights_T: NDArray[np.float64], center_T: NDArray[np.float64], config: ExploreConfig) -> float:
    """Returns `ln mu(r | c)`, over the drawn tasks.

    `lognormal`: the sum of `-ln(tau |r_t| sqrt(2 pi)) - e_t^2 / 2 - ln P(|e| <= truncate)`; `grid`: minus the logarithm
    of the number of arms. Weights the law cannot draw (another sign, beyond the truncation, off the grid, moved though
    not drawn) have density 0, so the answer is -inf.

    >>> config = ExploreConfig()
    >>> round(log_density(np.array([1.0]), np.array([1.0]), config), 4)  # -ln(0.3 sqrt(2 pi)) - ln 0.9545
    0.3316
    >>> log_density(np.array([2.0]), np.array([1.0]), config)  # e = 2.31
    -inf
    """
    is_drawn_T = drawn_tasks(center_T, config)
    if (weights_T != center_T)[~is_drawn_T].any():
        return -math.inf
    ratio_D = weights_T[is_drawn_T] / center_T[is_drawn_T]
    if config.law == "grid":
        on_grid = np.isclose(ratio_D[:, None], _factors(config)[None, :], rtol=1e-9, atol=0).any(axis=1).all()
        return -len(ratio_D) * math.log(config.grid_levels) if on_grid else -math.inf
    if (ratio_D <= 0).any():
        return -math.inf
    jitter_D = np.log(ratio_D) / config.tau
    if (np.abs(jitter_D) > config.truncate + 1e-9).any():  # a draw at the edge survives the rounding of exp and log
        return -math.inf
    log_kept = math.log(math.erf(config.truncate / math.sqrt(2.0)))  # P(|e| <= truncate), 0.9545 at 2
    size_D = config.tau * np.abs(weights_T[is_drawn_T]) * math.sqrt(2.0 * math.pi)
    return float((-np.log(size_D) - jitter_D**2 / 2.0 - log_kept).sum())


def _factors(config: ExploreConfig) -> NDArray[np.float64]:
    return np.geomspace(1 / config.grid_most, config.grid_most, config.grid_levels)
