"""PEPNet against a row-at-a-time float64 reference, and what its gates may not do."""

import pytest
import torch
from torch import Tensor

from model.epnet import EPNetConfig
from model.network import NetworkShape
from model.pepnet import PEPNet, PEPNetConfig
from tests.model.network_checks import (
    Parameters,
    assert_equals_reference,
    assert_gradcheck,
    assert_grows,
    assert_relabelling_changes_nothing,
    assert_rows_stand_alone,
    reached,
    rows,
    shaken,
    without_gradient,
)
from tests.model.networks import inputs, run

BLOCKS = ("user_id", "context.device", "item_id")
WIDTH = 6
GATE = EPNetConfig(scenario_embedding=2, hidden=3)
SIZES = {"domain_gate": GATE, "gate_hidden": 3}
CONFIGS = {
    "small": PEPNetConfig(**SIZES, tower=(4,)),
    "two layers": PEPNetConfig(**SIZES, tower=(4, 3)),
    "linear towers": PEPNetConfig(**SIZES, tower=()),
    "fields": PEPNetConfig(
        domain_gate=EPNetConfig(scenario_embedding=2, hidden=3, scenario_fields=("context.device",)),
        gate_hidden=3,
        tower=(4,),
        prior_fields=("item_id",),
    ),
}


def shape(num_scenarios: int, blocks: tuple[str, ...] = BLOCKS, width: int = 2) -> NetworkShape:
    return NetworkShape(blocks=blocks, block_width=width, num_scenarios=num_scenarios, tasks=("click", "order"))


def tiny(name: str = "small", num_scenarios: int = 3) -> PEPNet:
    return shaken(PEPNet(CONFIGS[name], shape(num_scenarios), seed=0))


def gate(p: Parameters, name: str, task: int, z: Tensor) -> Tensor:
    w_in, b_in, w_out, b_out = (p[f"{name}.{one}"] for one in ("in_weight", "in_bias", "out_weight", "out_bias"))
    own = slice(task * w_out.shape[1], (task + 1) * w_out.shape[1])
    hidden = torch.clamp(w_in[own] @ z + b_in[own], min=0)
    return 2 / (1 + torch.exp(-(w_out[task].T @ hidden + b_out[task, 0])))


def reference(p: Parameters, x_BD: Tensor, scenario_B: list[int], config: PEPNetConfig) -> Tensor:
    logits = []
    for x, i in zip(x_BD, scenario_B, strict=True):
        field = {name: x[2 * place : 2 * place + 2] for place, name in enumerate(BLOCKS)}
        described = [
            p[f"domain_gate.embeddings.{i}.row"],
            *(field[name] for name in config.domain_gate.scenario_fields),
        ]
        o = gate(p, "domain_gate.gate", 0, torch.cat([*described, x.detach()])) * x
        z = torch.cat([*(field[name] for name in config.prior_fields), o.detach()])
        row = []
        for j in range(2):
            u = o
            for layer in range(len(config.tower) + 1):
                u = torch.clamp(u, min=0) if layer else u
                u = gate(p, f"towers.gates.{layer}", j, z) * u
                u = p[f"towers.weights.{layer}"][j].T @ u + p[f"towers.biases.{layer}"][j, 0]
            row.append(u[0])
        logits.append(torch.stack(row))
    return torch.stack(logits)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_scenarios", [1, 2, 3])
def test_logits_and_gradients_equal_the_reference(name: str, num_scenarios: int) -> None:
    scenario_B = [b * 2 % 5 % num_scenarios for b in range(7)]
    assert_equals_reference(
        tiny(name, num_scenarios),
        lambda p, x_BD: reference(p, x_BD, scenario_B, CONFIGS[name]),
        rows(7, WIDTH),
        lambda net, x_BD: run(net, x_BD, scenario_B),
    )


def test_gradcheck_of_the_parameters() -> None:
    # Piece by piece: finite differences see through a stopped gradient.
    net = shaken(
        PEPNet(
            PEPNetConfig(domain_gate=EPNetConfig(scenario_embedding=1, hidden=2), gate_hidden=2, tower=(2,)),
            shape(2),
            seed=0,
        )
    )
    o_BD, z_BZ = rows(3, WIDTH), rows(3, 10, seed=1)
    assert_gradcheck(net.towers, z_BZ, lambda call, z_BZ: call(o_BD, z_BZ))
    assert_gradcheck(net.domain_gate.gate, rows(3, 7), lambda call, x_BD: call(x_BD))


