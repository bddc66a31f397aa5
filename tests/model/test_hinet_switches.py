"""HiNet's switches: what each of them changes, and which go together. Their equations: `test_hinet`."""

from dataclasses import fields, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from model.foreign_heads import foreign_heads_loss
from model.hinet import HiNet
from model.hinet_config import HiNetConfig
from model.inputs import RowInputs
from model.learner import Learner
from model.network import NetworkInputs
from model.step_report import StepReport
from tests.model import hinet_reference as reference
from tests.model.networks import inputs, run, shape
from tests.model.test_hinet import CONFIGS, TINY, WIDTH, rows, tiny
from tests.model.worlds import SCHEMA, TINY_NET, columns, labels, tiny_config

torch.set_num_threads(1)
SCENARIOS = [0, 1, 2, 0, 1]
RELEASED = replace(HiNetConfig.released(), **TINY, tower=(3,))


def live_count(net: HiNet) -> int:
    """Returns the parameters of the scenarios there are: the attention has room for more."""
    free = {name: parameter[net.num_scenarios :].numel() for name, parameter in net.named_parameters()}
    room = sum(free[name] for name in net.row_parameters())
    return sum(parameter.numel() for parameter in net.parameters()) - room


def test_parameter_counts_of_the_published_size_and_of_the_released_code() -> None:
    world = shape(6, 2, width=128)
    assert live_count(HiNet(HiNetConfig.published(), world, seed=None)) == 2_267_685
    one_layer = replace(HiNetConfig.published(), task_layer="global")
    assert live_count(HiNet(one_layer, world, seed=None)) == 1_938_085
    bottleneck = replace(one_layer, san_gate="relu_bottleneck")
    assert live_count(HiNet(bottleneck, world, seed=None)) == 1_938_085 - 774 + 17_037
    assert live_count(HiNet(HiNetConfig.released(), world, seed=None)) == 1_938_085 - 774 + 17_037 + 2 * 128


def test_the_released_code_has_every_switch_at_its_other_value() -> None:
    released, published = HiNetConfig.released(), HiNetConfig.published()
    differing = {one.name for one in fields(HiNetConfig) if getattr(released, one.name) != getattr(published, one.name)}
    switches = (
        "san_softmax san_gate gate_activation cgc_gate task_layer concat_order input_affine sei_dropout loss_rows"
    )
    assert differing == set(switches.split())


def test_softmax_over_all_leaves_the_others_less_than_one() -> None:
    net = tiny(CONFIGS["softmax over all"], 6)
    assert net.attention is not None
    z_MM = (net.attention.embedding @ net.attention.weight.T + net.attention.bias)[:6, :6]
    own_M = z_MM.softmax(dim=1).diagonal()
    assert torch.allclose(net.attention().sum(dim=1), 1.0 - own_M) and net.attention().diagonal().abs().max() == 0
    with torch.no_grad():
        net.attention.weight.zero_()
        net.attention.bias.zero_()
    assert torch.allclose(net.attention().sum(dim=1), torch.full((6,), 5 / 6).double())


def test_the_bottleneck_has_one_unit_for_all_scenarios() -> None:
    net = tiny(CONFIGS["bottleneck"], 4)
    assert net.attention is not None and net.attention.bottleneck is not None
    unit_N1 = net.attention.bottleneck(net.attention.embedding)
    assert unit_N1.shape == (64, 1) and unit_N1.min() >= 0
    with torch.no_grad():
        net.attention.embedding[1] = net.attention.embedding[0]
    a_MM = net.attention()
    assert torch.allclose(a_MM[0, 2] / a_MM[0, 3], a_MM[1, 2] / a_MM[1, 3])


def test_relu_before_the_softmax_takes_the_difference_from_negative_logits() -> None:
    net, x = tiny(CONFIGS["relu gates"], 2), RowInputs(rows(4))
    experts = net.shared.experts if net.shared is not None else None
    assert experts is not None
    _, gate_BK = experts(x)
    assert (gate_BK < 0).any()
    assert net.shared is not None and torch.allclose(net.shared.gate_weights(x), gate_BK.clamp_min(0).softmax(dim=1))


def test_the_sum_of_experts_gives_the_gates_no_gradient() -> None:
    net = tiny(CONFIGS["sum of experts"], 2)
    run(net, rows(4), [0, 1, 1, 0]).square().sum().backward()
    for cgc in net.gates:
        grad = cgc.experts.in_weight.grad
        assert grad is not None and grad[-4:].abs().max() == 0 and grad[:-4].abs().max() > 0


