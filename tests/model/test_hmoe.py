"""HMoE against a row-at-a-time float64 reference in probabilities, and what its equations imply."""

import pytest
import torch
from torch import Tensor

from model.hmoe import HMoE, HMoEConfig
from model.scenario_admission import foreign_admission
from model.towers import Towers
from tests.model.network_checks import (
    Parameters,
    assert_equals_reference,
    assert_grows,
    assert_relabelling_changes_nothing,
    reached,
    rows,
    shaken,
    without_gradient,
)
from tests.model.networks import inputs, run, shape
from tests.model.plain_layers import bank, mixed, per_row, relu, softmax, tower

WIDTH, TASKS = 5, 2
CONFIG = HMoEConfig(num_experts=3, expert_hidden=5, expert_width=4, gate_hidden=4, tower=(6,))
SCENARIO_B = [2, 0, 1, 0, 2, 2, 0]


def tiny(num_scenarios: int = 3, seed: int = 0, config: HMoEConfig = CONFIG) -> HMoE:
    return shaken(HMoE(config, shape(num_scenarios, TASKS, width=WIDTH), seed=seed))


def hidden_gate(p: Parameters, hidden: str, out: str, j: int, x: Tensor) -> list[Tensor]:
    """Returns the logits of one task's gate with a hidden layer."""
    width = p[f"{out}.weight"].shape[1]
    units = relu(p[f"{hidden}.weight"] @ x + p[f"{hidden}.bias"])[j * width : (j + 1) * width]
    return list(p[f"{out}.weight"][j].T @ units + p[f"{out}.bias"][j, 0])


def reference(p: Parameters, x_BD: Tensor, scenario_B: list[int]) -> Tensor:
    """Returns the logit of H = w_t S_t + sum_j w_j stopgrad(S_j), all in probabilities."""
    rho_MM = foreign_admission(p["share_M"], p["donor_M"])

    def row_logits(x: Tensor, i: int) -> list[Tensor]:
        outputs = [expert(x) for expert in bank(p, "experts")[0]]
        logits = []
        for j in range(TASKS):
            scores, v = [], []
            for m in range(len(rho_MM)):
                gate = softmax(hidden_gate(p, f"gates.{m}.0", f"gates.{m}.1", j, x))
                score = torch.sigmoid(tower(p, f"towers.{m}", j, mixed(gate, outputs)))
                scores.append(score if m == i else score.detach())
                v += hidden_gate(p, "scenario_hidden", f"scenario_logits.{m}", j, x)
            asks = [1.0 if m == i else float(rho_MM[i, m]) for m in range(len(rho_MM))]
            answer = mixed(softmax(v, asks), scores)
            logits.append(torch.log(answer) - torch.log(1 - answer))
        return logits

    return per_row(row_logits, x_BD, scenario_B)


@pytest.mark.parametrize("num_scenarios", [1, 2, 3])
def test_logits_and_gradients_equal_the_reference(num_scenarios: int) -> None:
    scenario_B = [i % num_scenarios for i in SCENARIO_B]
    assert_equals_reference(
        tiny(num_scenarios),
        lambda p, x_BD: reference(p, x_BD, scenario_B),
        rows(7, WIDTH),
        lambda net, x_BD: run(net, x_BD, scenario_B),
    )


def test_the_logit_is_that_of_the_probability_to_twelve_digits() -> None:
    net, x_BD = tiny(), rows(7, WIDTH)
    ours_BT, expected_BT = run(net, x_BD, SCENARIO_B), reference(dict(net.state_dict()), x_BD, SCENARIO_B)
    assert torch.allclose(ours_BT, expected_BT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_scenario_that_is_not_open_yet_is_asked_by_its_share(share: float) -> None:
    net = tiny()
    net.add_scenario(0)
    net.open_scenario(3, share)
    scenario_B = [3, *SCENARIO_B]
    assert_equals_reference(
        shaken(net),
        lambda p, x_BD: reference(p, x_BD, scenario_B),
        rows(8, WIDTH),
        lambda net, x_BD: run(net, x_BD, scenario_B),
    )


@pytest.mark.parametrize("num_scenarios", [1, 3])
def test_logits_are_continuous_while_a_scenario_opens(num_scenarios: int) -> None:
    net, x_BD, at = tiny(num_scenarios), rows(4, WIDTH), []
    new = net.add_scenario(0)
    for share in (0.0, 1e-9, 1.0 - 1e-9, 1.0):
        net.open_scenario(new, share)
        at.append(run(net, x_BD, [0, new, new, 0]))
    assert torch.allclose(at[0], at[1], atol=1e-7) and torch.allclose(at[2], at[3], atol=1e-7)
    net.towers[new].start_at(0, 0.99)
    assert not torch.allclose(run(net, x_BD, [0, new, new, 0]), at[3], atol=1e-3)


def test_gradcheck_of_the_tasks_part() -> None:
    net = tiny(2)
    c_BC = net.representation(inputs(rows(3, WIDTH), [0, 1, 3])).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda c_BC: net.task_logits(c_BC, [0, 1, 3]), (c_BC,))


