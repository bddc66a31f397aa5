"""A small network of linear layers with ReLU between them, in numpy: what serves f(x), and what fits it.

Shape letters: N rows, X inputs, Y outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from utility_blender.contexts import Floats


@dataclass(frozen=True, slots=True)
class Mlp:
    """Layers `(weights_XY, bias_Y)`, first to last; no layer but the last is linear.

    >>> Mlp(((np.array([[1.0], [-1.0]]), np.array([0.5])),))(np.array([[2.0, 1.0]]))
    array([[1.5]])
    """

    layers: tuple[tuple[Floats, Floats], ...]

    def __call__(self, x_NX: Floats) -> Floats:
        """Returns y_NY."""
        *hidden, (weights_XY, bias_Y) = self.layers
        for weights, bias in hidden:
            x_NX = np.maximum(x_NX @ weights + bias, 0.0)
        y_NY: Floats = x_NX @ weights_XY + bias_Y
        return y_NY

    def times(self, factor: float) -> "Mlp":
        """Returns the network whose outputs are `factor` times those of this one."""
        *hidden, (weights_XY, bias_Y) = self.layers
        return Mlp((*hidden, (weights_XY * factor, bias_Y * factor)))

    def as_list(self) -> list[dict[str, Any]]:
        """Returns plain data, for JSON: each float64 comes back as it was."""
        return [{"weights": weights.tolist(), "bias": bias.tolist()} for weights, bias in self.layers]

    @staticmethod
    def from_list(data: Sequence[Mapping[str, Any]]) -> "Mlp":
        """Returns the network of plain data.

        Raises:
            KeyError, TypeError, ValueError: it is not a network's, or the widths of its layers do not fit.
        """
        layers = tuple(
            (
                np.array(layer["weights"], np.float64).reshape(-1, len(layer["bias"])),
                np.array(layer["bias"], np.float64),
            )
            for layer in data
        )
        if not layers or any(before[0].shape[1] != after[0].shape[0] for before, after in pairwise(layers)):
            raise ValueError("layers: the widths do not fit; each layer takes what the one before it gives")
        if not all(np.isfinite(array).all() for layer in layers for array in layer):
            raise ValueError("layers: a number is not finite")
        return Mlp(layers)


def new_mlp(widths: Sequence[int], rng: np.random.Generator) -> Mlp:
    """Returns a network with these widths, inputs to outputs; its last layer is zero, so it starts by saying 0."""
    layers = [
        (rng.standard_normal((before, after)) * np.sqrt(2.0 / max(before, 1)), np.zeros(after))
        for before, after in pairwise(widths)
    ]
    layers[-1] = (np.zeros_like(layers[-1][0]), layers[-1][1])
    return Mlp(tuple(layers))