def test_the_global_layers_shared_experts_learn_from_every_scenario() -> None:
    for scenario in range(3):
        net = tiny(CONFIGS["global task layer"], 3)
        run(net, rows(3), [scenario] * 3).square().sum().backward()
        assert net.shared_task_experts is not None and net.shared_task_experts.out_weight.grad is not None
        assert net.shared_task_experts.out_weight.grad.abs().sum() > 0
        assert [cgc.experts.out_weight.grad is not None for cgc in net.gates] == [m == scenario for m in range(3)]


def test_the_concat_order_permutes_c_and_nothing_else() -> None:
    gsa, asg = (tiny(CONFIGS[name], 3).representation(inputs(rows(5), [0, 2, 4, 5])) for name in ("small", "asg"))
    assert torch.equal(torch.cat(gsa.split(4, dim=1)[::-1], dim=1), asg)


def test_the_affine_starts_as_the_identity() -> None:
    plain, affine = (HiNet(CONFIGS[name], shape(3, 2, width=WIDTH), seed=0).double() for name in ("small", "affine"))
    assert torch.equal(run(plain, rows(5), SCENARIOS), run(affine, rows(5), SCENARIOS))


def test_detached_attention_has_the_logits_of_the_attached_one() -> None:
    attached, detached = (tiny(CONFIGS[name], 3) for name in ("small", "detached attention"))
    assert torch.equal(run(attached, rows(5), SCENARIOS), run(detached, rows(5), SCENARIOS))


def noisy(net: HiNet, x_BD: Tensor, row_offsets: list[int], seed: int) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return net(NetworkInputs(x=RowInputs(x_BD), row_offsets=row_offsets, noise=noise))


def test_dropout_of_a_training_forward_equals_the_reference() -> None:
    config = HiNetConfig(**TINY, sei_dropout=0.4, num_shared_experts=3, tower=(3,))
    net, x_BD, scenario_B = tiny(config, 3), rows(5), [0, 0, 1, 2, 2]
    noise = torch.Generator().manual_seed(3)
    kept_B: list[reference.Kept] = [{} for _ in scenario_B]
    for name, num_experts in (("scenarios.0", 2), ("scenarios.1", 2), ("scenarios.2", 2), ("shared", 3)):
        masks = [(torch.rand(num_experts, 5, width, generator=noise) >= 0.4) / 0.6 for width in (5, 4)]
        for b, kept in enumerate(kept_B):
            assert kept is not None
            kept[name] = (masks[0][:, b].double(), masks[1][:, b].double())
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    expected_BT = reference.logits(parameters, config, x_BD, scenario_B, 3, kept_B)
    ours_BT = noisy(net, x_BD, [0, 2, 3, 5], seed=3)
    assert torch.allclose(ours_BT, expected_BT, rtol=0, atol=1e-6)
    assert not torch.allclose(ours_BT, noisy(net, x_BD, [0, 2, 3, 5], seed=4))


def test_dropout_is_of_training_forwards_only_and_says_so() -> None:
    config = HiNetConfig(**TINY, sei_dropout=0.4, tower=(3,))
    net, plain = tiny(config, 3), tiny(CONFIGS["small"], 3)
    assert torch.equal(run(net, rows(5), SCENARIOS), run(plain, rows(5), SCENARIOS))
    assert torch.equal(noisy(plain, rows(5), [0, 2, 3, 5], seed=3), plain(inputs(rows(5), [0, 2, 3, 5])))
    assert (net.scores_as_it_learns, plain.scores_as_it_learns) == (False, True)


def test_all_head_logits_are_every_scenarios_heads_on_the_rows_own_c() -> None:
    net, x_BD = tiny(CONFIGS["global task layer"], 3), rows(5)
    given = inputs(x_BD, [0, 2, 4, 5])
    c_BC = net.representation(given)
    all_BMT = net.all_head_logits(c_BC)
    own_BT = all_BMT[torch.arange(5), torch.tensor([0, 0, 1, 1, 2])]
    assert all_BMT.shape == (5, 3, 2) and torch.allclose(own_BT, net(given), rtol=0, atol=1e-12)
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    expected = torch.stack([reference.heads(parameters, net.config, c_BC[4], m) for m in range(3)])
    assert torch.allclose(all_BMT[4], expected, rtol=0, atol=1e-12)


def test_loss_of_foreign_heads_takes_every_row_for_a_negative() -> None:
    rng = np.random.default_rng(0)
    logits_BMT, weight_BT, lambda_BT = (
        torch.from_numpy(rng.random(size) + 0.5) for size in ((4, 3, 2), (4, 2), (4, 2))
    )
    weight_BT[0, 0] = 7.0
    mask_BT = torch.from_numpy(rng.random((4, 2)) < 0.7)
    scenario_B = torch.tensor([0, 1, 1, 2])
    expected_T = [0.0, 0.0]
    for b, own in enumerate(scenario_B.tolist()):
        for m in range(3):
            for j in range(2):
                if m != own and mask_BT[b, j]:
                    negative = -np.log(1.0 - 1.0 / (1.0 + np.exp(-logits_BMT[b, m, j].item())))
                    expected_T[j] += lambda_BT[b, j].item() * min(weight_BT[b, j].item(), 5.0) * negative / 4
    ours_T = foreign_heads_loss(logits_BMT, scenario_B, mask_BT, weight_BT, lambda_BT, max_weight=5.0, num_rows=4)
    assert torch.allclose(ours_T, torch.tensor(expected_T).double(), rtol=1e-12)


