"""The small network: its gradients, its written form, and that it finds what there is to find."""

import json
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from utility_blender.fit_mlp import AdamConfig, _backward, _forward, fit_mlp
from utility_blender.mlp import Mlp, new_mlp

RNG = np.random.default_rng(0)


def random_mlp(*widths: int) -> Mlp:
    layers = new_mlp(widths, RNG).layers
    return Mlp(
        tuple(
            (weights + RNG.normal(size=weights.shape), bias + RNG.normal(size=bias.shape)) for weights, bias in layers
        )
    )


@pytest.mark.parametrize("widths", [(3, 2), (3, 5, 2), (3, 6, 4, 2)])
def test_gradients_are_those_of_finite_differences(widths: tuple[int, ...]) -> None:
    mlp, x_BX, goal_BY = random_mlp(*widths), RNG.normal(size=(7, 3)), RNG.normal(size=(7, 2))
    parameters = [np.array(array) for layer in mlp.layers for array in layer]

    def loss() -> float:
        return float(((_forward(parameters, x_BX)[-1] - goal_BY) ** 2).sum()) / 2

    inputs = _forward(parameters, x_BX)
    gradients = _backward(parameters, inputs, inputs.pop() - goal_BY)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for place in np.ndindex(parameter.shape):
            before = parameter[place]
            parameter[place] = before + 1e-6
            above = loss()
            parameter[place] = before - 1e-6
            below = loss()
            parameter[place] = before
            assert gradient[place] == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-5)


def test_training_and_serving_compute_the_same() -> None:
    mlp, x_BX = random_mlp(3, 6, 4, 2), RNG.normal(size=(7, 3))
    parameters = [array for layer in mlp.layers for array in layer]
    assert mlp(x_BX).tolist() == _forward(parameters, x_BX)[-1].tolist()
    assert np.allclose(mlp.times(3.0)(x_BX), 3 * mlp(x_BX))


def test_a_bent_function_and_a_number_beside_it_are_found() -> None:
    x_NX = RNG.uniform(-1, 1, (4_000, 2))
    goal_N1 = np.abs(x_NX[:, :1]) - x_NX[:, 1:] + 5.0

    def gradients(rows_B: NDArray[np.int64], y_BY: Any, extra_E: Any) -> tuple[Any, Any]:
        miss_B1 = (y_BY + extra_E - goal_N1[rows_B]) / len(rows_B)
        return miss_B1, miss_B1.sum(axis=0)

    def fitted(seed: int) -> tuple[Mlp, Any]:
        rng = np.random.default_rng(seed)
        start = new_mlp((2, 16, 1), rng)
        return fit_mlp(start, x_NX, gradients, AdamConfig(epochs=60, batch=64, rate=0.02), rng, extra_E=np.zeros(1))

    mlp, extra_E = fitted(1)
    assert np.sqrt(np.mean((mlp(x_NX) + extra_E - goal_N1) ** 2)) < 0.05
    again, _ = fitted(1)
    assert again(x_NX).tolist() == mlp(x_NX).tolist()
    assert fitted(2)[0](x_NX).tolist() != mlp(x_NX).tolist()


def test_a_new_network_says_zero_and_its_start_is_left_alone() -> None:
    start = new_mlp((3, 8, 2), np.random.default_rng(0))
    x_NX = RNG.normal(size=(5, 3))
    assert not start(x_NX).any()
    fit_mlp(start, x_NX, lambda rows, y, e: (np.ones_like(y), e), AdamConfig(epochs=1), np.random.default_rng(0))
    assert not start(x_NX).any()


def test_a_loss_that_explodes_is_refused() -> None:
    with pytest.raises(ValueError, match="fit: a parameter is no longer finite"):
        fit_mlp(
            new_mlp((3, 2), RNG),
            RNG.normal(size=(5, 3)),
            lambda rows, y, e: (np.full_like(y, np.nan), e),
            AdamConfig(),
            RNG,
        )


def test_a_network_survives_json_to_the_last_bit_and_nonsense_does_not() -> None:
    mlp, x_NX = random_mlp(3, 6, 2), RNG.normal(size=(9, 3))
    data = json.loads(json.dumps(mlp.as_list()))
    assert Mlp.from_list(data)(x_NX).tolist() == mlp(x_NX).tolist()
    no_context = new_mlp((0, 4, 2), RNG)
    assert Mlp.from_list(json.loads(json.dumps(no_context.as_list())))(np.empty((2, 0))).shape == (2, 2)
    with pytest.raises(ValueError, match="layers: the widths do not fit"):
        Mlp.from_list([data[0], data[0]])
    with pytest.raises(ValueError, match="layers: a number is not finite"):
        Mlp.from_list([{"weights": [[float("nan")]], "bias": [0.0]}])
    with pytest.raises(ValueError, match="layers: the widths do not fit"):
        Mlp.from_list([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: 0 is not allowed; at least 1"),
        ({"batch": 0}, "batch: 0 is not allowed; at least 1"),
        ({"rate": 0.0}, "rate: 0.0 is not allowed; a finite number above 0"),
    ],
)
def test_settings_that_are_refused_say_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        AdamConfig(**settings)
