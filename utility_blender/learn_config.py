"""Settings of learning: which form, from what, how often."""

from dataclasses import dataclass
from typing import Literal, get_args

MethodName = Literal[
    "off", "reward_regression", "one_step", "quadratic_q", "grid_q", "static_mean", "global", "published"
]
"""Forms of a learned utility; `reward_regression` is the recommended one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig:
    """How weights are learned from explored requests."""

    method: MethodName = "off"
    """The form; `off`: the production weights serve for good."""
    context: tuple[str, ...] = ()
    """Features that the weights may depend on, by their full names (`user.age_band`, `context.mood`); the scenario is
    always one."""

    def __post_init__(self) -> None:
        if self.method not in get_args(MethodName):
            raise ValueError(f"method: {self.method!r} is not allowed; one of {', '.join(get_args(MethodName))}")
