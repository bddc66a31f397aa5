"""The attention-based MMoE against a row-at-a-time float64 reference, and what its equations imply."""

import math

import pytest
import torch
from torch import Tensor

from model.attention_mmoe import AttentionMMoE, AttentionMMoEConfig
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
from tests.model.plain_layers import bank, mixed, per_row, permute_experts, softmax, tower

WIDTH = 5
CONFIGS = {
    "small": AttentionMMoEConfig(num_experts=3, expert_hidden=4, expert_width=4, key_width=2, tower=(6,)),
    "linear tower": AttentionMMoEConfig(num_experts=4, expert_hidden=3, expert_width=4, key_width=5, tower=()),
}
SCENARIO_B = [2, 0, 1, 0, 2, 2, 0]


def tiny(name: str = "small", num_scenarios: int = 3, seed: int = 0) -> AttentionMMoE:
    return shaken(AttentionMMoE(CONFIGS[name], shape(num_scenarios, 2, width=WIDTH), seed=seed))


def reference(p: Parameters, x_BD: Tensor, scenario_B: list[int], config: AttentionMMoEConfig) -> Tensor:
    def row_logits(x: Tensor, i: int) -> list[Tensor]:
        outputs = [expert(x) for expert in bank(p, "experts")[0]]
        keys = [torch.tanh(p["keys.weight"] @ output + p["keys.bias"]) for output in outputs]
        logits = []
        for j in range(2):
            query = p[f"queries.{i}.query"][j]
            weights = softmax([key @ query / math.sqrt(config.key_width) for key in keys])
            logits.append(tower(p, f"towers.{i}", j, mixed(weights, outputs)))
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


def test_gradcheck_of_input_and_parameters() -> None:
    assert_gradcheck(tiny(num_scenarios=2), rows(3, WIDTH), lambda net, x_BD: net(inputs(x_BD, [0, 1, 3])))


def test_a_loss_on_one_head_reaches_experts_and_keys_and_its_own_query_and_tower() -> None:
    net = tiny()
    logits_BT = run(net, rows(7, WIDTH), SCENARIO_B)
    own = ("experts.", "keys.", "queries.0.", "towers.0.")
    expected = {name for name, _ in net.named_parameters() if name.startswith(own)}
    assert reached(net, logits_BT[[1, 3, 6], 0].square().sum()) == expected
    for grad in (net.queries[0].query.grad, net.towers[0].weights[0].grad):
        assert grad[0].abs().sum() > 0 and grad[1].abs().sum() == 0


def test_a_scenario_without_rows_gets_no_gradient() -> None:
    net = tiny()
    run(net, rows(4, WIDTH), [0, 2, 2, 0]).sum().backward()
    absent = {name for name, _ in net.named_parameters() if name.startswith(("queries.1.", "towers.1."))}
    assert without_gradient(net) == absent


def test_permuting_experts_changes_nothing() -> None:
    net, x_BD = tiny(), rows(7, WIDTH)
    before_BT = run(net, x_BD, SCENARIO_B)
    permute_experts(net.experts, [2, 0, 1])
    assert torch.allclose(run(net, x_BD, SCENARIO_B), before_BT, rtol=0, atol=1e-12)


def test_relabelling_scenarios_with_their_parameters_changes_nothing() -> None:
    assert_relabelling_changes_nothing(tiny(), tiny(seed=9), rows(7, WIDTH), SCENARIO_B, [1, 2, 0])


def test_queries_start_normal_with_variance_one_over_their_width() -> None:
    config = AttentionMMoEConfig(num_experts=1, key_width=64)
    net = AttentionMMoE(config, shape(20, 4, width=WIDTH), seed=0)
    queries = torch.cat([queries.query.flatten() for queries in net.queries])
    assert queries.std().item() == pytest.approx(1 / 8, rel=0.05) and queries.abs().max() > 3 / 8


def test_weights_vary_with_the_row_and_the_task() -> None:
    usage = tiny().gate_usage(inputs(rows(5, WIDTH), [0, 0, 5, 5]))
    assert [(one.gate, one.scenario, one.task) for one in usage] == [("experts", 1, 0), ("experts", 1, 1)]
    assert usage[0].weight_BK.std(dim=0).min() > 0
    assert not torch.allclose(usage[0].weight_BK, usage[1].weight_BK)
