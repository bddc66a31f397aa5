"""Fitting a small network by Adam, in numpy: a few thousand parameters gain nothing from a tensor library.

Shape letters: B rows of a batch, N rows, X inputs, Y outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utility_blender.contexts import Floats
from utility_blender.mlp import Mlp

Objective = Callable[[NDArray[np.int64], Floats, Floats], tuple[Floats, Floats]]
"""(rows_B, y_BY, extra_E) -> gradients of a batch's loss: by the outputs, and by the parameters beside the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamConfig:
    """Adam (Kingma and Ba 2015) over shuffled batches, its rate falling linearly to zero."""

    epochs: int = 6
    """Passes over the rows; at least 1."""
    batch: int = 512
    """Rows per update; at least 1."""
    rate: float = 3e-3
    """Learning rate of the first update; above 0."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
        if not 0 < self.rate < np.inf:
            raise ValueError(f"rate: {self.rate} is not allowed; a finite number above 0")


def fit_mlp(
    mlp: Mlp,
    x_NX: Floats,
    objective: Objective,
    config: AdamConfig,
    rng: np.random.Generator,
    *,
    extra_E: Floats | None = None,
    watch: Callable[[Floats], None] | None = None,
) -> tuple[Mlp, Floats]:
    """Returns the network after training, and the trained parameters beside it (`extra_E`, none by default).

    Args:
        mlp: where training starts; unchanged.
        x_NX: inputs.
        objective: gradients of a batch; its rows index `x_NX`.
        config: Adam's.
        rng: order of the rows.
        extra_E: parameters that are no function of the inputs.
        watch: called with `extra_E` after each pass; raises to stop.

    Raises:
        ValueError: a parameter is no longer finite.
    """
    parameters = [np.array(array) for layer in mlp.layers for array in layer]
    parameters.append(np.zeros(0) if extra_E is None else np.array(extra_E, np.float64))
    first = [np.zeros_like(array) for array in parameters]
    second = [np.zeros_like(array) for array in parameters]
    num_rows = len(x_NX)
    num_steps = config.epochs * -(-num_rows // config.batch)
    step = 0
    for _ in range(config.epochs):
        order = rng.permutation(num_rows)
        for start in range(0, num_rows, config.batch):
            rows_B = order[start : start + config.batch]
            inputs = _forward(parameters[:-1], x_NX[rows_B])
            by_output_BY, by_extra_E = objective(rows_B, inputs.pop(), parameters[-1])
            gradients = [*_backward(parameters[:-1], inputs, by_output_BY), by_extra_E]
            rate = config.rate * (1 - step / num_steps)
            step += 1
            for value, gradient, mean, square in zip(parameters, gradients, first, second, strict=True):
                mean += 0.1 * (gradient - mean)
                square += 0.001 * (gradient**2 - square)
                value -= rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        if not all(np.isfinite(array).all() for array in parameters):
            raise ValueError("fit: a parameter is no longer finite; the loss has no minimum, or the rate is too high")
        if watch is not None:
            watch(parameters[-1])
    arrays = iter(parameters[:-1])
    return Mlp(tuple(zip(arrays, arrays, strict=True))), parameters[-1]


def _forward(parameters: list[Floats], x_BX: Floats) -> list[Floats]:
    """Returns what goes into each layer, and at the end what comes out of the last."""
    values = [x_BX]
    for weights, bias in zip(parameters[::2], parameters[1::2], strict=True):
        inner = values[-1] if len(values) == 1 else np.maximum(values[-1], 0.0)
        values[-1] = inner
        values.append(inner @ weights + bias)
    return values


def _backward(parameters: list[Floats], inputs: list[Floats], by_output_BY: Floats) -> list[Floats]:
    """Returns the gradient of every parameter, in their order."""
    gradients: list[Floats] = []
    by_value = by_output_BY
    for weights, value in zip(parameters[-2::-2], inputs[::-1], strict=True):
        gradients += [by_value.sum(axis=0), value.T @ by_value]
        by_value = (by_value @ weights.T) * (value > 0)
    return gradients[::-1]
