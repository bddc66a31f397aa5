"""What every network keeps, whichever it is: rows, scenarios, draws, growth, gates, sizes."""

import copy
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from model.architectures import NETWORKS, Architecture
from model.config import ModelConfig
from model.inputs import RowInputs
from model.network import Network, NetworkInputs, NetworkShape
from model.sequence_inputs import SequenceInputs
from tests.model.histories import histories
from tests.model.networks import offsets

torch.set_num_threads(1)

REQUEST_BLOCKS = ("user_id", "user.a", "context.device", "history_item", "history_action")
ITEM_BLOCKS = ("item_id", "item.b", "history_item*item_id")
TASKS = ("click", "order")
BLOCK_WIDTH = 4
SCENARIO_B = [2, 0, 1, 0, 2, 2, 0, 1, 0, 0]
SEES_OTHERS = {
    "hinet": {"scenarios"},
    "ple": {"levels.0.scenarios", "levels.0.shared.gates"},
    "hmoe": {"scenario_logits"},
}
"""Lists whose entry of a scenario without rows still takes part in the rows of the others, and learns from them."""

every_network = pytest.mark.parametrize("architecture", NETWORKS)


def shape(num_scenarios: int, blocks: tuple[str, ...] = REQUEST_BLOCKS + ITEM_BLOCKS) -> NetworkShape:
    return NetworkShape(blocks=blocks, block_width=BLOCK_WIDTH, num_scenarios=num_scenarios, tasks=TASKS)


def built(architecture: Architecture, num_scenarios: int = 3, seed: int | None = 0) -> Network:
    return ModelConfig(architecture=architecture).build_network(shape(num_scenarios), seed=seed).double()


def random_x(num_rows: int = len(SCENARIO_B)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_rows, shape(3).width, generator=generator, dtype=torch.float64)


def random_histories(num_rows: int = len(SCENARIO_B)) -> SequenceInputs:
    """Returns a request per row; some have no history."""
    return histories([row % 5 for row in range(num_rows)], list(range(num_rows)), BLOCK_WIDTH)


def in_type_of(sequence: SequenceInputs, x_BD: Tensor) -> SequenceInputs:
    tensors = {one.name: getattr(sequence, one.name) for one in fields(sequence)}
    return replace(sequence, **{name: t.to(x_BD.dtype) for name, t in tensors.items() if t.is_floating_point()})


def inputs_of(x_BD: Tensor, rows: Sequence[int], row_offsets: list[int]) -> NetworkInputs:
    """Returns some of the rows, given sorted by scenario."""
    index_B = torch.tensor(rows, dtype=torch.int64)
    sequence = in_type_of(random_histories(len(x_BD)), x_BD)
    sequence = replace(sequence, request_index_B=index_B, candidate_BW=sequence.candidate_BW[index_B])
    return NetworkInputs(x=RowInputs(x_BD[index_B]), row_offsets=row_offsets, sequence=sequence)


def run(net: Network, x_BD: Tensor, rows: Sequence[int], scenario_B: Sequence[int] = SCENARIO_B) -> Tensor:
    """Returns the logits of some of the rows, each in its scenario, in the order given."""
    scenarios = [scenario_B[row] for row in rows]
    order = np.argsort(scenarios, kind="stable")
    sorted_BT = net(inputs_of(x_BD, [rows[place] for place in order], offsets(scenarios, net.num_scenarios)))
    return sorted_BT[np.argsort(order)]


@every_network
def test_permuting_rows_permutes_logits_and_a_row_stands_alone(architecture: Architecture) -> None:
    net, x_BD, order = built(architecture), random_x(), [6, 2, 0, 9, 5, 1, 8, 4, 3, 7]
    logits_BT = run(net, x_BD, range(10))
    assert torch.allclose(run(net, x_BD, order), logits_BT[order], rtol=0, atol=1e-12)
    for row in range(10):
        assert torch.allclose(run(net, x_BD, [row]), logits_BT[[row]], rtol=0, atol=1e-12)
    assert logits_BT.std(dim=0).min() > 1e-6


@every_network
def test_no_rows_give_no_logits(architecture: Architecture) -> None:
    assert run(built(architecture), random_x(), []).shape == (0, 2)


@every_network
def test_float32_gives_what_float64_gives(architecture: Architecture) -> None:
    net, x_BD = built(architecture), random_x()
    single_BT = run(copy.deepcopy(net).float(), x_BD.float(), range(10))
    assert torch.allclose(single_BT.double(), run(net, x_BD, range(10)), rtol=0, atol=1e-5)


