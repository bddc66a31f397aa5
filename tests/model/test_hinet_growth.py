"""A HiNet that gets scenarios while it learns: what it keeps to the bit, and how a new scenario opens."""

import copy

import pytest
import torch
from torch import Tensor

from model.hinet import HiNet
from model.hinet_config import HiNetConfig
from tests.model.networks import inputs, shape
from tests.model.test_hinet import TINY

torch.set_num_threads(1)
WIDTH = 48
ROWS = 7


def grown_rows() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def build(num_scenarios: int, config: HiNetConfig | None = None) -> HiNet:
    config = config or HiNetConfig(expert_hidden=32, expert_width=16, task_hidden=32, task_width=16)
    return HiNet(config, shape(num_scenarios, 2, width=WIDTH), seed=1)


def only(scenario: int, num_scenarios: int) -> list[int]:
    """Returns the offsets of a batch whose rows are all of one scenario."""
    return [0] * (scenario + 1) + [ROWS] * (num_scenarios - scenario)


def spread(num_scenarios: int, num_all: int) -> list[int]:
    """Returns the offsets of a batch over the first scenarios; the others have no rows."""
    bounds = [round(ROWS * m / num_scenarios) for m in range(num_scenarios + 1)]
    return bounds + [ROWS] * (num_all - num_scenarios)


def scores(net: HiNet, row_offsets: list[int]) -> Tensor:
    with torch.no_grad():
        return net(inputs(grown_rows(), row_offsets))


@pytest.mark.parametrize("num_scenarios", [*range(1, 20), 31, 32, 33])
def test_old_rows_keep_their_bits_and_new_rows_get_the_donors(num_scenarios: int) -> None:
    net, donor = build(num_scenarios), num_scenarios // 2
    before = scores(net, spread(num_scenarios, num_scenarios))
    donors = scores(net, only(donor, num_scenarios))
    index = net.add_scenario(donor)
    assert index == num_scenarios and net.num_scenarios == num_scenarios + 1
    assert torch.equal(scores(net, spread(num_scenarios, num_scenarios + 1)), before)
    assert torch.equal(scores(net, only(index, num_scenarios + 1)), donors)


@pytest.mark.parametrize("num_scenarios", [1, 3, 7])
def test_the_preset_small_keeps_its_bits(num_scenarios: int) -> None:
    net = build(num_scenarios, HiNetConfig())
    before = scores(net, spread(num_scenarios, num_scenarios))
    net.add_scenario(0)
    assert torch.equal(scores(net, spread(num_scenarios, num_scenarios + 1)), before)


@pytest.mark.parametrize("settings", [{"san": "none"}, {"san": "none", "hierarchy": False}, {"task_layer": "global"}])
def test_other_forms_of_the_network_keep_their_bits(settings: dict[str, object]) -> None:
    net = build(3, HiNetConfig(**TINY, **settings))  # type: ignore[arg-type]  # the fields' own types
    before, donors = scores(net, spread(3, 3)), scores(net, only(1, 3))
    net.add_scenario(1)
    assert torch.equal(scores(net, spread(3, 4)), before) and torch.equal(scores(net, only(3, 4)), donors)


@pytest.mark.parametrize("init", ["shared", "random"])
def test_a_scenario_that_starts_otherwise_keeps_the_old_ones_bits(init: str) -> None:
    net = build(3, HiNetConfig(**TINY, scenario_init=init))  # type: ignore[arg-type]  # the field's own type
    before, donors = scores(net, spread(3, 3)), scores(net, only(1, 3))
    net.add_scenario(1)
    assert torch.equal(scores(net, spread(3, 4)), before)
    assert not torch.equal(scores(net, only(3, 4)), donors)
    state = net.state_dict()
    name = "scenarios.3.experts.in_weight"
    expected = state["shared.experts.in_weight"] if init == "shared" else build(4, net.config).state_dict()[name]
    assert torch.equal(state[name], expected)
    assert torch.equal(state["towers.3.weights.0"], state["towers.1.weights.0"])


def test_old_rows_give_the_new_scenario_no_gradient_and_no_nan_to_anybody() -> None:
    for num_scenarios in (1, 2, 3):
        net = build(num_scenarios)
        net.add_scenario(0)
        net(inputs(grown_rows(), only(0, num_scenarios + 1))).square().sum().backward()
        grads = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
        assert all(grad.isfinite().all() for grad in grads.values())
        new = [grad for name, grad in grads.items() if name.startswith(f"scenarios.{num_scenarios}.")]
        assert new and all(grad.abs().max() == 0 for grad in new)
        rows = [grads[name][num_scenarios] for name in net.row_parameters()]
        assert all(row.abs().max() == 0 for row in rows)


