"""MMoE and OMoE against a row-at-a-time float64 reference, and what their equations imply."""

import pytest
import torch
from torch import Tensor

from model.mmoe import MMoE, MMoEConfig
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
from tests.model.networks import inputs, offsets, run, shape
from tests.model.plain_layers import bank, linear_rows, mixed, per_row, permute_experts, softmax, tower

WIDTH = 5
CONFIGS = {
    "mmoe": MMoEConfig(num_experts=3, expert_hidden=4, expert_width=4, tower=(6,)),
    "omoe": MMoEConfig(num_experts=3, expert_hidden=4, expert_width=4, tower=(6,), one_gate=True),
    "one expert": MMoEConfig(num_experts=1, expert_hidden=4, expert_width=3, tower=()),
}
SCENARIO_B = [2, 0, 1, 0, 2, 2, 0]


def tiny(name: str = "mmoe", num_scenarios: int = 3, seed: int = 0) -> MMoE:
    return shaken(MMoE(CONFIGS[name], shape(num_scenarios, 2, width=WIDTH), seed=seed))


def reference(p: Parameters, x_BD: Tensor, scenario_B: list[int], config: MMoEConfig) -> Tensor:
    def row_logits(x: Tensor, i: int) -> list[Tensor]:
        experts, one_gate = bank(p, "experts")
        gates = one_gate * 2 if config.one_gate else linear_rows(p, f"gates.{i}")
        logits = []
        for j in range(2):
            weights = softmax([gate(x) for gate in gates[j * len(experts) : (j + 1) * len(experts)]])
            logits.append(tower(p, f"towers.{i}", j, mixed(weights, [expert(x) for expert in experts])))
        return logits

    return per_row(row_logits, x_BD, scenario_B)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_scenarios", [1, 2, 3])
def test_logits_and_gradients_equal_the_reference(name: str, num_scenarios: int) -> None:
    scenario_B = [i % num_scenarios for i in SCENARIO_B]
    assert_equals_reference(
        tiny(name, num_scenarios),
        lambda p, x_BD: reference(p, x_BD, scenario_B, CONFIGS[name]),
        rows(7, WIDTH),
        lambda net, x_BD: run(net, x_BD, scenario_B),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_gradcheck_of_input_and_parameters(name: str) -> None:
    assert_gradcheck(tiny(name, 2), rows(3, WIDTH), lambda net, x_BD: net(inputs(x_BD, [0, 1, 3])))


@pytest.mark.parametrize(("name", "own"), [("mmoe", ("gates.0.", "towers.0.")), ("omoe", ("towers.0.",))])
def test_a_loss_on_one_head_reaches_the_experts_and_its_own_gate_and_tower(name: str, own: tuple[str, ...]) -> None:
    net = tiny(name)
    logits_BT = run(net, rows(7, WIDTH), SCENARIO_B)
    expected = {name for name, _ in net.named_parameters() if name.startswith(("experts.", *own))}
    assert reached(net, logits_BT[[1, 3, 6], 0].square().sum()) == expected
    weight = net.towers[0].weights[0].grad
    assert weight[0].abs().sum() > 0 and weight[1].abs().sum() == 0
    if net.gates is not None:
        weight = net.gates[0].weight.grad
        assert weight[:3].abs().sum() > 0 and weight[3:].abs().sum() == 0


def test_a_scenario_without_rows_gets_no_gradient() -> None:
    net = tiny()
    run(net, rows(4, WIDTH), [0, 2, 2, 0]).sum().backward()
    absent = {name for name, _ in net.named_parameters() if name.startswith(("gates.1.", "towers.1."))}
    assert without_gradient(net) == absent


def test_one_expert_is_given_everything_and_its_gate_no_gradient() -> None:
    net = tiny("one expert")
    logits_BT = run(net, rows(7, WIDTH), SCENARIO_B)
    assert not any(name.startswith("gates.") for name in reached(net, logits_BT.square().sum()))


def test_permuting_experts_with_their_gates_changes_nothing() -> None:
    net, x_BD, order = tiny(), rows(7, WIDTH), [2, 0, 1]
    before_BT = run(net, x_BD, SCENARIO_B)
    permute_experts(net.experts, order)
    assert not torch.allclose(run(net, x_BD, SCENARIO_B), before_BT, atol=1e-3)
    assert net.gates is not None
    with torch.no_grad():
        for gate in net.gates:
            for parameter in gate.parameters():
                parameter.copy_(parameter[[*order, *(3 + k for k in order)]])
    assert torch.allclose(run(net, x_BD, SCENARIO_B), before_BT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_relabelling_scenarios_with_their_parameters_changes_nothing(name: str) -> None:
    assert_relabelling_changes_nothing(tiny(name), tiny(name, seed=9), rows(7, WIDTH), SCENARIO_B, [1, 2, 0])


def test_gate_usage_is_what_the_gates_gave() -> None:
    net, x_BD = tiny(), rows(5, WIDTH)
    usage = net.gate_usage(inputs(x_BD, offsets([0, 0, 2, 2, 2], 3)))
    assert [(one.gate, one.scenario, one.task) for one in usage] == [
        ("experts", scenario, task) for scenario in (0, 2) for task in (0, 1)
    ]
    gates = linear_rows(dict(net.named_parameters()), "gates.2")[3:]
    expected = softmax([gate(x_BD[3]) for gate in gates])
    assert torch.allclose(usage[3].weight_BK[1], torch.stack(expected), rtol=0, atol=1e-12)
    (one,) = tiny("omoe").gate_usage(inputs(x_BD, [0, 0, 5, 5]))
    assert (one.scenario, one.task, one.weight_BK.shape) == (1, None, (5, 3))


def test_a_count_below_one_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="num_experts: 0 is not allowed; at least 1"):
        MMoEConfig(num_experts=0)