@every_network
def test_a_shared_request_part_gives_what_whole_rows_give(architecture: Architecture) -> None:
    net, index_B = built(architecture), torch.tensor([0, 1, 2, 1, 0, 0, 2, 2, 1, 1])
    request_RD, item_BD = (
        random_x()[:3, : len(REQUEST_BLOCKS) * BLOCK_WIDTH],
        random_x()[:, len(REQUEST_BLOCKS) * BLOCK_WIDTH :],
    )
    sequence = replace(random_histories(), request_index_B=index_B)
    logits = [
        net(NetworkInputs(x=x, row_offsets=[0, 3, 3, 10], sequence=sequence))
        for x in (
            RowInputs(item_BD, request_RD, index_B),
            RowInputs(torch.cat([request_RD[index_B], item_BD], dim=1)),
        )
    ]
    assert torch.allclose(logits[0], logits[1], rtol=0, atol=1e-12)


@every_network
def test_a_network_that_scores_as_it_learns_gives_the_same_in_training(architecture: Architecture) -> None:
    net = built(architecture)
    given = inputs_of(random_x(), range(10), [0, 3, 5, 10])
    learned_BT = net(replace(given, noise=torch.Generator().manual_seed(0)))
    assert learned_BT.isfinite().all()
    assert not net.scores_as_it_learns or torch.equal(learned_BT, net(given))


@every_network
def test_the_representation_is_as_wide_as_said(architecture: Architecture) -> None:
    net, given = built(architecture), inputs_of(random_x(), range(10), [0, 3, 5, 10])
    c_BC = net.representation(given)
    assert c_BC.shape == (10, net.representation_width) and c_BC.isfinite().all()
    assert torch.equal(net.task_logits(c_BC, given.row_offsets), net(given))


@every_network
def test_a_scenario_without_rows_learns_only_what_the_others_see_of_it(architecture: Architecture) -> None:
    net, rows = built(architecture), [row for row in range(10) if SCENARIO_B[row] != 1]
    run(net, random_x(), rows).square().sum().backward()
    name_of = {module: name for name, module in net.named_modules()}
    learned = {
        name_of[modules]
        for modules in net.scenario_lists()
        if any(parameter.grad is not None for parameter in modules[1].parameters())
    }
    assert learned == SEES_OTHERS.get(architecture, set())
    own = [parameter for modules in net.scenario_lists() for parameter in modules[0].parameters()]
    assert all(parameter.grad is not None for parameter in own)


@every_network
def test_a_seed_gives_the_same_draws_whatever_else_was_drawn(architecture: Architecture) -> None:
    torch.manual_seed(1)
    one = built(architecture, 3)
    torch.manual_seed(2)
    same, fewer, other = built(architecture, 3), built(architecture, 2), built(architecture, 3, seed=1)
    ours, theirs, others = (dict(net.named_parameters()) for net in (one, same, other))
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())
    assert any(not torch.equal(parameter, others[name]) for name, parameter in ours.items())
    lists = tuple(name for name in ours if name not in fewer.row_parameters())
    for name, parameter in fewer.named_parameters():
        if name in lists and parameter.shape == ours[name].shape:
            assert torch.equal(parameter, ours[name]), name


@every_network
def test_saved_and_loaded_is_the_same_network(architecture: Architecture) -> None:
    net, loaded, x_BD = built(architecture), built(architecture, seed=None), random_x()
    loaded.load_state_dict(net.state_dict())
    assert torch.equal(run(loaded, x_BD, range(10)), run(net, x_BD, range(10)))


@every_network
def test_logits_start_near_the_priors(architecture: Architecture) -> None:
    net, priors = built(architecture), (0.1, 0.01)
    for task, prior in enumerate(priors):
        net.start_at(task, prior)
    logits_BT = run(net, 0.3 * random_x(), range(10))  # embeddings begin small; closeup's layer norms undo that
    for task, prior in enumerate(priors):
        assert (logits_BT[:, task] - math.log(prior / (1 - prior))).abs().max() < 2.0
        assert abs(logits_BT[:, task].mean().item() - math.log(prior / (1 - prior))) < 0.8


@every_network
@pytest.mark.parametrize("num_scenarios", [1, 3, 7])
def test_a_new_scenario_starts_as_its_donor_and_moves_no_bit_of_the_others(
    architecture: Architecture, num_scenarios: int
) -> None:
    net, x_BD = built(architecture, num_scenarios).float(), random_x(24).float()
    scenario_B = [row % num_scenarios for row in range(24)]
    before_BT = run(net, x_BD, range(24), scenario_B)
    if net.cannot_grow is not None:
        pytest.skip(net.cannot_grow)
    for new in (num_scenarios, num_scenarios + 1):
        assert net.add_scenario(0) == new and net.num_scenarios == new + 1
        assert torch.equal(run(net, x_BD, range(24), scenario_B), before_BT)
        donor_BT, new_BT = (run(net, x_BD, range(24), [scenario] * 24) for scenario in (0, new))
        assert torch.equal(new_BT, donor_BT)
    run(net, x_BD, range(24), [row % net.num_scenarios for row in range(24)]).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters() if parameter.grad is not None)


