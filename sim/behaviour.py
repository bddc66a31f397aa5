"""What users do with a slate: true probabilities, the actions drawn from them, and the interest that clicks leave.

N candidates of a request; K shown items; D latent dimensions. Formulas: `sim.scenario`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.catalogue import NUM_LATENT, Floats
from sim.config import SimConfig
from sim.delay import sample_delays_ms
from sim.world import CandidateSet, World

_INTEREST_SATURATION = 1.5
_MOST_LIKELY = 0.95
"""No mood makes a click more likely than this."""


class Action(NamedTuple):
    """One thing a user did: to the item at `position` of the slate, `delay_ms` after the slate."""

    action: str
    position: int
    delay_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Probabilities given that the item is looked at, per candidate `[N]`, and what looking at it is worth."""

    click_N: Floats
    order_N: Floats
    """Of click and order, not of the order after the click."""
    hide_N: Floats
    value_N: Floats
    """Expected utility: the sum over actions of worth times probability."""
    examine_decay: float

    def examined(self, num_positions: int) -> Floats:
        """Returns the probability that each of the first positions is looked at, `[K]`."""
        examined_K: Floats = (1.0 + np.arange(num_positions, dtype=np.float64)) ** -self.examine_decay
        return examined_K

    def expected_utility(self, shown_K: NDArray[np.int64]) -> float:
        """Returns the expected utility of showing these candidates in this order."""
        return float(self.value_N[shown_K] @ self.examined(len(shown_K)))

    def bounds(self, num_positions: int) -> tuple[float, float]:
        """Returns the expected utility of a random slate and of the best one.

        Every probability is proportional to that of looking, so the best slate puts the largest values first.
        """
        examined_K = self.examined(num_positions)
        best_K = np.sort(self.value_N)[::-1][:num_positions]
        return float(self.value_N.mean() * examined_K.sum()), float(best_K @ examined_K)


class Interest:
    """The short-term interest of every user: a decaying sum of what they clicked, the state of the closed loop.

    Clicks may be told in advance; each counts from its own event time on. Times asked for must not go back.
    """

    def __init__(self, half_life_s: float) -> None:
        self._rate_per_ms = math.log(2) / (1_000 * half_life_s)
        self._settled: dict[str, tuple[int, Floats]] = {}
        self._ahead: dict[str, list[tuple[int, Floats]]] = {}

    def clicked(self, user_id: str, item_vec_D: Floats, event_ms: int) -> None:
        """Adds one clicked item."""
        self._ahead.setdefault(user_id, []).append((event_ms, item_vec_D))

    def at(self, user_id: str, now_ms: int) -> Floats:
        """Returns the interest `[D]` at a moment; its length saturates, however many clicks there were."""
        since_ms, vec_D = self._settled.get(user_id, (now_ms, np.zeros(NUM_LATENT)))
        vec_D = vec_D * self._decay(now_ms - since_ms)
        ahead = []
        for event_ms, item_vec_D in self._ahead.pop(user_id, []):
            if event_ms <= now_ms:
                vec_D = vec_D + item_vec_D * self._decay(now_ms - event_ms)
            else:
                ahead.append((event_ms, item_vec_D))
        if ahead:
            self._ahead[user_id] = ahead
        self._settled[user_id] = (now_ms, vec_D)
        length = float(np.linalg.norm(vec_D))
        return vec_D * (math.tanh(length / _INTEREST_SATURATION) / length) if length > 0 else vec_D

    def _decay(self, age_ms: int) -> float:
        return math.exp(-self._rate_per_ms * age_ms)


def truth(
    world: World,
    *,
    user_id: str,
    scenario: str,
    now_ms: int,
    candidates: CandidateSet,
    interest_D: Floats,
    mood: str | None = None,
) -> Truth:
    """Returns the true probabilities of a request's candidates; `mood` by its name, the request's own if left out."""
    s = world.scenario(scenario)
    affinity_N = math.sqrt(NUM_LATENT) * (candidates.vec_ND @ world.taste(user_id, now_ms))
    interest_N = math.sqrt(NUM_LATENT) * (candidates.vec_ND @ interest_D)
    click_N = _sigmoid(
        s.click_bias
        + s.click_affinity * affinity_N
        + s.click_interest * interest_N
        + s.click_appeal * candidates.appeal_N
        + s.click_price * candidates.price_z_N
        + s.click_query * candidates.matches_N
    )
    order_after_click_N = _sigmoid(
        s.order_bias
        + s.order_affinity * affinity_N
        + s.order_appeal * candidates.appeal_N
        + s.order_price * candidates.price_z_N
    )
    hide_if_not_clicked_N = _sigmoid(s.hide_bias - s.hide_affinity * affinity_N + s.hide_appeal * candidates.appeal_N)
    order_N = click_N * order_after_click_N
    hide_N = (1.0 - click_N) * hide_if_not_clicked_N
    own = world.mood(user_id, now_ms)
    if own is not None:
        factor = own[1] if mood is None else world.config.moods[mood]
        click_N = np.minimum(factor.click * click_N, _MOST_LIKELY)
        order_N = np.minimum(factor.order * order_N, click_N)
        hide_N = np.minimum(factor.hide * hide_N, 1.0 - click_N)
    worth = world.config.utility
    return Truth(
        click_N=click_N,
        order_N=order_N,
        hide_N=hide_N,
        value_N=worth["click"] * click_N + worth["order"] * order_N + worth["hide"] * hide_N,
        examine_decay=s.examine_decay,
    )


def sample_actions(
    truth: Truth, shown_K: NDArray[np.int64], config: SimConfig, rng: np.random.Generator
) -> list[Action]:
    """Returns what the user does with a slate of these candidates, in order of delay."""
    num = len(shown_K)
    looked, click, order, hide = rng.random((4, num))
    click_K, order_K, hide_K = truth.click_N[shown_K], truth.order_N[shown_K], truth.hide_N[shown_K]
    is_looked_K = looked < truth.examined(num)
    is_click_K = is_looked_K & (click < click_K)
    is_order_K = is_click_K & (order * click_K < order_K)
    is_hide_K = is_looked_K & ~is_click_K & (hide * (1.0 - click_K) < hide_K)
    actions: list[Action] = []
    click_delay_ms: dict[int, int] = {}
    for name, is_action_K in (("click", is_click_K), ("order", is_order_K), ("hide", is_hide_K)):
        positions = np.flatnonzero(is_action_K).tolist()
        if not positions:
            continue
        delays_ms = sample_delays_ms(config.delays[name], len(positions), config.time_scale, rng).tolist()
        delay_ms_of = dict(zip(positions, delays_ms, strict=True))
        if name == "click":
            click_delay_ms = delay_ms_of
        elif name == "order":
            delay_ms_of = {position: click_delay_ms[position] + ms for position, ms in delay_ms_of.items()}
        actions += [Action(name, position, ms) for position, ms in delay_ms_of.items()]
    return sorted(actions, key=lambda action: action.delay_ms)


def _sigmoid(logit: Floats) -> Floats:
    probability: Floats = 1.0 / (1.0 + np.exp(-logit))
    return probability
