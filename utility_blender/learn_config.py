"""Settings of learning: which form, from what, how often."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from utility_blender.fit_mlp import AdamConfig

MethodName = Literal[
    "off", "reward_regression", "one_step", "quadratic_q", "grid_q", "static_mean", "global", "published"
]
"""Forms of a learned utility; `reward_regression` is the recommended one."""
Hide = Literal["literal", "relabel"]
Prior = Literal["per_row", "per_batch"]
Row = Literal["item", "request"]
CreditName = Literal["item", "request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedConfig:
    """What the published form leaves open."""

    penalty: float = 2.0
    """Of the prior around the production weights, 1 / (2 sigma^2); at least 0. As published: sigma 0.5."""
    hide: Hide = "literal"
    """An action worth less than 0: `literal` is a positive row of negative weight, `relabel` a negative row."""
    prior: Prior = "per_row"
    """Whether the prior counts with every row, or once with the summed loss of a batch."""
    row: Row = "item"
    """One row per shown item and action (shown items without one are negatives), or one per request."""

    def __post_init__(self) -> None:
        if not 0 <= self.penalty < math.inf:
            raise ValueError(f"penalty: {self.penalty} is not allowed; a finite number, at least 0")
        for name, allowed in (("hide", get_args(Hide)), ("prior", get_args(Prior)), ("row", get_args(Row))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not allowed; one of {', '.join(allowed)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig:
    """How weights are learned from explored requests."""

    method: MethodName = "off"
    """The form; `off`: the production weights serve for good."""
    context: tuple[str, ...] = ()
    """Features that the weights may depend on, by their full names (`user.age_band`, `context.mood`); the scenario is
    always one."""
    credit: CreditName = "item"
    """What a reward is credited to: `item` the draws that would have shown the item it is for, which supposes that it
    depends neither on the item's neighbours nor on its rank; `request` the draw of the request, with far more noise."""
    penalties: tuple[float, ...] = tuple(10.0 ** (-exponent / 6) for exponent in range(31))
    """Penalties on a step that are tried, largest first, until the log no longer sees so far: up to five decades."""
    max_angle: float = 1.05
    """Largest median angle of a step, in RMS angles of the exploration; above 0. A little less than the gate allows,
    which measures it on other requests."""
    max_angle_p95: float = 2.0
    """The same for the 95th percentile; above 0."""
    clip: float = 2.0
    """One round moves a weight by this factor at most; above 1. The sign stays."""
    strength: float = 1.0
    """Share of the learned step that is made, in (0, 1]."""
    hidden: tuple[int, ...] = (64, 32)
    """Widths of the hidden layers of the weights' network; none: linear."""
    hidden_base: tuple[int, ...] = (32,)
    """The same for the network of a context's expected reward."""
    adam: AdamConfig = field(default_factory=lambda: AdamConfig(epochs=8, rate=3e-4))
    """How the weights' network is fitted. A reward is mostly noise: more epochs or a faster rate learn that."""
    adam_base: AdamConfig = field(default_factory=lambda: AdamConfig(epochs=6, rate=3e-3))
    """How the network of a context's expected reward is fitted."""
    own_from: int = 10_000
    """A scenario with fewer outcomes shares what is learned of all such scenarios; at least 1."""
    max_links: int = 4
    """A chain of more steps is distilled into one network, where that moves no median angle by a degree; at least 1."""
    published: PublishedConfig = field(default_factory=PublishedConfig)
    """Options of the method `published`."""
    ridge: float = 1_000.0
    """Penalty of `quadratic_q` and `global`, in rows of standardised regressors; anything from 1 to 10,000 does.
    Above 0."""

    def __post_init__(self) -> None:
        if self.method not in get_args(MethodName):
            raise ValueError(f"method: {self.method!r} is not allowed; one of {', '.join(get_args(MethodName))}")
        if self.credit not in get_args(CreditName):
            raise ValueError(f"credit: {self.credit!r} is not allowed; one of {', '.join(get_args(CreditName))}")
        if not 0 < self.ridge < math.inf:
            raise ValueError(f"ridge: {self.ridge} is not allowed; a finite number above 0")
        if not self.penalties or any(not 0 < penalty < math.inf for penalty in self.penalties):
            raise ValueError(f"penalties: {list(self.penalties)} is not allowed; finite numbers above 0")
        if list(self.penalties) != sorted(set(self.penalties), reverse=True):
            raise ValueError(f"penalties: {list(self.penalties)} is not allowed; falling")
        for name in ("max_angle", "max_angle_p95"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; a finite number above 0")
        if not 1 < self.clip < math.inf:
            raise ValueError(f"clip: {self.clip} is not allowed; a finite number above 1")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength: {self.strength} is not allowed; in (0, 1]")
        for name in ("hidden", "hidden_base"):
            if any(width < 1 for width in getattr(self, name)):
                raise ValueError(f"{name}: {list(getattr(self, name))} is not allowed; at least 1 each")
        for name in ("own_from", "max_links"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
