"""What differs between the places where rankings are shown: base rates, and how the tasks relate to each other.

For an item that was looked at, with a = the user's affinity to it, s = the affinity of the user's short-term interest,
q = the item's own appeal, z = its standardised log price and m = 1 if it matches the request's query:

    logit P(click)               = click_bias + click_affinity a + click_interest s + click_appeal q + click_price z
                                   + click_query m
    logit P(order | click)       = order_bias + order_affinity a + order_appeal q + order_price z
    logit P(hide | not clicked)  = hide_bias  - hide_affinity a + hide_appeal q

a, q and z have standard deviation one over the catalogue (a over users and items). Position p (from 0) is looked at
with probability (1 + p) ** -examine_decay, and nothing happens to an item that is not looked at (the position-based
click model).
"""

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioConfig:
    """One scenario: its share of the traffic, since when, and the coefficients of the logits above."""

    share: float = 1.0
    """Share of the requests, relative to the other scenarios that are there; above 0."""
    from_s: float = 0.0
    """The scenario comes up so many seconds after the simulator's start, in a recorded log of event time; its share
    counts from then on. At least 0, and 0 for the first scenario."""
    has_query: bool = False
    """Requests carry a query, the name of a category; otherwise it is missing."""
    examine_decay: float = 0.5
    """Position bias: position p (from 0) is looked at with probability (1 + p) ** -examine_decay; at least 0."""
    click_bias: float = -2.0
    """Logit of a click on an average item that was looked at."""
    click_affinity: float = 1.3
    """Effect of the user's affinity on the click logit."""
    click_interest: float = 1.3
    """Effect of the session's short-term interest on the click logit."""
    click_appeal: float = 0.7
    """Effect of the item's own appeal on the click logit."""
    click_price: float = 0.0
    """Effect of the price on the click logit, per standard deviation of the log price."""
    click_query: float = 0.0
    """Added to the click logit of an item that matches the query."""
    order_bias: float = -2.6
    """Logit of an order after a click on an average item."""
    order_affinity: float = 0.8
    """Effect of the user's affinity on the order logit."""
    order_appeal: float = 0.0
    """Effect of the item's own appeal on the order logit; below 0, what attracts clicks disappoints."""
    order_price: float = -0.4
    """Effect of the price on the order logit."""
    hide_bias: float = -3.6
    """Logit of hiding an average item that was looked at and not clicked."""
    hide_affinity: float = 0.8
    """How much a higher affinity lowers the hide logit."""
    hide_appeal: float = 0.0
    """Effect of the item's own appeal on the hide logit; above 0, what attracts clicks also annoys."""

    def __post_init__(self) -> None:
        for coefficient in fields(self):
            value = getattr(self, coefficient.name)
            if not math.isfinite(value):
                raise ValueError(f"{coefficient.name}: {value} is not allowed; a finite number")
        if self.share <= 0:
            raise ValueError(f"share: {self.share} is not allowed; above 0")
        for name in ("from_s", "examine_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 0")


def default_scenarios() -> dict[str, ScenarioConfig]:
    """Returns three scenarios whose base rates and task relations differ.

    In `home` orders follow clicks. In `search` the query decides and orders are frequent. In `deals` cheap and flashy
    items get the clicks, but flashy ones are ordered less and hidden more: a ranking by clicks alone is wrong there.
    """
    return {
        "home": ScenarioConfig(share=0.5),
        "search": ScenarioConfig(
            share=0.3,
            has_query=True,
            examine_decay=0.6,
            click_bias=-2.9,
            click_affinity=1.0,
            click_interest=0.8,
            click_appeal=0.5,
            click_query=1.8,
            order_bias=-2.5,
            order_affinity=1.0,
            hide_bias=-3.2,
        ),
        "deals": ScenarioConfig(
            share=0.2,
            examine_decay=0.3,
            click_bias=-1.6,
            click_affinity=0.7,
            click_interest=1.0,
            click_appeal=1.1,
            click_price=-0.8,
            order_bias=-2.7,
            order_affinity=0.9,
            order_appeal=-0.7,
            order_price=-0.8,
            hide_bias=-3.4,
            hide_affinity=0.6,
            hide_appeal=0.7,
        ),
    }