def test_a_gate_does_not_drag_the_embeddings() -> None:
    net, x_BD = tiny(), rows(4, WIDTH).requires_grad_()
    o_BD = net.representation(inputs(x_BD, [0, 2, 2, 4]))[:, 4:]
    (grad_BD,) = torch.autograd.grad(o_BD.sum(), x_BD)
    assert torch.allclose(grad_BD, o_BD / x_BD, rtol=0, atol=1e-12)


def test_every_gate_is_near_one_at_first_and_between_zero_and_two_always() -> None:
    net, x_BD = PEPNet(PEPNetConfig(), shape(2, width=16), seed=0), 0.1 * rows(50, 48).float()
    z_BZ = net.representation(inputs(x_BD, [0, 25, 50]))
    assert (z_BZ[:, 32:] / x_BD - 1).abs().max() < 0.3
    for layer in net.towers.gates:
        assert (layer(z_BZ) - 1).abs().max() < 0.3
        wild_TBd = layer(1e4 * z_BZ)
        assert wild_TBd.min() >= 0 and wild_TBd.max() <= 2


def test_a_loss_on_one_scenario_reaches_no_foreign_embedding() -> None:
    net = tiny()
    names = {name for name, _ in net.named_parameters()}
    foreign = {"domain_gate.embeddings.1.row", "domain_gate.embeddings.2.row"}
    assert reached(net, run(net, rows(9, WIDTH), [0, 1, 2] * 3)[::3].square().sum()) == names - foreign
    net.zero_grad()
    run(net, rows(4, WIDTH), [0, 2, 2, 0]).sum().backward()
    assert without_gradient(net) == {"domain_gate.embeddings.1.row"}


def test_a_loss_on_one_task_reaches_no_other_tasks_tower_or_gates() -> None:
    net = tiny("two layers")
    run(net, rows(9, WIDTH), [0, 1, 2] * 3)[:, 0].sum().backward()
    stacked = [*net.towers.weights, *net.towers.biases]
    for layer in net.towers.gates:
        stacked += [layer.out_weight, layer.out_bias]
        own, foreign = layer.in_weight.grad.chunk(2)
        assert own.abs().sum() > 0 and foreign.abs().sum() == 0
    for parameter in stacked:
        assert parameter.grad[0].abs().sum() > 0 and parameter.grad[1].abs().sum() == 0


def test_rows_stand_alone_scenarios_are_names_and_a_new_one_starts_as_its_donor() -> None:
    net, scenario_B = tiny(), [2, 0, 0, 1, 2, 2, 0]
    assert_rows_stand_alone(net, rows(7, WIDTH), scenario_B)
    assert_relabelling_changes_nothing(net, tiny(), rows(7, WIDTH), scenario_B, [1, 2, 0])
    assert_grows(net, rows(40, WIDTH))


def test_logits_start_near_the_prior_in_every_scenario() -> None:
    net = PEPNet(PEPNetConfig(), shape(2), seed=0)
    net.start_at(1, 0.02)
    p_BT = run(net, rows(50, WIDTH).float(), [0, 1] * 25).sigmoid()
    assert 0.01 < p_BT[:, 1].mean() < 0.04 and 0.3 < p_BT[:, 0].mean() < 0.7


@pytest.mark.parametrize(
    ("setting", "config"),
    [
        ("pepnet.prior_fields", PEPNetConfig(prior_fields=("item.author",))),
        ("scenario_fields", PEPNetConfig(domain_gate=EPNetConfig(scenario_fields=("item.author",)))),
    ],
)
def test_a_field_that_is_not_there_is_refused_in_one_line(setting: str, config: PEPNetConfig) -> None:
    with pytest.raises(ValueError, match=f"^{setting}: 'item.author' is not a field of this model; user_id, [^\n]*$"):
        PEPNet(config, shape(2), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior_fields": ()}, r"prior_fields: \(\) is not allowed; at least one field"),
        ({"gate_hidden": 0}, "gate_hidden: 0 is not allowed; at least 1"),
        ({"tower": (3, 0)}, r"tower: \(3, 0\) is not allowed; at least 1"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PEPNetConfig(**changes)  # type: ignore[arg-type] # the point of the test


def test_the_default_size() -> None:
    net = PEPNet(PEPNetConfig(), shape(3, ("user_id", "item_id", *"abcdefghijklmnopqr"), 16), seed=None)
    assert sum(parameter.numel() for parameter in net.parameters()) == 718_066
