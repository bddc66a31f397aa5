"""Shared-Bottom against a row-at-a-time float64 reference, and what its equations imply."""

import pytest
from torch import Tensor

from model.shared_bottom import SharedBottom, SharedBottomConfig
from tests.model.network_checks import (
    Parameters,
    assert_equals_reference,
    assert_gradcheck,
    assert_relabelling_changes_nothing,
    reached,
    rows,
    shaken,
    without_gradient,
)
from tests.model.networks import inputs, run, shape
from tests.model.plain_layers import per_row, relu, tower

WIDTH = 5
CONFIGS = {
    "two layers": SharedBottomConfig(bottom=(8, 6), tower=(6,)),
    "one layer, linear tower": SharedBottomConfig(bottom=(4,), tower=()),
    "deep": SharedBottomConfig(bottom=(5, 4, 3), tower=(4, 3)),
}
SCENARIO_B = [2, 0, 1, 0, 2, 2, 0]


def tiny(num_scenarios: int = 3, name: str = "two layers", seed: int = 0) -> SharedBottom:
    return shaken(SharedBottom(CONFIGS[name], shape(num_scenarios, 2, width=WIDTH), seed=seed))


def reference(p: Parameters, x_BD: Tensor, scenario_B: list[int], config: SharedBottomConfig) -> Tensor:
    def row_logits(x: Tensor, i: int) -> list[Tensor]:
        h = x
        for layer in range(len(config.bottom)):
            h = relu(p[f"bottom.weights.{layer}"] @ h + p[f"bottom.biases.{layer}"])
        return [tower(p, f"towers.{i}", j, h) for j in range(2)]

    return per_row(row_logits, x_BD, scenario_B)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_scenarios", [1, 2, 3])
def test_logits_and_gradients_equal_the_reference(name: str, num_scenarios: int) -> None:
    scenario_B = [i % num_scenarios for i in SCENARIO_B]
    assert_equals_reference(
        tiny(num_scenarios, name),
        lambda p, x_BD: reference(p, x_BD, scenario_B, CONFIGS[name]),
        rows(7, WIDTH),
        lambda net, x_BD: run(net, x_BD, scenario_B),
    )


def test_gradcheck_of_input_and_parameters() -> None:
    assert_gradcheck(tiny(2), rows(3, WIDTH), lambda net, x_BD: net(inputs(x_BD, [0, 1, 3])))


def test_a_loss_on_one_head_reaches_the_bottom_and_its_own_tower() -> None:
    net = tiny()
    bottom = {name for name, _ in net.named_parameters() if name.startswith("bottom.")}
    own = {name for name, _ in net.named_parameters() if name.startswith("towers.0.")}
    logits_BT = run(net, rows(7, WIDTH), SCENARIO_B)
    assert reached(net, logits_BT[[1, 3, 6], 0].square().sum()) == bottom | own
    weight = net.towers[0].weights[0].grad
    assert weight[0].abs().sum() > 0 and weight[1].abs().sum() == 0


def test_a_scenario_without_rows_gets_no_gradient() -> None:
    net = tiny()
    run(net, rows(4, WIDTH), [0, 2, 2, 0]).sum().backward()
    assert without_gradient(net) == {name for name, _ in net.named_parameters() if name.startswith("towers.1.")}


def test_relabelling_scenarios_with_their_towers_changes_nothing() -> None:
    assert_relabelling_changes_nothing(tiny(), tiny(seed=9), rows(7, WIDTH), SCENARIO_B, [1, 2, 0])


def test_a_bottom_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bottom: \(\) is not allowed; at least one width"):
        SharedBottomConfig(bottom=())
    with pytest.raises(ValueError, match=r"tower: \(4, 0\) is not allowed; at least 1"):
        SharedBottomConfig(tower=(4, 0))
