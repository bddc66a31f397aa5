"""AESM2 against a row-at-a-time float64 reference, and what its selection promises."""

import math

import pytest
import torch
from torch import Tensor

from model.aesm2 import AESM2, AESM2Config
from model.expert_selection import select_experts
from model.inputs import RowInputs
from model.network import Network, NetworkInputs
from tests.model.network_checks import (
    Parameters,
    assert_equals_reference,
    assert_gradcheck,
    assert_rows_stand_alone,
    reached,
    rows,
    shaken,
    without_gradient,
)
from tests.model.networks import inputs, offsets, run, shape

WIDTH = 5
SIZES = {"num_experts": 5, "expert_hidden": 3, "expert_width": 4, "embedding": 2, "tower": (3,)}
CONFIGS = {
    "one each": AESM2Config(**SIZES, num_specific=1, num_shared=1),
    "unequal counts": AESM2Config(**SIZES, num_specific=3, num_shared=2),
    "two scenario layers": AESM2Config(**SIZES, num_specific=2, num_shared=2, scenario_layers=2),
}
SEEN = (("scenario_layer.0", None), ("task_layer", 0), ("task_layer", 1))
SCENARIO_B = [0, 0, 1, 1, 1, 2]


def tiny(name: str = "unequal counts", num_scenarios: int = 3) -> AESM2:
    return shaken(AESM2(CONFIGS[name], shape(num_scenarios, 2, width=WIDTH), seed=0))


def train(net: Network, x_BD: Tensor, scenario_B: list[int], seed: int = 0) -> Tensor:
    """Returns the logits of a training forward, rows sorted by scenario."""
    row_offsets, noise = offsets(scenario_B, net.num_scenarios), torch.Generator().manual_seed(seed)
    return net(NetworkInputs(x=RowInputs(x_BD), row_offsets=row_offsets, noise=noise))


class Reference:
    """One row, one layer, one expert at a time."""

    def __init__(self, p: Parameters, config: AESM2Config, num_tasks: int = 2) -> None:
        self.p, self.config, self.num_tasks = p, config, num_tasks
        self.divergences: dict[str, list[Tensor]] = {}

    def layer(self, name: str, x: Tensor, context: Tensor, own: int, num_alternatives: int) -> Tensor:
        p, n, hidden = self.p, self.config.num_experts, self.config.expert_hidden
        w_in, b_in = p[f"{name}.experts.in_weight"], p[f"{name}.experts.in_bias"]
        w_out, b_out = p[f"{name}.experts.out_weight"], p[f"{name}.experts.out_bias"]
        h = [[torch.zeros(())] * n for _ in range(num_alternatives)]
        for m in range(num_alternatives):
            for k in range(n):
                place = n * hidden + m * n + k
                h[m][k] = w_in[place] @ x + b_in[place] + p[f"{name}.context_weight"][m * n + k] @ context
        specific, shared = [], []
        for k in range(n):
            total = sum(torch.exp(h[m][k]) for m in range(num_alternatives))
            p_k = [torch.exp(h[m][k]) / total for m in range(num_alternatives)]
            specific.append(-torch.log(p_k[own]))
            uniform = 1 / num_alternatives
            shared.append(sum((uniform * torch.log(uniform / one) for one in p_k), torch.zeros(())))
        selected = set()
        for divergence, count in ((specific, self.config.num_specific), (shared, self.config.num_shared)):
            nearest = sorted(range(n), key=lambda k: divergence[k].item())[:count]
            selected |= set(nearest)
            self.divergences.setdefault(name, []).append(sum((divergence[k] for k in nearest), torch.zeros(())) / count)
        total = sum(torch.exp(h[own][k]) for k in selected)
        out = torch.zeros(self.config.expert_width)
        for k in selected:
            inner = torch.clamp(w_in[k * hidden : (k + 1) * hidden] @ x + b_in[k * hidden : (k + 1) * hidden], min=0)
            out = out + torch.exp(h[own][k]) / total * torch.clamp(w_out[k].T @ inner + b_out[k, 0], min=0)
        return out

    def row(self, x: Tensor, i: int, num_scenarios: int) -> Tensor:
        p, u, embedding = self.p, x, self.p[f"embeddings.{i}.row"]
        for number in range(self.config.scenario_layers):
            u = self.layer(f"scenario_layers.{number}", u, embedding, i, num_scenarios)
        logits = []
        for j in range(self.num_tasks):
            context = torch.cat([embedding, p["task_embeddings.rows"][j]])
            z = self.layer("task_layer", u, context, j, self.num_tasks)
            for layer in range(len(self.config.tower) + 1):
                z = torch.clamp(z, min=0) if layer else z
                z = p[f"towers.{i}.weights.{layer}"][j].T @ z + p[f"towers.{i}.biases.{layer}"][j, 0]
            logits.append(z[0])
        return torch.stack(logits)

    def logits(self, x_BD: Tensor, scenario_B: list[int], num_scenarios: int) -> Tensor:
        return torch.stack([self.row(x, i, num_scenarios) for x, i in zip(x_BD, scenario_B, strict=True)])

    def auxiliary_loss(self) -> Tensor:
        """Returns delta times the sum over layers of the two means over all their queries."""
        layers = [2 * torch.stack(parts).mean() for parts in self.divergences.values()]
        return self.config.divergence_weight * sum(layers, torch.zeros(()))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_scenarios", [1, 2, 3])
