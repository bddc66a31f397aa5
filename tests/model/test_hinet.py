"""HiNet against a row-at-a-time float64 reference, and the properties that follow from its equations."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.experts import GatedExperts
from model.hinet import HiNet
from model.hinet_config import HiNetConfig
from model.inputs import RowInputs
from model.network import NetworkInputs
from tests.model import hinet_reference as reference
from tests.model.networks import inputs, run, shape

torch.set_num_threads(1)

TINY = {
    "expert_hidden": 5,
    "expert_width": 4,
    "scenario_embedding": 3,
    "task_hidden": 5,
    "task_width": 4,
}
CONFIGS = {
    "small": HiNetConfig(**TINY, tower=(3,)),
    "unequal counts": HiNetConfig(
        **TINY,
        num_shared_experts=3,
        num_scenario_experts=1,
        num_task_experts=2,
        num_shared_task_experts=3,
        tower=(4, 3),
    ),
    "linear tower": HiNetConfig(**TINY, tower=()),
    "no attention": HiNetConfig(**TINY, san="none", tower=(3,)),
    "detached attention": HiNetConfig(**TINY, san="detach", tower=(3,)),
    "fixed scenarios": HiNetConfig(**TINY, growable=False, tower=(3,)),
}
SWITCHES = {
    "no hierarchy": HiNetConfig(**TINY, hierarchy=False, san="none", tower=(3,)),
    "softmax over all": HiNetConfig(**TINY, san_softmax="all_then_zero", tower=(3,)),
    "bottleneck": HiNetConfig(**TINY, san_gate="relu_bottleneck", tower=(3,)),
    "relu gates": HiNetConfig(**TINY, gate_activation="relu", tower=(3,)),
    "sum of experts": HiNetConfig(**TINY, cgc_gate="sum", tower=(3,)),
    "global task layer": HiNetConfig(**TINY, task_layer="global", num_shared_task_experts=2, tower=(3,)),
    "asg": HiNetConfig(**TINY, concat_order="asg", tower=(3,)),
    "asg without attention": HiNetConfig(**TINY, san="none", concat_order="asg", tower=(3,)),
    "affine": HiNetConfig(**TINY, input_affine=True, tower=(3,)),
    "released": replace(HiNetConfig.released(), **TINY, tower=(3,)),
}
CASES = [(name, m) for name in CONFIGS for m in (1, 2, 3, 4)] + [(name, m) for name in SWITCHES for m in (1, 3)]
CONFIGS |= SWITCHES
WIDTH = 6


def tiny(config: HiNetConfig, num_scenarios: int, num_tasks: int = 2, seed: int = 0) -> HiNet:
    net = HiNet(config, shape(num_scenarios, num_tasks, width=WIDTH), seed=seed).double()
    with torch.no_grad():  # biases that are zero at the start would hide a missing one
        for name, parameter in net.named_parameters():
            if "bias" in name or "shift" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
    return net


def rows(num_rows: int, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def touched(net: HiNet, loss: Tensor) -> set[str]:
    """Returns the modules with a parameter whose gradient of `loss` is not zero."""
    net.zero_grad()
    loss.backward()
    return {
        ".".join(name.split(".")[: 2 if name.split(".")[0] in ("scenarios", "gates", "towers") else 1])
        for name, parameter in net.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }


@pytest.mark.parametrize(("name", "num_scenarios"), CASES)
def test_logits_and_gradients_equal_the_reference(name: str, num_scenarios: int) -> None:
    config, scenario_B = CONFIGS[name], [int(s) for s in np.random.default_rng(3).integers(0, num_scenarios, 9)]
    net, x_BD, weight_BT = tiny(config, num_scenarios), rows(9).requires_grad_(), torch.linspace(-1, 1, 18).view(9, 2)
    (run(net, x_BD, scenario_B) * weight_BT).sum().backward()
    ours = {one: p.grad for one, p in net.named_parameters() if p.grad is not None}
    ours_x = x_BD.grad

    parameters = {one: p.detach().clone().requires_grad_() for one, p in net.named_parameters()}
    x_ref = x_BD.detach().clone().requires_grad_()
    expected_BT = reference.logits(parameters, config, x_ref, scenario_B, num_scenarios)
    (expected_BT * weight_BT).sum().backward()

    assert torch.allclose(run(net, x_BD, scenario_B), expected_BT, rtol=0, atol=1e-10)
    single_BT = run(copy.deepcopy(net).float(), x_BD.detach().float(), scenario_B)
    assert torch.allclose(single_BT.double(), expected_BT, rtol=0, atol=1e-5)
    assert x_ref.grad is not None and torch.allclose(ours_x, x_ref.grad, rtol=0, atol=1e-8)
    for one, parameter in parameters.items():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(ours.get(one, torch.zeros_like(parameter)), expected, rtol=0, atol=1e-8), one


@pytest.mark.parametrize("num_requests", [1, 2, 5])
def test_a_shared_request_part_gives_what_whole_rows_give(num_requests: int) -> None:
    net, request_RD, item_BD = tiny(CONFIGS["small"], 3), rows(num_requests)[:, :4], rows(10, seed=1)[:, :2]
    index_B = torch.arange(10) % num_requests
    split = RowInputs(item_BD, request_RD, index_B)
    whole = RowInputs(torch.cat([request_RD[index_B], item_BD], dim=1))
    ours, expected = (net(NetworkInputs(x=x, row_offsets=[0, 3, 3, 10])) for x in (split, whole))
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "switches", [{}, {"task_layer": "global", "san_softmax": "all_then_zero", "input_affine": True}]
)
def test_gradcheck_of_input_and_parameters(switches: dict[str, Any]) -> None:
    widths = {"expert_hidden": 2, "expert_width": 2, "scenario_embedding": 2, "task_hidden": 2, "task_width": 2}
    config = HiNetConfig(**widths, **switches, tower=(2,), san_capacity=3)
    net, x_BD = tiny(config, 3), rows(3).requires_grad_()
    names = [name for name, _ in net.named_parameters()]

    def forward(x_BD: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(net, given, (inputs(x_BD, [0, 1, 1, 3]),))

    given = (x_BD, *(p.detach().requires_grad_() for p in net.parameters()))
    assert torch.autograd.gradcheck(forward, given, fast_mode=True)


def test_parameter_counts_of_the_published_size() -> None:
    net = HiNet(HiNetConfig.published(), shape(6, 2, width=128), seed=0)

    def count(*modules: torch.nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    assert net.attention is not None
    assert count(net.shared, net.scenarios) == 871_395
    live = sum(parameter[:6].numel() for parameter in net.attention.parameters())
    assert live == 774
    assert count(net.gates) == 1_195_824
    assert count(net.towers) == 199_692
    assert count(net) - count(net.attention) + live == 2_267_685


@pytest.mark.parametrize("num_scenarios", [1, 2, 3, 7])
def test_attention_is_a_softmax_over_the_other_scenarios(num_scenarios: int) -> None:
    net = tiny(CONFIGS["small"], num_scenarios)
    assert net.attention is not None
    a_MM = net.attention()
    assert torch.equal(a_MM.diagonal(), torch.zeros(num_scenarios).double())
    assert torch.allclose(a_MM.sum(dim=1), torch.full((num_scenarios,), float(num_scenarios > 1)).double())
    if num_scenarios == 2:
        assert torch.equal(a_MM, 1.0 - torch.eye(2).double())


def test_two_scenarios_give_the_attention_gate_no_gradient() -> None:
    net = tiny(CONFIGS["small"], 2)
    run(net, rows(4), [0, 1, 1, 0]).sum().backward()
    assert net.attention is not None
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in net.attention.parameters())


def test_a_half_opened_scenario_weighs_its_share() -> None:
    net = tiny(CONFIGS["small"], 2)
    assert net.attention is not None
    net.open_scenario(1, 0.25)
    assert torch.allclose(net.attention(), torch.tensor([[0.0, 0.25], [1.0, 0.0]]).double())


def test_attention_does_not_overflow() -> None:
    net = tiny(CONFIGS["small"], 3)
    assert net.attention is not None
    with torch.no_grad():
        net.attention.bias[:3] += torch.tensor([1e4, -1e4, 2e4])
    a_MM = net.attention()
    a_MM.sum().backward()
    assert a_MM.isfinite().all() and net.attention.bias.grad is not None and net.attention.bias.grad.isfinite().all()


HEADS_OF_0 = {"gates.0", "towers.0"}


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("no hierarchy", HEADS_OF_0),
        ("asg without attention", {"shared", "scenarios.0"} | HEADS_OF_0),
        (
            "global task layer",
            {"shared", "attention", "shared_task_experts", "scenarios.0", "scenarios.1", "scenarios.2"} | HEADS_OF_0,
        ),
        ("affine", {"affine", "shared", "attention", "scenarios.0", "scenarios.1", "scenarios.2"} | HEADS_OF_0),
        ("small", {"shared", "attention", "scenarios.0", "scenarios.1", "scenarios.2"} | HEADS_OF_0),
        ("detached attention", {"shared", "attention", "scenarios.0"} | HEADS_OF_0),
        ("no attention", {"shared", "scenarios.0"} | HEADS_OF_0),
    ],
)
def test_a_loss_on_one_scenario_reaches_exactly(name: str, reached: set[str]) -> None:
    net = tiny(CONFIGS[name], 3)
    assert touched(net, run(net, rows(6), [0, 1, 2, 0, 1, 2])[[0, 3]].square().sum()) == reached


def test_a_loss_on_one_task_reaches_no_other_tasks_tower_or_experts() -> None:
    net = tiny(CONFIGS["unequal counts"], 1)
    run(net, rows(5), [0] * 5)[:, 0].sum().backward()
    tower, experts = net.towers[0].weights[0].grad, net.gates[0].experts.out_weight.grad
    assert tower[0].abs().sum() > 0 and tower[1].abs().sum() == 0
    assert [bool(g.abs().sum() > 0) for g in experts] == [True, True, False, False, True, True, True]


def test_heads_of_an_absent_scenario_have_no_gradient_at_all() -> None:
    net = tiny(CONFIGS["small"], 3)
    run(net, rows(4), [0, 2, 2, 0]).sum().backward()
    assert all(p.grad is None for p in [*net.gates[1].parameters(), *net.towers[1].parameters()])
    assert all(p.grad is not None for p in [*net.gates[0].parameters(), *net.gates[2].parameters()])


def test_one_sub_expert_is_its_own_mlp_and_its_gate_gets_no_gradient() -> None:
    net, x_BD = tiny(HiNetConfig(**TINY, num_shared_experts=1, num_scenario_experts=1), 2), rows(4)
    out_BD = net.shared(RowInputs(x_BD))
    experts_KBd, _ = net.shared.experts(RowInputs(x_BD))
    assert torch.equal(out_BD, experts_KBd[0])
    run(net, x_BD, [0, 1, 0, 1]).sum().backward()
    grad = net.shared.experts.in_weight.grad
    assert grad is not None and grad[-1].abs().max() == 0 and grad[:-1].abs().max() > 0


def reordered(bank: GatedExperts, experts: list[int], gates: list[int]) -> None:
    """Gives a bank its experts and gate logits in another order."""
    num_experts, hidden, _ = bank.out_weight.shape
    first = [k * hidden + unit for k in experts for unit in range(hidden)] + [num_experts * hidden + g for g in gates]
    with torch.no_grad():
        for parameter, index in (
            (bank.in_weight, first),
            (bank.in_bias, first),
            (bank.out_weight, experts),
            (bank.out_bias, experts),
        ):
            parameter.copy_(parameter[index])


def test_permuting_sub_experts_with_their_gates_changes_nothing() -> None:
    config = HiNetConfig(**TINY, num_shared_experts=3, num_scenario_experts=3)
    net, x_BD, scenario_B = tiny(config, 2), rows(6), [0, 1, 1, 0, 0, 1]
    before = run(net, x_BD, scenario_B)
    reordered(net.shared.experts, [2, 0, 1], [2, 0, 1])
    assert torch.allclose(run(net, x_BD, scenario_B), before, rtol=0, atol=1e-12)


def test_permuting_experts_of_a_cgc_with_their_gates_changes_nothing() -> None:
    net, x_BD, scenario_B = tiny(CONFIGS["unequal counts"], 2), rows(6), [0, 1, 1, 0, 0, 1]
    before = run(net, x_BD, scenario_B)
    # own experts of tasks 0 and 1, then three shared ones; a gate sees two own and three shared
    reordered(net.gates[0].experts, [1, 0, 2, 3, 5, 6, 4], [1, 0, 3, 4, 2, 5, 6, 8, 9, 7])
    assert torch.allclose(run(net, x_BD, scenario_B), before, rtol=0, atol=1e-12)


def test_permuting_tasks_with_their_parameters_permutes_the_logits() -> None:
    net, x_BD, scenario_B = tiny(CONFIGS["unequal counts"], 2), rows(6), [0, 1, 1, 0, 0, 1]
    before = run(net, x_BD, scenario_B)
    for cgc, tower in zip(net.gates, net.towers, strict=True):
        reordered(cgc.experts, [2, 3, 0, 1, 4, 5, 6], [*range(5, 10), *range(5)])
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter.copy_(parameter[[1, 0]])
    assert torch.allclose(run(net, x_BD, scenario_B), before[:, [1, 0]], rtol=0, atol=1e-12)


def test_permuting_rows_permutes_logits_and_a_row_stands_alone() -> None:
    net, x_BD, scenario_B = tiny(CONFIGS["small"], 3), rows(7), [2, 0, 0, 1, 2, 2, 0]
    logits_BT, order = run(net, x_BD, scenario_B), [6, 2, 0, 5, 1, 4, 3]
    permuted = run(net, x_BD[order], [scenario_B[b] for b in order])
    assert torch.allclose(permuted, logits_BT[order], rtol=0, atol=1e-12)
    for b, scenario in enumerate(scenario_B):
        assert torch.allclose(run(net, x_BD[b : b + 1], [scenario]), logits_BT[b : b + 1], rtol=0, atol=1e-12)


def test_relabelling_scenarios_with_their_parameters_changes_nothing() -> None:
    net, x_BD, scenario_B, order = tiny(CONFIGS["small"], 3), rows(7), [2, 0, 0, 1, 2, 2, 0], [1, 2, 0]
    twin = tiny(CONFIGS["small"], 3, seed=9)
    state = net.state_dict()
    moved = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] in ("scenarios", "gates", "towers"):
            moved[".".join([parts[0], str(order[int(parts[1])]), *parts[2:]])] = tensor
        elif name in net.row_parameters():
            moved[name] = torch.cat([tensor[np.argsort(order)], tensor[3:]])
        else:
            moved[name] = tensor
    twin.load_state_dict(moved)
    relabelled = run(twin, x_BD, [order[i] for i in scenario_B])
    assert torch.allclose(relabelled, run(net, x_BD, scenario_B), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scenario_B", [[], [1], [1, 1, 1]])
def test_no_rows_one_row_one_scenario(scenario_B: list[int]) -> None:
    net = tiny(CONFIGS["small"], 3)
    logits_BT = run(net, rows(len(scenario_B)), scenario_B)
    assert logits_BT.shape == (len(scenario_B), 2) and logits_BT.isfinite().all()


def test_one_growable_scenario_keeps_an_attention_of_exact_zeros() -> None:
    net = tiny(CONFIGS["small"], 1)
    c_BC = net.representation(inputs(rows(3), [0, 3]))
    assert c_BC.shape == (3, 12) and torch.equal(c_BC[:, 8:], torch.zeros(3, 4).double())
    assert tiny(CONFIGS["fixed scenarios"], 1).representation(inputs(rows(3), [0, 3])).shape == (3, 8)


def test_adding_a_scenario_shifts_no_other_parameters_draw() -> None:
    two, three = tiny(CONFIGS["small"], 2).state_dict(), tiny(CONFIGS["small"], 3).state_dict()
    same = [name for name in two if not name.startswith("attention")]
    assert same and all(torch.equal(two[name], three[name]) for name in same)


def test_every_expert_is_drawn_as_a_layer_of_its_own_with_a_variance_of_one_over_its_inputs() -> None:
    bank = HiNet(HiNetConfig(), shape(2, 2, width=64), seed=0).gates[0].experts
    assert bank.in_weight.abs().max() <= (3 / 192) ** 0.5 < bank.in_weight.abs().max() * 1.01
    assert bank.out_weight.abs().max() <= (3 / 128) ** 0.5 < bank.out_weight.abs().max() * 1.01
    assert bank.in_bias[-4:].abs().max() == 0


@pytest.mark.parametrize("field", ["num_shared_experts", "expert_width", "task_hidden"])
def test_a_width_below_one_is_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: 0 is not allowed; at least 1"):
        HiNetConfig(**{field: 0})
