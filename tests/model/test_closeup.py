"""The closeup ranker against a row-at-a-time float64 reference, its switches, and how it trains and serves."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from model.closeup import Closeup, CloseupConfig
from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.expert_mlps import ExpertMlps
from model.features import EncodingConfig
from model.inputs import RowInputs
from model.learner import Learner
from model.network import NetworkInputs, NetworkShape
from model.seeding import initialise
from model.sequence_blocks import SequenceBlocksConfig
from model.sequence_encoder import SequenceConfig
from model.sequence_inputs import SequenceInputs
from model.serving import ServingModel
from tests.model import closeup_reference as reference
from tests.model.histories import histories, reordered, visible_actions
from tests.model.networks import offsets
from tests.model.training_checks import trained_and_resumed
from tests.model.worlds import SCHEMA, columns, tiny_config

torch.set_num_threads(1)

WIDTH = 4
BLOCKS = ("user_id", "context.device", "user.city", "history_item", "history_action", "item_id", "history_item*item_id")
GROUPS = (("user_id", "user.city"), ("context.device",), ("history_item", "history_action", "history_item*item_id"))
GROUPS += (("item_id",),)
SEQUENCE = SequenceConfig(newest=2, hidden=3, num_layers=1)
TINY = {"sequence": SEQUENCE, "group_hidden": 5, "token_width": 4, "mixer_hidden": 3, "num_experts": 3}
CONFIGS = {
    "append": CloseupConfig(**TINY, expert=(4, 3)),
    "early": CloseupConfig(**TINY | {"sequence": dataclasses.replace(SEQUENCE, fusion="early")}, expert=(4,)),
    "no residual": CloseupConfig(**TINY, expert=(4, 3), residual=False),
    "deep experts": CloseupConfig(**TINY, expert=(4, 3, 2)),
    "one expert": CloseupConfig(**TINY | {"num_experts": 1}, expert=(3,)),
}


def shape(num_scenarios: int, num_tasks: int = 2) -> NetworkShape:
    tasks = tuple(f"task-{index}" for index in range(num_tasks))
    return NetworkShape(blocks=BLOCKS, block_width=WIDTH, num_scenarios=num_scenarios, tasks=tasks)


def tiny(name: str = "append", num_scenarios: int = 2, **changes: object) -> Closeup:
    net = Closeup(dataclasses.replace(CONFIGS[name], **changes), shape(num_scenarios), seed=0).double()
    with torch.no_grad():  # biases that are zero at the start would hide a missing one
        for one, parameter in net.named_parameters():
            if "bias" in one:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
    return net


def drawn(num_rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(num_rows, WIDTH * len(BLOCKS), generator=generator, dtype=torch.float64)


def given(scenario_B: list[int], num_scenarios: int = 2) -> NetworkInputs:
    """Returns rows sorted by scenario, of three requests, one without a history."""
    sequence = histories([3, 0, 1], [b % 3 for b in range(len(scenario_B))], WIDTH)
    return NetworkInputs(
        x=RowInputs(drawn(len(scenario_B))), row_offsets=offsets(scenario_B, num_scenarios), sequence=sequence
    )


def expected_logits(p: dict[str, Tensor], net: Closeup, inputs: NetworkInputs, scenario_B: list[int]) -> Tensor:
    assert inputs.sequence is not None
    x_BD, sequence, rows = inputs.x.whole(), inputs.sequence, []
    for b, i in enumerate(scenario_B):
        user = sequence.user_RW[int(sequence.request_index_B[b])]
        actions = visible_actions(sequence, b)
        encoder = reference.under("sequence.", p)
        readout = reference.readout(encoder, net._config.sequence, actions, user, sequence.candidate_BW[b])
        groups = [torch.cat([x_BD[b, net.shape.columns(block)] for block in blocks]) for blocks in GROUPS]
        logits = reference.row_logits(p, net._config, [*groups, readout], i, net.shape.num_tasks)
        rows.append(torch.stack(logits))
    return torch.stack(rows)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scenario_B", [[0] * 4, [0, 0, 1, 1, 1], [1, 1, 2]])
def test_logits_and_gradients_equal_the_reference(name: str, scenario_B: list[int]) -> None:
    net, inputs = tiny(name, max(scenario_B) + 1), given(scenario_B, max(scenario_B) + 1)
    ours_BT = net(inputs)
    weight_BT = torch.linspace(-1, 1, ours_BT.numel(), dtype=torch.float64).view_as(ours_BT)
    (ours_BT * weight_BT).sum().backward()
    p = {one: tensor.detach().clone().requires_grad_() for one, tensor in net.named_parameters()}
    expected_BT = expected_logits(p, net, inputs, scenario_B)
    (expected_BT * weight_BT).sum().backward()
    assert torch.allclose(ours_BT, expected_BT, rtol=0, atol=1e-10)
    for one, tensor in net.named_parameters():
        if p[one].grad is None:
            assert tensor.grad is None and one.split(".")[1] not in map(str, scenario_B)
        else:
            assert torch.allclose(tensor.grad, p[one].grad, rtol=0, atol=1e-8), one
    single = dataclasses.replace(
        inputs,
        x=RowInputs(inputs.x.whole().float()),
        sequence=SequenceInputs(
            **{
                field.name: value.float() if value.is_floating_point() else value
                for field in dataclasses.fields(SequenceInputs)
                for value in [getattr(inputs.sequence, field.name)]
            }
        ),
    )
    assert torch.allclose(net.float()(single).double(), expected_BT, rtol=0, atol=1e-5)


def test_gradcheck_on_a_tiny_case() -> None:
    net, inputs = tiny("append"), given([0, 1])
    x_BD = inputs.x.whole().requires_grad_()
    names = ("item_RLW", "action_RLW", "user_RW", "candidate_BW")
    parts = [getattr(inputs.sequence, name).requires_grad_() for name in names]

    def logits(x_BD: Tensor, *parts: Tensor) -> Tensor:
        sequence = dataclasses.replace(inputs.sequence, **dict(zip(names, parts, strict=True)))
        return net(dataclasses.replace(inputs, x=RowInputs(x_BD), sequence=sequence))

    assert torch.autograd.gradcheck(logits, (x_BD, *parts))


def test_a_loss_on_one_scenario_and_task_reaches_no_other_head() -> None:
    net = tiny("append")
    net(given([0, 0, 1]))[0, 1].backward()
    reached = {one for one, tensor in net.named_parameters() if tensor.grad is not None and tensor.grad.any()}
    everything = set(dict(net.named_parameters()))
    assert everything - reached == {
        one for one in everything if ".1." in one and one.split(".")[0] in ("gates", "heads")
    }
    assert not net.gates[0].weight.grad[:3].any() and net.gates[0].weight.grad[3:].any()
    assert not net.heads[0].weights[0].grad[0].any()


def test_actions_beyond_the_newest_ten_are_a_set() -> None:
    net = Closeup(CloseupConfig(), shape(1), seed=0).double()
    sequence = histories([100], [0, 0], WIDTH)
    inputs = NetworkInputs(x=RowInputs(drawn(2)), row_offsets=[0, 2], sequence=sequence)
    order = torch.cat([torch.arange(10), 10 + torch.randperm(90, generator=torch.Generator().manual_seed(0))])
    permuted = dataclasses.replace(inputs, sequence=reordered(sequence, order))
    assert torch.allclose(net(permuted), net(inputs), rtol=0, atol=1e-12)


def test_experts_groups_and_scenarios_are_exchangeable() -> None:
    net, inputs = tiny("append"), given([0, 0, 1, 1])
    ours_BT, state, num_groups = net(inputs), net.state_dict(), len(GROUPS) + 1
    token, num_experts, out = 4, 3, 3

    def other(changes: dict[str, Tensor], group_order: list[int] | None = None) -> Closeup:
        twin = tiny("append")
        twin.load_state_dict(state | changes)
        if group_order:
            twin._columns = [net._columns[g] for g in group_order]
        return twin

    order = torch.tensor([2, 0, 1])
    by_expert = {one: state[one][order] for one in state if one.startswith(("experts.weights", "experts.biases"))}
    for one in ("experts.in_weight", "experts.in_bias"):
        by_expert[one] = state[one].view(num_experts, -1, *state[one].shape[1:])[order].flatten(0, 1)
    for one in (one for one in state if one.startswith("gates.")):
        by_expert[one] = state[one].view(2, num_experts, -1)[:, order].flatten(0, 1).view_as(state[one])
    assert torch.allclose(other(by_expert)(inputs), ours_BT, rtol=0, atol=1e-12)

    groups = [2, 0, 3, 1, 4]  # the read-out stays last; its token is a row like any other
    places = torch.cat([torch.arange(token) + token * g for g in groups])
    by_group = {
        one: state[one.replace(f".{g}.", f".{groups[g]}.", 1)]
        for g in range(num_groups)
        for one in state
        if one.startswith((f"group_hidden.{g}.", f"group_out.{g}."))
    }
    by_group["experts.in_weight"] = state["experts.in_weight"][:, places]
    for i in range(2):
        by_group[f"gates.{i}.weight"] = state[f"gates.{i}.weight"][:, places]
        head = state[f"heads.{i}.weights.0"]
        by_group[f"heads.{i}.weights.0"] = torch.cat([head[:, :out], head[:, out:][:, places]], dim=1)
    twin = tiny("append")
    for name in ("group_hidden", "group_out"):  # groups differ in width: the modules themselves change places
        setattr(twin, name, torch.nn.ModuleList([getattr(twin, name)[g] for g in groups]))
    twin.load_state_dict(state | by_group)
    twin._columns = [net._columns[g] for g in groups[:-1]]
    assert torch.allclose(twin(inputs), ours_BT, rtol=0, atol=1e-12)

    swapped = {one: state[one.replace(".0.", ".x.", 1).replace(".1.", ".0.", 1).replace(".x.", ".1.", 1)]
               for one in state if one.startswith(("gates.", "heads."))}  # fmt: skip
    rows = torch.tensor([2, 3, 0, 1])
    relabelled = NetworkInputs(
        x=RowInputs(inputs.x.whole()[rows]),
        row_offsets=[0, 2, 4],
        sequence=dataclasses.replace(
            inputs.sequence,
            request_index_B=inputs.sequence.request_index_B[rows],
            candidate_BW=inputs.sequence.candidate_BW[rows],
        ),
    )
    assert torch.allclose(other(swapped)(relabelled), ours_BT[rows], rtol=0, atol=1e-12)


def test_m_beside_each_expert_is_m_beside_their_mix() -> None:
    """Because the weights of a gate sum to 1."""
    net, inputs = tiny("append"), given([0, 1])
    p = dict(net.named_parameters())
    groups = [torch.cat([inputs.x.whole()[0, net.shape.columns(block)] for block in blocks]) for blocks in GROUPS]
    groups.append(torch.linspace(-1, 1, net.sequence.width, dtype=torch.float64))
    once, each = (reference.row_logits(p, net._config, groups, 0, 2, concat_each=on) for on in (False, True))
    assert torch.allclose(torch.stack(once), torch.stack(each), rtol=0, atol=1e-12)
    usage = net.gate_usage(inputs)
    assert [(one.scenario, one.task, tuple(one.weight_BK.shape)) for one in usage] == [
        (i, j, (1, 3)) for i in range(2) for j in range(2)
    ]
    assert all(torch.allclose(one.weight_BK.sum(dim=1), torch.ones(1).double()) for one in usage)


def test_a_training_forward_drops_outputs_of_experts_and_keeps_their_mean() -> None:
    experts = ExpertMlps(6, (50,), num_experts=4, dropout=0.2)
    initialise(experts, 0)
    x_BP = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    kept, dropped = experts(x_BP, None), experts(x_BP, torch.Generator().manual_seed(1))
    was_on = kept > 0
    share = (dropped[was_on] == 0).double().mean()
    assert abs(share - 0.2) < 0.01
    assert torch.allclose(dropped[was_on & (dropped > 0)], kept[was_on & (dropped > 0)] / 0.8)
    assert torch.equal(dropped, experts(x_BP, torch.Generator().manual_seed(1)))
    assert [tiny().scores_as_it_learns, tiny(dropout=0.2).scores_as_it_learns] == [True, False]


def test_an_added_scenario_starts_as_its_donor_and_moves_no_other() -> None:
    net, inputs = tiny("append"), given([0, 0, 1, 1])
    before = net(inputs)
    assert net.add_scenario(donor=1) == 2
    assert torch.equal(net(dataclasses.replace(inputs, row_offsets=[0, 2, 4, 4])), before)
    assert torch.equal(net(dataclasses.replace(inputs, row_offsets=[0, 2, 2, 4])), before)


def test_the_default_is_as_large_as_it_says() -> None:
    blocks = ("user_id", *(f"user.{n}" for n in range(5)), *(f"context.{n}" for n in range(4)), "history_item")
    blocks += ("history_action", "item_id", *(f"item.{n}" for n in range(6)), "history_item*item_id")
    large = NetworkShape(blocks=blocks, block_width=16, num_scenarios=3, tasks=("click", "order"))
    assert large.width == 320
    net = Closeup(CloseupConfig(), large, seed=None)
    assert sum(parameter.numel() for parameter in net.parameters()) == 662_118


MODELS = {
    "append": ModelConfig(architecture="closeup", preset="custom", closeup=CONFIGS["append"]),
    "early, all noise": ModelConfig(
        architecture="closeup",
        preset="custom",
        closeup=dataclasses.replace(
            CONFIGS["early"],
            sequence=dataclasses.replace(CONFIGS["early"].sequence, time_mask_ms=86_400_000),
            dropout=0.3,
        ),
    ),
    "hinet": tiny_config(sequence=SequenceBlocksConfig(blocks=2, encoder=SEQUENCE)),
    "hinet in bfloat16": tiny_config(sequence=SequenceBlocksConfig(blocks=2, encoder=SEQUENCE), precision="bfloat16"),
    "append in bfloat16": ModelConfig(
        architecture="closeup", preset="custom", closeup=CONFIGS["append"], precision="bfloat16"
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_resumes_and_serves(name: str) -> None:
    config = dataclasses.replace(MODELS[name], embedding=EmbeddingConfig(width=4))
    rng = np.random.default_rng(0)
    learner = trained_and_resumed(config, rng, num_steps=6)

    serving = ServingModel.from_full(SCHEMA, config, learner.trained.serving_full())
    slack = 2e-2 if config.precision == "bfloat16" else 1e-6
    for num_requests in (1, 20):
        batch = serving.encode(columns(rng, num_requests, 40))
        expected = 1 / (1 + np.exp(-learner.score(batch).astype(np.float64)))
        assert np.allclose(serving.score(batch), expected, atol=slack)
        assert np.allclose(serving.score(batch.take(slice(7, 8))), expected[7:8], atol=slack)
    assert serving.score(batch.take(slice(0, 0))).shape == (0, 2)


def test_bad_settings_are_one_line() -> None:
    for changes, message in (
        ({"dropout": 1.0}, "dropout: 1.0 is not allowed; at least 0 and below 1"),
        ({"expert": ()}, r"expert: \(\) is not allowed"),
        ({"num_experts": 0}, "num_experts: 0 is not allowed; at least 1"),
        ({"mixer_heads": 5}, "mixer_heads: 5 is not allowed; a divisor of 64"),
    ):
        with pytest.raises(ValueError, match=message):
            CloseupConfig(**changes)
    with pytest.raises(ValueError, match="sequence: given with architecture: closeup is not allowed; closeup.sequence"):
        ModelConfig(architecture="closeup", sequence=SequenceBlocksConfig())
    with pytest.raises(ValueError, match="a history_length of at least 1"):
        Learner(SCHEMA, ModelConfig(architecture="closeup", encoding=EncodingConfig(history_length=0)), seed=0)