def step(
    config: HiNetConfig, tasks_on: tuple[bool, bool] = (True, True)
) -> tuple[Learner, set[str], StepReport, Tensor]:
    """Makes a step on rows of `home` and `search`. Returns learner, moved parameters, report, and the scores before."""
    learner, rng = Learner(SCHEMA, tiny_config(hinet=config), 0), np.random.default_rng(0)
    batch, given = learner.encode(columns(rng, 6, 24)), labels(rng, 24)
    rows_B = np.flatnonzero(batch.scenario_B != 2)
    batch, given = batch.take(rows_B), given.take(rows_B)
    given = replace(given, mask_BT=np.tile(tasks_on, (len(rows_B), 1)))
    learner.trained.has_negative_MT[:] = True  # positives are learned at once
    before = {name: parameter.detach().clone() for name, parameter in learner.trained.net.named_parameters()}
    scores_BT = torch.from_numpy(learner.score(batch))
    report = learner.learn(batch, given)
    after = dict(learner.trained.net.named_parameters())
    return learner, {name for name in before if not torch.equal(before[name], after[name])}, report, scores_BT


GLOBAL = replace(TINY_NET, task_layer="global")


@pytest.mark.parametrize("loss_rows", ["own", "all"])
def test_rows_of_other_scenarios_move_a_head_only_if_the_loss_has_all_rows(loss_rows: Literal["own", "all"]) -> None:
    _, moved, report, scores_BT = step(replace(GLOBAL, loss_rows=loss_rows))
    assert any(name.startswith("towers.0.") for name in moved)
    assert any(name.startswith("towers.2.") for name in moved) == (loss_rows == "all")
    assert torch.equal(torch.from_numpy(report.logits_BT), scores_BT)


def test_rows_of_all_scenarios_lower_the_logits_of_foreign_heads() -> None:
    learner, _, report, _ = step(replace(GLOBAL, loss_rows="all"))
    own = step(GLOBAL)[2]
    assert report.loss > own.loss + 1.0  # two foreign heads and two tasks, about log 2 each
    assert learner.trained.net.learns_foreign_heads


def test_a_task_whose_masks_are_all_off_leaves_its_towers_alone() -> None:
    learner, moved, _, _ = step(replace(TINY_NET, tower=(8,)), tasks_on=(True, False))
    assert "towers.0.weights.0" in moved
    adam = learner.trained.adam.state[learner.trained.parameters["towers.0.weights.0"]]
    assert adam["exp_avg"][0].abs().max() > 0 and adam["exp_avg"][1].abs().max() == 0


def test_the_released_network_trains_on_dropped_out_features_and_scores_without() -> None:
    config = replace(HiNetConfig.released(), **TINY, tower=(3,))
    learner, moved, report, scores_BT = step(config)
    assert report.made and {"affine.scale", "shared_task_experts.out_weight", "towers.2.biases.0"} <= moved
    assert torch.equal(torch.from_numpy(report.logits_BT), scores_BT)
    twin = step(config)[0]
    for name, parameter in learner.trained.net.named_parameters():
        assert torch.equal(parameter, dict(twin.trained.net.named_parameters())[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hierarchy": False}, "san: on is not allowed with hierarchy: False; none"),
        (
            {"hierarchy": False, "san": "none", "sei_dropout": 0.1},
            "sei_dropout: 0.1 is not allowed with hierarchy: False",
        ),
        (
            {"san": "none", "san_gate": "relu_bottleneck"},
            "san_gate: relu_bottleneck is not allowed with san: none; linear",
        ),
        ({"san": "none", "san_softmax": "all_then_zero"}, "san_softmax: all_then_zero is not allowed with san: none"),
        ({"loss_rows": "all"}, "task_layer: per_scenario is not allowed with loss_rows: all; global"),
        ({"sei_dropout": 1.0}, "sei_dropout: 1.0 is not allowed; at least 0, below 1"),
        ({"san_capacity": 0}, "san_capacity: 0 is not allowed; at least 1"),
        (
            {"scenario_init": "shared", "num_scenario_experts": 3},
            "num_scenario_experts: 3 is not allowed with scenario_init: shared; 2",
        ),
    ],
)
def test_a_bad_combination_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        HiNetConfig(**settings)
    assert "\n" not in str(refused.value)