def test_logits_and_gradients_equal_the_reference(name: str, num_scenarios: int) -> None:
    scenario_B = [b * 2 % 5 % num_scenarios for b in range(6)]
    assert_equals_reference(
        tiny(name, num_scenarios),
        lambda p, x_BD: Reference(p, CONFIGS[name]).logits(x_BD, scenario_B, num_scenarios),
        rows(6, WIDTH),
        lambda net, x_BD: run(net, x_BD, scenario_B),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_training_forward_adds_to_the_loss_equals_the_reference(name: str) -> None:
    def with_loss(logits_BT: Tensor, loss: Tensor | None) -> Tensor:
        assert loss is not None
        return torch.cat([logits_BT.flatten(), 100 * loss[None]])[:, None]

    def ours(net: Network, x_BD: Tensor) -> Tensor:
        return with_loss(train(net, x_BD, SCENARIO_B), net.auxiliary_loss())

    def expected(p: Parameters, x_BD: Tensor) -> Tensor:
        one = Reference(p, CONFIGS[name])
        return with_loss(one.logits(x_BD, SCENARIO_B, 3), one.auxiliary_loss())

    assert_equals_reference(tiny(name), expected, rows(6, WIDTH), ours)


def test_gradcheck_of_input_and_parameters() -> None:
    sizes = {"num_experts": 3, "expert_hidden": 2, "expert_width": 2, "embedding": 1, "tower": ()}
    config = AESM2Config(**sizes, num_specific=1, num_shared=1)
    net = shaken(AESM2(config, shape(2, 2, width=WIDTH), seed=0))
    assert_gradcheck(net, rows(3, WIDTH), lambda call, x_BD: call(inputs(x_BD, [0, 1, 3])))


def test_those_nearest_to_their_own_and_to_all_are_selected_by_mask_and_once() -> None:
    # Expert 0 is the first alternative's, 1 the second's, 2 everybody's, 3 the third's; all logits are negative.
    h_MN = torch.tensor([[-1.0, -9.0, -3.0, -7.0], [-5.0, -3.0, -3.0, -7.0], [-5.0, -9.0, -3.0, -2.0]])
    h_11MN, own_11 = h_MN[None, None], torch.tensor([[0]])
    weight, divergence = select_experts(h_11MN, own_11, 1, 1)
    assert weight[0, 0].tolist() == pytest.approx([1 / (1 + math.exp(-2)), 0, 1 / (1 + math.exp(2)), 0])
    assert weight[0, 0, [1, 3]].tolist() == [0.0, 0.0]
    assert divergence.item() == pytest.approx(math.log(1 + 2 * math.exp(-4)), rel=1e-5)
    twice, _ = select_experts(h_11MN, own_11, 2, 1)  # expert 2 is both the second most specific and shared
    assert torch.equal(twice, weight)


def test_noise_is_drawn_from_the_generator_in_training_only() -> None:
    config = AESM2Config(**SIZES, num_specific=1, num_shared=1, noise=2.0)
    net, quiet, x_BD = shaken(AESM2(config, shape(3, 2, width=WIDTH), seed=0)), tiny("one each"), rows(6, WIDTH)
    evaluated_BT = run(net, x_BD, SCENARIO_B)
    assert torch.equal(evaluated_BT, run(quiet, x_BD, SCENARIO_B))
    assert torch.equal(train(quiet, x_BD, SCENARIO_B), evaluated_BT) and quiet.scores_as_it_learns
    first, again, other = (train(net, x_BD, SCENARIO_B, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and not net.scores_as_it_learns
    assert torch.equal(run(net, x_BD, SCENARIO_B), evaluated_BT)


def test_scoring_neither_makes_nor_loses_what_is_added_to_the_loss() -> None:
    net, x_BD = tiny(), rows(6, WIDTH)
    run(net, x_BD, SCENARIO_B)
    assert net.auxiliary_loss() is None
    train(net, x_BD, SCENARIO_B)
    loss = net.auxiliary_loss()
    run(net, x_BD * 2, SCENARIO_B)
    after = net.auxiliary_loss()
    assert loss is not None and after is not None and torch.equal(loss, after)
    net.after_step()
    assert net.auxiliary_loss() is None


def test_a_loss_on_one_scenario_reaches_no_foreign_tower_or_embedding() -> None:
    net, names = tiny(), {name for name, _ in tiny().named_parameters()}

    def of(scenario: int) -> set[str]:
        return {name for name in names if name.startswith((f"towers.{scenario}.", f"embeddings.{scenario}."))}

    one_scenario = run(net, rows(12, WIDTH), SCENARIO_B * 2)[[0, 1, 6, 7]].square().sum()
    assert reached(net, one_scenario) == names - of(1) - of(2)
    net.zero_grad()
    run(net, rows(5, WIDTH), [0, 0, 2, 2, 2]).sum().backward()
    assert without_gradient(net) == of(1) != set()


def test_a_loss_on_one_task_reaches_no_other_tasks_tower() -> None:
    net = tiny()
    run(net, rows(6, WIDTH), [0] * 6)[:, 1].sum().backward()
    grad = net.towers[0].weights[0].grad
    assert grad[1].abs().sum() > 0 and grad[0].abs().sum() == 0


def test_permuting_experts_with_their_gates_changes_nothing() -> None:
    net, x_BD = tiny(), rows(6, WIDTH)
    before, order, hidden = run(net, x_BD, SCENARIO_B), [3, 0, 4, 1, 2], SIZES["expert_hidden"]
    with torch.no_grad():
        for layer, num_alternatives in ((net.scenario_layers[0], 3), (net.task_layer, 2)):
            gates = torch.cat([torch.tensor(order) + 5 * m for m in range(num_alternatives)])
            first = torch.cat([torch.arange(hidden) + hidden * k for k in order] + [5 * hidden + gates])
            bank = layer.experts
            for parameter, index in (
                (bank.in_weight, first),
                (bank.in_bias, first),
                (bank.out_weight, order),
                (bank.out_bias, order),
                (layer.context_weight, gates),
            ):
                parameter.copy_(parameter[index])
    assert torch.allclose(run(net, x_BD, SCENARIO_B), before, rtol=0, atol=1e-12)


def test_usage_shows_a_dead_expert_and_the_weights_that_mixed() -> None:
    net, x_BD = tiny("one each"), rows(30, WIDTH)
    with torch.no_grad():  # expert 2 is far from everybody's, and scenario 1's by gates that no row is near
        for layer, num_alternatives in ((net.scenario_layers[0], 3), (net.task_layer, 2)):
            gate_bias = layer.experts.in_bias[-5 * num_alternatives :].view(num_alternatives, 5)
            gate_bias[:, 2] = torch.tensor([-40.0, -40.0, 0.0])[-num_alternatives:]
    scenario_B = sorted([0, 1] * 15)
    given = inputs(x_BD, offsets(scenario_B, 3))
    usage = net.gate_usage(given)
    places = {(one.gate, one.scenario, one.task) for one in usage}
    assert places == {(gate, i, t) for i in (0, 1) for gate, t in SEEN} and len(usage) == len(places)
    for one in usage:
        assert one.weight_BK.shape == (15, 5) and torch.allclose(one.weight_BK.sum(dim=1), torch.ones(15).double())
        assert ((one.weight_BK > 0).sum(dim=1) <= 2).all()
    assert all((one.weight_BK[:, 2] == 0).all() for one in usage if one.gate == "scenario_layer.0")
    experts_nBd, _ = net.scenario_layers[0].experts(RowInputs(x_BD[:15]))
    weight_BK = next(one.weight_BK for one in usage if one.gate == "scenario_layer.0" and one.scenario == 0)
    mixed_Bd = torch.einsum("bk,kbd->bd", weight_BK, experts_nBd)
    assert torch.allclose(net.representation(given)[:15, :4], mixed_Bd, rtol=0, atol=1e-12)


def test_rows_stand_alone_and_scenarios_are_names() -> None:
    net, scenario_B = tiny(), [2, 0, 0, 1, 2, 2, 0]
    assert_rows_stand_alone(net, rows(7, WIDTH), scenario_B)
    before, order = run(net, rows(7, WIDTH), scenario_B), [1, 2, 0]
    layer, twin = net.scenario_layers[0], tiny()
    twin.load_state_dict(net.state_dict())
    moved = torch.cat([torch.arange(5) + 5 * order.index(m) for m in range(3)])  # gates are in one bank
    with torch.no_grad():
        for ours, theirs in (
            (layer.experts.in_weight[-15:], twin.scenario_layers[0].experts.in_weight[-15:]),
            (layer.experts.in_bias[-15:], twin.scenario_layers[0].experts.in_bias[-15:]),
            (layer.context_weight, twin.scenario_layers[0].context_weight),
        ):
            theirs.copy_(ours[moved])
    for ours, theirs in zip(net.scenario_lists(), twin.scenario_lists(), strict=True):
        for scenario, place in enumerate(order):
            theirs[place].load_state_dict(ours[scenario].state_dict())
    relabelled = run(twin, rows(7, WIDTH), [order[i] for i in scenario_B])
    assert torch.allclose(relabelled, before, rtol=0, atol=1e-12)


def test_it_refuses_to_grow_in_one_line() -> None:
    with pytest.raises(ValueError, match="^architecture: aesm2 is not allowed with a new scenario; [^\n]*$"):
        tiny().add_scenario(0)


def test_logits_start_near_the_prior_in_every_scenario() -> None:
    net = AESM2(AESM2Config(), shape(2, 2, width=WIDTH), seed=0)
    net.start_at(1, 0.02)
    p_BT = run(net, rows(50, WIDTH).float(), [0, 1] * 25).sigmoid()
    assert 0.01 < p_BT[:, 1].mean() < 0.04 and 0.3 < p_BT[:, 0].mean() < 0.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, "num_experts: 0 is not allowed; at least 1"),
        ({"num_specific": 11}, "num_specific: 11 is not allowed; at most num_experts, 10"),
        ({"noise": -1.0}, "noise: -1.0 is not allowed; finite, at least 0"),
        ({"divergence_weight": math.inf}, "divergence_weight: inf is not allowed; finite, at least 0"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AESM2Config(**changes)


def test_the_default_size() -> None:
    net = AESM2(AESM2Config(), shape(3, 2, width=320), seed=None)
    assert sum(parameter.numel() for parameter in net.parameters()) == 684_008
