"""What can be changed of a simulator while it runs, so that one can watch the loop take it."""

import math
from dataclasses import dataclass

import msgspec

MIN_REQUESTS_PER_S, MAX_REQUESTS_PER_S = 1.0, 200.0
"""Range of the rate: none would never end, and more is the work of a load generator."""
MAX_BOTS_S = 120.0
"""Bots stay no longer than this, in seconds."""
BOT_SHARE = 0.3
"""Share of the requests that are bots' while there are any."""
BOT_DELAY_MS = 300
"""How long after the slate a bot clicks, on everything it was shown."""


class SimChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be different from now on; what is left out stays as it is."""

    requests_per_s: float | None = None
    """Mean rate of the arrivals; `MIN_REQUESTS_PER_S` to `MAX_REQUESTS_PER_S`."""
    bots_for_s: float | None = None
    """For so many seconds `BOT_SHARE` of the requests are bots', which click on everything; 0 sends them away."""
    open_scenario: str | None = None
    """A scenario of the world whose time (`from_s`) has not come yet: it comes up now."""

    def __post_init__(self) -> None:
        ranges = {
            "requests_per_s": (self.requests_per_s, MIN_REQUESTS_PER_S, MAX_REQUESTS_PER_S),
            "bots_for_s": (self.bots_for_s, 0.0, MAX_BOTS_S),
        }
        for name, (value, low, high) in ranges.items():
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name}: {value:g} is not allowed; {low:g} to {high:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimNow:
    """What a simulator is at now."""

    requests_per_s: float
    """Mean rate of the arrivals."""
    bot_share: float
    """Share of the requests that are bots'."""
    is_open: dict[str, bool]
    """Whether a scenario of the world has come up."""