@every_network
def test_a_scenario_that_opens_moves_the_others_continuously(architecture: Architecture) -> None:
    net, x_BD = built(architecture, 2), random_x()
    if net.cannot_grow is not None:
        pytest.skip(net.cannot_grow)
    net.add_scenario(1)
    at = []
    for share in (0.0, 1e-9, 1.0 - 1e-9, 1.0):
        net.open_scenario(2, share)
        at.append(run(net, x_BD, range(10)))
    assert torch.allclose(at[0], at[1], rtol=0, atol=1e-6) and torch.allclose(at[2], at[3], rtol=0, atol=1e-6)


@every_network
def test_a_network_that_grew_is_saved_and_loaded(architecture: Architecture) -> None:
    net, loaded, x_BD = built(architecture, 2), built(architecture, 2, seed=None), random_x()
    if net.cannot_grow is not None:
        pytest.skip(net.cannot_grow)
    for one in (net, loaded):
        one.add_scenario(1)
        one.add_scenario(2)
    net.open_scenario(2, 0.25)
    loaded.load_state_dict(net.state_dict())
    scenario_B = [row % 4 for row in range(10)]
    assert torch.equal(run(loaded, x_BD, range(10), scenario_B), run(net, x_BD, range(10), scenario_B))
    for one in (net, loaded):
        one.open_scenario(3, 0.5)
    assert torch.equal(run(loaded, x_BD, range(10), scenario_B), run(net, x_BD, range(10), scenario_B))


@every_network
def test_gates_give_one_to_their_experts(architecture: Architecture) -> None:
    usage = built(architecture).gate_usage(inputs_of(random_x(), range(10), [0, 4, 4, 10]))
    assert len({(one.gate, one.scenario, one.task) for one in usage}) == len(usage)
    for one in usage:
        assert one.scenario in (0, 2) and one.task in (None, 0, 1)
        assert len(one.weight_BK) == (4 if one.scenario == 0 else 6) and (one.weight_BK >= 0).all()
        assert torch.allclose(one.weight_BK.sum(dim=1), torch.ones(()).double(), rtol=0, atol=1e-9), one.gate
    assert usage or architecture in ("shared_bottom", "star", "esmm", "pepnet")


@every_network
def test_each_scenario_and_task_is_learned_beyond_its_base_rate(architecture: Architecture) -> None:
    net, rng = built(architecture).float(), np.random.default_rng(0)
    truth_MDT = torch.from_numpy(rng.normal(0.0, 0.5, (1, 32, 2)) + rng.normal(0.0, 0.2, (3, 32, 2))).float()
    row_offsets = [0, 60, 100, 128]

    def rows(seed: int) -> tuple[NetworkInputs, Tensor]:
        """Returns rows whose order happens after a click only."""
        rng = np.random.default_rng(seed)
        x_BD = torch.from_numpy(rng.normal(size=(128, 32))).float()
        sequence = in_type_of(histories([2] * 128, range(128), BLOCK_WIDTH, seed=seed), x_BD)
        z_BT = torch.einsum("bd,bdt->bt", x_BD, truth_MDT.repeat_interleave(torch.tensor([60, 40, 28]), dim=0))
        happens_BT = torch.from_numpy(rng.random((128, 2))) < z_BT.sigmoid()
        label_BT = torch.stack([happens_BT[:, 0], happens_BT.all(dim=1)], dim=1).float()
        return NetworkInputs(x=RowInputs(x_BD), row_offsets=row_offsets, sequence=sequence), label_BT

    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(30):
        given, label_BT = rows(step)
        logits_BT = net(replace(given, noise=torch.Generator().manual_seed(step)))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits_BT, label_BT)
        auxiliary = net.auxiliary_loss()
        adam.zero_grad()
        (loss if auxiliary is None else loss + auxiliary).backward()
        adam.step()
        net.after_step()
    held_out = [rows(seed) for seed in range(1_000, 1_008)]
    with torch.no_grad():
        logits = [net(given) for given, _ in held_out]
    for start, stop in pairwise(row_offsets):
        label_NT = torch.cat([label_BT[start:stop] for _, label_BT in held_out])
        logits_NT = torch.cat([logits_BT[start:stop] for logits_BT in logits])
        entropy_T = torch.distributions.Bernoulli(label_NT.mean(dim=0)).entropy()
        loss_NT = torch.nn.functional.binary_cross_entropy_with_logits(logits_NT, label_NT, reduction="none")
        assert (loss_NT.mean(dim=0) < 0.95 * entropy_T).all(), (loss_NT.mean(dim=0) / entropy_T, start)


@every_network
def test_the_small_preset_is_comparable_in_size(architecture: Architecture) -> None:
    more = tuple(f"item.{number}" for number in range(20 - len(shape(3).blocks)))
    at_320 = replace(shape(3, REQUEST_BLOCKS + ITEM_BLOCKS + more), block_width=16)
    net = ModelConfig(architecture=architecture).build_network(at_320, seed=None)
    assert at_320.width == 320 and 0.63e6 < sum(parameter.numel() for parameter in net.parameters()) < 0.77e6
