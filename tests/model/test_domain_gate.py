"""PEPNet's EPNet as a switch in front of HiNet."""

import copy

import pytest
import torch

from model.config import ModelConfig
from model.domain_gate import DomainGate
from model.epnet import EPNetConfig
from model.hinet import HiNet
from model.hinet_config import HiNetConfig
from model.learner import Learner
from model.network import NetworkShape
from tests.model.network_checks import (
    assert_grows,
    assert_relabelling_changes_nothing,
    assert_rows_stand_alone,
    reached,
    rows,
    shaken,
    without_gradient,
)
from tests.model.networks import run
from tests.model.worlds import SCHEMA, TINY_NET

WIDTH = 6
GATE_PARAMETERS = ("in_weight", "in_bias", "out_weight", "out_bias")
GATE = EPNetConfig(scenario_embedding=2, hidden=3)
NO_ATTENTION = HiNetConfig(expert_hidden=5, expert_width=4, task_hidden=5, task_width=4, tower=(3,), san="none")


def tiny(seed: int = 0) -> DomainGate:
    shape = NetworkShape(blocks=("user_id", "item_id"), block_width=3, num_scenarios=3, tasks=("click", "order"))
    return shaken(DomainGate(GATE, HiNet(NO_ATTENTION, shape, seed=seed), seed=seed))


def test_the_network_behind_the_gate_sees_gated_rows() -> None:
    net, x_BD, scenario_B = tiny(), rows(7, WIDTH), [0, 0, 1, 1, 1, 2, 2]
    gated_BD = torch.zeros_like(x_BD)
    for row, (x, i) in enumerate(zip(x_BD, scenario_B, strict=True)):
        gate, z = net.epnet.gate, torch.cat([net.epnet.embeddings[i].row, x])
        hidden = torch.clamp(gate.in_weight @ z + gate.in_bias, min=0)
        gated_BD[row] = x * 2 / (1 + torch.exp(-(gate.out_weight[0].T @ hidden + gate.out_bias[0, 0])))
    assert not torch.allclose(gated_BD, x_BD)
    assert torch.allclose(run(net, x_BD, scenario_B), run(net.network, gated_BD, scenario_B), rtol=0, atol=1e-12)


def test_a_gate_of_ones_is_the_network_without_it() -> None:
    net, x_BD, scenario_B = tiny(), rows(7, WIDTH), [2, 0, 0, 1, 2, 2, 0]
    with torch.no_grad():
        net.epnet.gate.out_weight.zero_()
        net.epnet.gate.out_bias.zero_()
    assert torch.equal(run(net, x_BD, scenario_B), run(net.network, x_BD, scenario_B))


def test_a_loss_on_one_scenario_reaches_the_gate_and_no_foreign_embedding() -> None:
    net, gate = tiny(), {"epnet.embeddings.0.row", *(f"epnet.gate.{one}" for one in GATE_PARAMETERS)}
    touched = reached(net, run(net, rows(9, WIDTH), [0, 1, 2] * 3)[::3].square().sum())
    assert {name for name in touched if name.startswith("epnet.")} == gate
    assert {name for name in without_gradient(net) if name.startswith("epnet.")} == set()
    net.zero_grad()
    run(net, rows(4, WIDTH), [0, 2, 2, 0]).sum().backward()
    assert {name for name in without_gradient(net) if name.startswith("epnet.")} == {"epnet.embeddings.1.row"}


def test_rows_stand_alone_scenarios_are_names_and_a_new_one_starts_as_its_donor() -> None:
    net, scenario_B = tiny(), [2, 0, 0, 1, 2, 2, 0]
    assert_rows_stand_alone(net, rows(7, WIDTH), scenario_B)
    assert_relabelling_changes_nothing(net, tiny(seed=3), rows(7, WIDTH), scenario_B, [1, 2, 0])
    assert_grows(net, rows(40, WIDTH))


def test_a_configuration_puts_it_in_front_and_changes_no_draw_of_the_network() -> None:
    gated = Learner(SCHEMA, ModelConfig(preset="custom", hinet=TINY_NET, domain_gate=GATE), seed=0).trained.net
    plain = Learner(SCHEMA, ModelConfig(preset="custom", hinet=TINY_NET), seed=0).trained.net
    assert isinstance(gated, DomainGate)
    ours, theirs = copy.deepcopy(gated.network.state_dict()), plain.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_it_is_refused_where_the_network_has_one() -> None:
    with pytest.raises(
        ValueError, match="^domain_gate: given with architecture: pepnet is not allowed; pepnet.domain_"
    ):
        ModelConfig(architecture="pepnet", domain_gate=GATE)