@pytest.mark.parametrize("num_scenarios", [1, 3])
@pytest.mark.parametrize("score", [-60.0, 60.0])
def test_float32_logits_and_gradients_are_finite_at_sixty(num_scenarios: int, score: float) -> None:
    net = tiny(num_scenarios).float()
    with torch.no_grad():
        for index, towers in enumerate(net.towers):
            assert isinstance(towers, Towers)
            towers.biases[-1][:] = score if index % 2 == 0 else 60.0
    logits_BT = run(net, rows(4, WIDTH).float(), [0, num_scenarios - 1, 0, num_scenarios - 1])
    logits_BT.sum().backward()
    assert logits_BT.isfinite().all() and (num_scenarios > 1 or logits_BT.abs().min() > 50)
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_a_loss_on_one_head_reaches_the_experts_its_gate_and_tower_and_the_gate_over_scenarios() -> None:
    net = tiny(config=HMoEConfig(num_experts=3, expert_hidden=8, expert_width=6, gate_hidden=8, tower=(8,)))
    logits_BT = run(net, rows(20, WIDTH), [b % 3 for b in range(20)])
    own = ("experts.", "gates.0.", "towers.0.", "scenario_hidden.", "scenario_logits.")
    expected = {name for name, _ in net.named_parameters() if name.startswith(own)}
    assert reached(net, logits_BT[::3, 0].square().sum()) == expected
    for grad in (
        net.towers[0].weights[0].grad,
        net.gates[0][0].weight.grad.view(TASKS, -1),
        net.gates[0][1].weight.grad,
        net.scenario_hidden.weight.grad.view(TASKS, -1),
        net.scenario_logits[1].weight.grad,
    ):
        assert grad[0].abs().sum() > 0 and grad[1].abs().sum() == 0


def test_a_scenario_without_rows_answers_but_learns_nothing() -> None:
    net = tiny()
    run(net, rows(4, WIDTH), [0, 2, 2, 0]).sum().backward()
    absent = {name for name, _ in net.named_parameters() if name.startswith(("gates.1.", "towers.1."))}
    assert without_gradient(net) == absent


def test_relabelling_scenarios_with_their_parameters_changes_nothing() -> None:
    assert_relabelling_changes_nothing(tiny(), tiny(seed=9), rows(7, WIDTH), SCENARIO_B, [1, 2, 0])


@pytest.mark.parametrize("num_scenarios", [1, 2, 3, 7, 15])
def test_a_new_scenario_starts_as_its_donor_and_moves_no_bit_of_the_others(num_scenarios: int) -> None:
    net = tiny(num_scenarios).float()
    assert_grows(net, rows(40, WIDTH).float())
    assert_grows(net, rows(40, WIDTH).float())


def test_gate_usage_tells_what_experts_and_scenarios_got() -> None:
    net = tiny()
    net.add_scenario(0)
    usage = net.gate_usage(inputs(rows(5, WIDTH), [0, 2, 2, 2, 5]))
    shapes = {(one.gate, one.scenario, one.task): tuple(one.weight_BK.shape) for one in usage}
    expected = {
        (gate, i, j): (n, k)
        for gate, k in (("experts", 3), ("scenarios", 4))
        for i, n in ((0, 2), (3, 3))
        for j in (0, 1)
    }
    assert shapes == expected and len(usage) == len(shapes)
    closed = {
        (one.scenario, m) for one in usage if one.gate == "scenarios" for m in range(4) if not one.weight_BK[:, m].any()
    }
    assert closed == {(0, 3), (3, 0)}
    assert all(torch.allclose(one.weight_BK.sum(dim=1), torch.ones(()).double()) for one in usage)
