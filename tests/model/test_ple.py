"""PLE and CGC against a row-at-a-time float64 reference, and what their equations imply."""

import pytest
import torch
from torch import Tensor

from model.ple import PLE
from model.ple_levels import PLEConfig
from tests.model.network_checks import (
    Parameters,
    assert_equals_reference,
    assert_gradcheck,
    assert_grows,
    assert_relabelling_changes_nothing,
    reached,
    rows,
    shaken,
    without_gradient,
)
from tests.model.networks import inputs, run, shape
from tests.model.plain_layers import bank, linear_rows, mixed, per_row, permute_experts, softmax, tower

WIDTH, TASKS = 5, 2
TINY = {"expert_hidden": 5, "expert_width": 4, "tower": (6,)}
CONFIGS = {
    "ple": PLEConfig(**TINY),
    "cgc": PLEConfig(**TINY, levels=1, num_task_experts=2),
    "three levels": PLEConfig(**TINY, levels=3),
    "unequal counts": PLEConfig(expert_hidden=4, expert_width=3, tower=(), num_task_experts=2, num_shared_experts=3),
}
SCENARIO_B = [2, 0, 1, 0, 2, 2, 0]


def tiny(name: str = "ple", num_scenarios: int = 3, seed: int = 0) -> PLE:
    return shaken(PLE(CONFIGS[name], shape(num_scenarios, TASKS, width=WIDTH), seed=seed))


def reference(p: Parameters, x_BD: Tensor, scenario_B: list[int], config: PLEConfig) -> Tensor:
    num_scenarios, own, seen = (
        len(p["rho_M"]),
        config.num_task_experts,
        config.num_task_experts + config.num_shared_experts,
    )
    heads = [(m, j) for m in range(num_scenarios) for j in range(TASKS)]

    def row_logits(x: Tensor, i: int) -> list[Tensor]:
        u, shared_u = dict.fromkeys(heads, x), x
        for level in range(config.levels):
            shared_experts, shared_gate = bank(p, f"levels.{level}.shared.experts")
            shared = [expert(shared_u) for expert in shared_experts]
            outputs, mixes = {}, {}
            for m, j in heads:
                name = f"levels.{level}.scenarios.{m}"
                if level == 0:
                    experts = bank(p, f"{name}.experts.0")[0][j * own : (j + 1) * own]
                    gate = linear_rows(p, f"{name}.gates.0")[j * seen : (j + 1) * seen]
                else:
                    experts, gate = bank(p, f"{name}.experts.{j}")[0], linear_rows(p, f"{name}.gates.{j}")
                outputs[m, j] = [expert(u[m, j]) for expert in experts]
                mixes[m, j] = mixed(softmax([row(u[m, j]) for row in gate]), outputs[m, j] + shared)
            if level < config.levels - 1:
                z, factors, features = [row(shared_u) for row in shared_gate], [1.0] * len(shared), list(shared)
                for m in range(num_scenarios):
                    z += [row(shared_u) for row in linear_rows(p, f"levels.{level}.shared.gates.{m}")]
                    factors += [p["rho_M"][m]] * TASKS * own
                    features += [output for j in range(TASKS) for output in outputs[m, j]]
                shared_u = mixed(softmax(z, factors), features)
            u = mixes
        return [tower(p, f"towers.{i}", j, u[i, j]) for j in range(TASKS)]

    return per_row(row_logits, x_BD, scenario_B)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_scenarios", [1, 3])
def test_logits_and_gradients_equal_the_reference(name: str, num_scenarios: int) -> None:
    scenario_B = [i % num_scenarios for i in SCENARIO_B]
    assert_equals_reference(
        tiny(name, num_scenarios),
        lambda p, x_BD: reference(p, x_BD, scenario_B, CONFIGS[name]),
        rows(7, WIDTH),
        lambda net, x_BD: run(net, x_BD, scenario_B),
    )


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_scenario_that_is_not_open_yet_weighs_its_share_in_the_shared_gates(share: float) -> None:
    net = tiny("three levels")
    net.add_scenario(0)
    net.open_scenario(3, share)
    scenario_B = [3, *SCENARIO_B]
    assert_equals_reference(
        shaken(net),
        lambda p, x_BD: reference(p, x_BD, scenario_B, CONFIGS["three levels"]),
        rows(8, WIDTH),
        lambda net, x_BD: run(net, x_BD, scenario_B),
    )


def test_logits_are_continuous_while_a_scenario_opens() -> None:
    net, x_BD = tiny(), rows(6, WIDTH)
    net.add_scenario(1)
    at = []
    for share in (0.0, 1e-9, 1.0 - 1e-9, 1.0):
        net.open_scenario(3, share)
        at.append(run(net, x_BD, [0, 1, 2, 3, 3, 0]))
    assert torch.allclose(at[0], at[1], atol=1e-7) and torch.allclose(at[2], at[3], atol=1e-7)
    assert not torch.allclose(at[1], at[2], atol=1e-4)


def test_gradcheck_of_input_and_parameters() -> None:
    config = PLEConfig(expert_hidden=2, expert_width=2, tower=())
    net = shaken(PLE(config, shape(2, 1, width=2), seed=0))
    assert_gradcheck(net, rows(3, 2), lambda net, x_BD: net(inputs(x_BD, [0, 1, 3])))