def table(net: HiNet) -> Tensor:
    assert net.attention is not None
    return net.attention().detach()


def rho(net: HiNet) -> Tensor:
    assert net.attention is not None
    return net.attention.log_rho_NN[: net.num_scenarios, : net.num_scenarios].exp()


def test_the_second_scenario_opens_by_its_share() -> None:
    net = build(1)
    net.add_scenario(0)
    assert torch.equal(table(net), torch.zeros(2, 2))
    for share in (0.25, 1.0):
        net.open_scenario(1, share)
        assert torch.allclose(table(net), share * (1.0 - torch.eye(2)))


def test_outputs_are_continuous_while_a_scenario_opens() -> None:
    net = build(3)
    net.add_scenario(1)
    tables = []
    for step in range(101):
        net.open_scenario(3, step / 100)
        tables.append(table(net))
    jumps = torch.stack([(after - before).abs().max() for before, after in zip(tables, tables[1:], strict=False)])
    assert jumps.max() < 0.02 and (tables[-1] - tables[0]).abs().max() > 0.1
    full = build(4)
    full.load_state_dict(dict(net.named_parameters()), strict=False)
    assert torch.equal(table(full), tables[-1])


def test_a_scenario_whose_donor_is_still_opening_sees_what_the_donor_sees() -> None:
    net = build(2)
    net.add_scenario(0)
    net.open_scenario(2, 0.25)
    donors, before = scores(net, only(2, 3)), scores(net, spread(3, 3))
    net.add_scenario(2)
    assert torch.equal(scores(net, only(3, 4)), donors) and torch.equal(scores(net, spread(3, 4)), before)
    net.open_scenario(2, 0.5)
    expected = [[0, 1, 0.5, 0], [1, 0, 0.5, 0], [0.5, 1, 0, 0], [0.5, 1, 0, 0]]
    assert torch.allclose(rho(net), torch.tensor(expected))
    net.open_scenario(3, 1.0)
    net.open_scenario(2, 1.0)
    assert torch.equal(rho(net), 1.0 - torch.eye(4))


def test_closing_a_scenario_takes_it_from_the_others() -> None:
    net = build(3)
    net.open_scenario(1, 0.0)
    assert torch.equal(table(net)[:, 1], torch.zeros(3)) and torch.equal(table(net)[0], torch.tensor([0.0, 0.0, 1.0]))


def test_a_grown_network_loads_into_one_built_for_as_many_scenarios() -> None:
    net = build(3)
    net.add_scenario(2)
    net.open_scenario(3, 0.5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.01
    other = HiNet(net.config, shape(4, 2, width=WIDTH), seed=None)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    assert torch.equal(scores(other, spread(4, 4)), scores(net, spread(4, 4)))
    net.add_scenario(0)
    other.add_scenario(0)
    net.open_scenario(4, 0.5)
    other.open_scenario(4, 0.5)
    assert torch.equal(scores(other, spread(5, 5)), scores(net, spread(5, 5)))


def test_beyond_its_room_the_table_grows_and_scores_stay_but_for_rounding() -> None:
    config = HiNetConfig(**TINY, san_capacity=2)
    net = build(2, config)
    before = scores(net, spread(2, 2))
    net.add_scenario(1)
    assert net.attention is not None and net.attention.log_rho_NN.shape == (4, 4)
    assert torch.allclose(scores(net, spread(2, 3)), before, rtol=0, atol=1e-6)
    assert {name: tuple(t.shape) for name, t in net.state_dict().items()} == {
        name: tuple(t.shape) for name, t in build(3, config).state_dict().items()
    }


@pytest.mark.parametrize(
    ("config", "num_scenarios", "message"),
    [
        (HiNetConfig(**TINY, san_softmax="all_then_zero"), 3, "san_softmax: all_then_zero is not allowed where"),
        (HiNetConfig(**TINY, growable=False), 1, "growable: False is not allowed where"),
    ],
)
def test_a_network_that_cannot_grow_says_why_and_stays_as_it_is(
    config: HiNetConfig, num_scenarios: int, message: str
) -> None:
    net = build(num_scenarios, config)
    with pytest.raises(ValueError, match=message):
        net.add_scenario(0)
    assert net.num_scenarios == num_scenarios == len(net.towers)


@pytest.mark.parametrize(
    ("index", "share", "message"), [(0, 1.5, "share: 1.5"), (2, 0.5, "index: 2 is not allowed; 0 to 1")]
)
def test_an_opening_that_is_none_is_refused(index: int, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(2).open_scenario(index, share)
