"""Exploration of the blender's weights: which requests draw, what they draw, and how likely that draw was.

Shape letters: T tasks. The law (design of the off-policy gate): `r_t = c_t exp(tau e_t)` with `e_t` standard normal,
truncated at `+-truncate`, independent per task. Signs never flip and the order of magnitude never moves, so an
explored ranking stays close to production; the exact density is logged, which is what makes the log reusable.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SHARE = 0.0125
"""Largest share of live requests that may explore: the cap published for PRL-PUTS (arXiv 2605.16344)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExploreConfig:
    """Which requests explore, and how far."""

    share: float = 0.0
    """Share of requests that draw their weights, in [0, 0.0125]; 0 switches exploration off."""
    allow_above_cap: bool = False
    """Lets `share` go up to 1. For simulated users only: real ones are protected by the cap."""
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
    digest = hashlib.blake2b(request_id.encode(), key=config.salt.encode(), digest_size=24).digest()
    if int.from_bytes(digest[:8], "little") >= config.share * 2.0**64:
        return None
    return np.random.default_rng(int.from_bytes(digest[8:], "little"))


def is_held_out(user_id: str, config: ExploreConfig) -> bool:
    """Returns whether a user keeps the production weights; always the same answer under one salt."""
    digest = hashlib.blake2b(user_id.encode(), key=config.salt.encode(), person=b"holdout", digest_size=8).digest()
    return int.from_bytes(digest, "little") < config.holdout * 2.0**64


def draw(
    center_T: NDArray[np.float64], config: ExploreConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Returns weights_T drawn around `center_T` (no zero in it) and the natural logarithm of their density."""
    jitter_T = rng.standard_normal(len(center_T))
    while (outside_T := np.abs(jitter_T) > config.truncate).any():
        jitter_T[outside_T] = rng.standard_normal(int(outside_T.sum()))
    weights_T = center_T * np.exp(config.tau * jitter_T)
    return weights_T, log_density(weights_T, center_T, config)


def log_density(weights_T: NDArray[np.float64], center_T: NDArray[np.float64], config: ExploreConfig) -> float:
    """Returns `ln mu(r | c)`: the sum over tasks of `-ln(tau |r_t| sqrt(2 pi)) - e_t^2 / 2 - ln P(|e| <= truncate)`.

    Weights the law cannot draw (another sign, beyond the truncation) have density 0, so the answer is -inf.

    >>> config = ExploreConfig()
    >>> round(log_density(np.array([1.0]), np.array([1.0]), config), 4)  # -ln(0.3 sqrt(2 pi)) - ln 0.9545
    0.3316
    >>> log_density(np.array([2.0]), np.array([1.0]), config)  # e = 2.31
    -inf
    """
    ratio_T = weights_T / center_T
    if (ratio_T <= 0).any():
        return -math.inf
    jitter_T = np.log(ratio_T) / config.tau
    if (np.abs(jitter_T) > config.truncate + 1e-9).any():  # a draw at the edge survives the rounding of exp and log
        return -math.inf
    log_kept = math.log(math.erf(config.truncate / math.sqrt(2.0)))  # P(|e| <= truncate), 0.9545 at 2
    per_task_T = -np.log(config.tau * np.abs(weights_T) * math.sqrt(2.0 * math.pi)) - jitter_T**2 / 2.0 - log_kept
    return float(per_task_T.sum())