OF_EVERY_SCENARIO = tuple(
    f"levels.0.{name}" for name in (*(f"scenarios.{m}.experts." for m in range(3)), "shared.", "scenarios.0.gates.")
)


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("cgc", ("levels.0.scenarios.0.", "levels.0.shared.", "towers.0.")),
        (
            "ple",
            (
                *OF_EVERY_SCENARIO,
                *(f"levels.1.{one}" for one in ("scenarios.0.experts.0", "scenarios.0.gates.0", "shared.")),
                "towers.0.",
            ),
        ),
        (
            "three levels",
            (
                *OF_EVERY_SCENARIO,
                *(f"levels.0.scenarios.{m}.gates." for m in (1, 2)),
                *(f"levels.1.scenarios.{m}.experts." for m in range(3)),
                "levels.1.scenarios.0.gates.0",
                "levels.1.shared.",
                *(f"levels.2.{one}" for one in ("scenarios.0.experts.0", "scenarios.0.gates.0", "shared.")),
                "towers.0.",
            ),
        ),
    ],
)
def test_a_loss_on_one_head_reaches_other_heads_experts_below_the_last_level_only(
    name: str, prefixes: tuple[str, ...]
) -> None:
    net = shaken(
        PLE(PLEConfig(expert_hidden=16, expert_width=8, tower=(8,), levels=CONFIGS[name].levels), SHAPE, seed=0)
    )
    logits_BT = run(net, rows(20, WIDTH), [b % 3 for b in range(20)])
    expected = {one for one, _ in net.named_parameters() if one.startswith(prefixes)}
    assert reached(net, logits_BT[::3, 0].square().sum()) == expected
    for grad in (net.towers[0].weights[0].grad, net.levels[0].scenarios[0].gates[0].weight.grad.view(TASKS, -1)):
        assert grad[0].abs().sum() > 0 and (name == "three levels" or grad[1].abs().sum() == 0)


SHAPE = shape(3, TASKS, width=WIDTH)


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("cgc", ("levels.0.scenarios.1.", "towers.1.")),
        ("ple", ("levels.0.scenarios.1.gates.", "levels.1.scenarios.1.", "towers.1.")),
        ("three levels", ("levels.1.scenarios.1.gates.", "levels.2.scenarios.1.", "towers.1.")),
    ],
)
def test_what_a_scenario_without_rows_does_not_run_gets_no_gradient(name: str, absent: tuple[str, ...]) -> None:
    net = tiny(name)
    run(net, rows(4, WIDTH), [0, 2, 2, 0]).sum().backward()
    assert without_gradient(net) == {one for one, _ in net.named_parameters() if one.startswith(absent)}


def test_permuting_shared_experts_with_their_gates_changes_nothing() -> None:
    net, x_BD, order = tiny("unequal counts"), rows(7, WIDTH), [2, 0, 1]
    before_BT = run(net, x_BD, SCENARIO_B)
    shared = net.levels[0].shared.experts
    permute_experts(shared, order)
    assert not torch.allclose(run(net, x_BD, SCENARIO_B), before_BT, atol=1e-3)
    with torch.no_grad():
        for parameter in (shared.in_weight, shared.in_bias):
            parameter[-3:] = parameter[-3:][order]
        for heads in net.levels[0].scenarios:
            for parameter in heads.gates.parameters():
                parameter.copy_(parameter[[0, 1, *(2 + k for k in order), 5, 6, *(7 + k for k in order)]])
    assert torch.allclose(run(net, x_BD, SCENARIO_B), before_BT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_relabelling_scenarios_with_their_parameters_changes_nothing(name: str) -> None:
    assert_relabelling_changes_nothing(tiny(name), tiny(name, seed=9), rows(7, WIDTH), SCENARIO_B, [1, 2, 0])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_scenarios", [1, 2, 3, 7])
def test_a_new_scenario_starts_as_its_donor_and_moves_no_bit_of_the_others(name: str, num_scenarios: int) -> None:
    net = tiny(name, num_scenarios).float()
    assert_grows(net, rows(40, WIDTH).float())
    assert_grows(net, rows(40, WIDTH).float())


def test_gate_usage_names_every_gate_of_every_level() -> None:
    usage = tiny("three levels").gate_usage(inputs(rows(5, WIDTH), [0, 2, 2, 5]))
    shapes = {(one.gate, one.scenario, one.task): tuple(one.weight_BK.shape) for one in usage}
    expected = {(f"level{n}", i, j): (size, 2) for n in (1, 2, 3) for i, size in ((0, 2), (2, 3)) for j in (0, 1)}
    shared = {(f"level{n}.shared", i, None): (size, 7) for n in (1, 2) for i, size in ((0, 2), (2, 3))}
    assert shapes == expected | shared and len(usage) == len(shapes)
    assert all(torch.allclose(one.weight_BK.sum(dim=1), torch.ones(()).double()) for one in usage)


def test_a_level_less_network_is_refused() -> None:
    with pytest.raises(ValueError, match="levels: 0 is not allowed; at least 1"):
        PLEConfig(levels=0)
