"""A policy: the weights of the utility as a function of the request's context.

Shape letters: N requests, T tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from utility_blender.contexts import Contexts, Floats


class Policy(Protocol):
    """What serves, or what might."""

    def weights(self, contexts: Contexts) -> Floats:
        """Returns weights_NT in the order of the schema's tasks; rankings depend on their direction only."""


@dataclass(frozen=True, slots=True)
class StaticPolicy:
    """The production weights of the config: one vector per scenario.

    >>> StaticPolicy({"home": np.array([1.0, 5.0])}).weights(Contexts(scenario=["home"] * 2, columns={}))
    array([[1., 5.],
           [1., 5.]])
    """

    weights_of: Mapping[str, Floats]

    def weights(self, contexts: Contexts) -> Floats:
        """See `Policy.weights`."""
        return np.array([self.weights_of[scenario] for scenario in contexts.scenario])


def directions(weights_NT: Floats, static_NT: Floats) -> Floats:
    """Returns `u(v) = |s| v / |v|`: the weights at the length of the static ones, which is all a ranking can see."""
    length_N = np.linalg.norm(static_NT, axis=1) / np.linalg.norm(weights_NT, axis=1)
    scaled_NT: Floats = weights_NT * length_N[:, None]
    return scaled_NT
