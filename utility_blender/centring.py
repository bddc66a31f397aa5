"""Explored weights as directions, and what is left of them once the mean of the exploration is taken away.

Rankings see the direction of the weights only, and the mean direction of a draw is neither that of the static weights
nor that of the centre: after normalisation it lies a little beside both. A regression on directions that are centred
elsewhere must explain the base rate of a context by the direction, and turns rankings around where it is low.
Design: blender.md, sections 3.5 and 4. Here all directions have length 1, so that a penalty on steps means the same
for any static weights.

Shape letters: N requests, T tasks.
"""

from dataclasses import dataclass

import numpy as np

from utility_blender.contexts import Floats
from utility_blender.outcomes import Outcomes
from utility_blender.redraw import redraw

NUM_DRAWS = 64
"""Fresh draws around each request's own centre, in antithetic pairs."""
_PART = 10_000
"""Requests whose draws are held at once, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class Tilt:
    """How explored directions differ from what their law gives on average."""

    tilt_NT: Floats
    """Direction drawn minus the mean direction of the law around the request's own centre."""
    center_NT: Floats
    """Direction of the centre, of length 1."""
    angle: float
    """Root mean square angle between a draw and its centre, degrees: how far the log can see."""

    @property
    def variance(self) -> float:
        """Mean variance of the tilt, per task."""
        return float(np.mean(self.tilt_NT**2))


def tilts(outcomes: Outcomes, rng: np.random.Generator, num_draws: int = NUM_DRAWS) -> Tilt:
    """Returns the tilts of explored requests.

    Raises:
        ValueError: requests that another law than the lognormal one drew.
    """
    center_NT = unit(outcomes.center_NT)
    mean_NT = np.zeros_like(center_NT)
    square = 0.0
    for rows in np.array_split(np.arange(outcomes.num_requests), -(-outcomes.num_requests // _PART)):
        part = outcomes.take(rows)
        direction_NMT = unit(_pairs(part, num_draws // 2, rng))
        mean_NT[rows] = direction_NMT.mean(axis=1)
        square += float((angles(direction_NMT, center_NT[rows, None, :]) ** 2).mean(axis=1).sum())
    return Tilt(unit(outcomes.weights_NT) - mean_NT, center_NT, float(np.sqrt(square / outcomes.num_requests)))


def _pairs(outcomes: Outcomes, num: int, rng: np.random.Generator) -> Floats:
    """Returns antithetic draws, each jitter and its mirror image: their mean is nearer that of the law."""
    drawn_NMT = redraw(outcomes, num, rng)
    square_N1T = outcomes.center_NT[:, None, :] ** 2
    mirrored_NMT = np.divide(square_N1T, drawn_NMT, out=np.zeros_like(drawn_NMT), where=drawn_NMT != 0)
    return np.concatenate([drawn_NMT, mirrored_NMT], axis=1)


def unit(weights_NT: Floats) -> Floats:
    """Returns the weights at length 1, along the last axis."""
    direction_NT: Floats = weights_NT / np.linalg.norm(weights_NT, axis=-1, keepdims=True)
    return direction_NT


def angles(a_NT: Floats, b_NT: Floats) -> Floats:
    """Returns the angle between two directions per request, degrees.

    >>> angles(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])).round(6)
    array([45.])
    """
    chord_N = np.linalg.norm(unit(a_NT) - unit(b_NT), axis=-1)
    angle_N: Floats = np.degrees(2 * np.arcsin(np.minimum(chord_N / 2, 1.0)))  # exact for small angles, arccos is not
    return angle_N
