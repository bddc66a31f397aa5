"""What explored requests say of the weights: each one's pull on them, and how certain its draw made that.

The plain pull is the tilt drawn times the reward of the whole slate. It credits the draw with every item shown, though
most of them any draw would have shown, and what those earn is noise. Item by item there is less of it:

    pull_i = sum_j in slate_i (reward_ij - base_i / k) mean(tilt | j shown),      E[pull_i] = E[tilt_i (R_i - base_i)]

The mean is over the logged draw and M fresh ones, their mean direction taken away. Which of the M + 1 was logged is
chance, so both pulls agree in expectation (but for the factor M / (M + 1) of the mean taken away), if the reward of an
item depends neither on its neighbours nor on its rank: what item inclusion assumes in the gate as well. In the world of
`sim.scored_world` the second has a twentieth of the variance. Departure from the design, which has the plain one.

Shape letters: N requests, M draws, C candidates, T tasks.
"""

from dataclasses import dataclass

import numpy as np

from utility_blender.centring import Tilt, unit
from utility_blender.contexts import Floats
from utility_blender.inclusion import shown_by
from utility_blender.outcomes import Outcomes
from utility_blender.redraw import redraw

NUM_DRAWS = 100
"""Fresh draws around each request's own centre."""
_PART = 500
"""Requests whose slates under all draws are held at once, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class Credit:
    """Pulls of N requests, and what a regression on their tilts needs beside them."""

    pull_NT: Floats
    """With a base of 0."""
    of_base_NT: Floats
    """By how much a base of 1 lessens the pull."""
    spread_NTT: Floats
    """The tilt times itself: of the draw, or the mean over draws around the same centre."""

    def pulls(self, base_N: Floats) -> Floats:
        """Returns the pulls, pull_NT, less what each context earns anyway."""
        pull_NT: Floats = self.pull_NT - base_N[:, None] * self.of_base_NT
        return pull_NT


def request_credit(tilt: Tilt, reward_N: Floats) -> Credit:
    """Returns plain pulls: the draw has all the credit for all that came of its request."""
    tilt_NT = tilt.tilt_NT
    return Credit(tilt_NT * reward_N[:, None], tilt_NT, tilt_NT[:, :, None] * tilt_NT[:, None, :])


def item_credit(outcomes: Outcomes, reward_NC: Floats, rng: np.random.Generator, num_draws: int = NUM_DRAWS) -> Credit:
    """Returns pulls item by item.

    Args:
        outcomes: explored requests.
        reward_NC: what came of each candidate; read where it was shown.
        rng: draws.
        num_draws: M.

    Raises:
        ValueError: requests that another law than the lognormal one drew.
    """
    num, num_tasks = outcomes.center_NT.shape
    pull_NT, of_base_NT, spread_NTT = (
        np.zeros((num, num_tasks)),
        np.zeros((num, num_tasks)),
        np.zeros((num, num_tasks, num_tasks)),
    )
    for rows in np.array_split(np.arange(num), -(-num // _PART)):
        part = outcomes.take(rows)
        drawn_NMT = np.concatenate([part.weights_NT[:, None, :], redraw(part, num_draws, rng)], axis=1)
        tilt_NMT = unit(drawn_NMT)
        tilt_NMT -= tilt_NMT.mean(axis=1, keepdims=True)
        shown_NCM = np.swapaxes(shown_by(part, drawn_NMT), 1, 2).astype(np.float64)
        mean_NCT = (shown_NCM @ tilt_NMT) / np.maximum(shown_NCM.sum(axis=2, keepdims=True), 1.0)
        mean_NCT[~part.shown_NC] = 0.0
        pull_NT[rows] = (reward_NC[rows][:, :, None] * mean_NCT).sum(axis=1)
        of_base_NT[rows] = mean_NCT.sum(axis=1) / np.maximum(part.size_N, 1)[:, None]
        spread_NTT[rows] = np.swapaxes(tilt_NMT, 1, 2) @ tilt_NMT / (num_draws + 1)
    return Credit(pull_NT, of_base_NT, spread_NTT)
