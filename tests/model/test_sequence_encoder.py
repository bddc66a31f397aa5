"""The sequence encoder against a row-at-a-time float64 reference, and what a history may and may not say."""

import dataclasses

import pytest
import torch
from torch import Tensor

from model.hinet import HiNet, HiNetConfig
from model.inputs import RowInputs
from model.network import NetworkInputs, NetworkShape
from model.seeding import initialise
from model.sequence_blocks import SequenceBlocks, SequenceBlocksConfig
from model.sequence_encoder import SequenceConfig, SequenceEncoder
from model.sequence_inputs import SequenceInputs
from tests.model import closeup_reference as reference
from tests.model.histories import histories, reordered, visible_actions

torch.set_num_threads(1)

WIDTH = 4
CONFIGS = {
    "append": SequenceConfig(newest=3, hidden=5),
    "early": SequenceConfig(fusion="early", newest=3, hidden=5),
    "one layer, one head": SequenceConfig(num_layers=1, num_heads=1, newest=2, hidden=3),
}
FUSIONS = ("append", "early")


def encoder(config: SequenceConfig, seed: int = 0) -> SequenceEncoder:
    made = SequenceEncoder(config, WIDTH)
    initialise(made, seed)
    return made.double()


def noise(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def read(made: SequenceEncoder, sequence: SequenceInputs) -> Tensor:
    return made(sequence, None).whole()


def expected_row(
    p: dict[str, Tensor], config: SequenceConfig, sequence: SequenceInputs, b: int, *, at_least_ms: float = 0.0
) -> Tensor:
    user = sequence.user_RW[int(sequence.request_index_B[b])]
    actions = visible_actions(sequence, b, at_least_ms=at_least_ms)
    return reference.readout(p, config, actions, user, sequence.candidate_BW[b])


@pytest.mark.parametrize("name", CONFIGS)
def test_readout_and_gradients_equal_the_reference(name: str) -> None:
    made, sequence = encoder(CONFIGS[name]), histories([5, 0, 1, 3], [0, 2, 0, 1, 3, 3, 1], WIDTH)
    sequence.is_real_RL[0, 1] = False  # an action that was not before its request
    readout_BC = read(made, sequence)
    weight_BC = torch.linspace(-1, 1, readout_BC.numel(), dtype=torch.float64).view_as(readout_BC)
    (readout_BC * weight_BC).sum().backward()
    assert readout_BC.shape == (7, made.width)

    p = {one: tensor.detach().clone().requires_grad_() for one, tensor in made.named_parameters()}
    expected_BC = torch.stack([expected_row(p, CONFIGS[name], sequence, b) for b in range(7)])
    (expected_BC * weight_BC).sum().backward()
    assert torch.allclose(readout_BC, expected_BC, rtol=0, atol=1e-10)
    for one, tensor in made.named_parameters():
        assert torch.allclose(tensor.grad, p[one].grad, rtol=0, atol=1e-8), one


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_stands_beyond_a_history_has_no_influence(fusion: str) -> None:
    made = encoder(SequenceConfig(fusion=fusion, newest=3))
    short, other = (histories([4, 2, 0], [0, 1, 2, 2], WIDTH, longest=9) for _ in range(2))
    for name in ("item_RLW", "action_RLW"):
        getattr(other, name)[~other.is_real_RL] = 1e3
    assert torch.equal(read(made, short), read(made, other))
    cut = reordered(short, torch.arange(4))
    assert torch.allclose(read(made, short), read(made, cut), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("lengths", [[0], [1], [100], [0, 100, 1]])
def test_empty_and_full_histories_are_finite_in_value_and_gradient(fusion: str, lengths: list[int]) -> None:
    made, sequence = encoder(SequenceConfig(fusion=fusion)), histories(lengths, list(range(len(lengths))) * 2, WIDTH)
    readout_BC = read(made, sequence)
    readout_BC.sum().backward()
    assert readout_BC.isfinite().all()
    assert all(tensor.grad.isfinite().all() for tensor in made.parameters())
    for b, length in enumerate(lengths):  # slots beyond the history are zeros
        slots = readout_BC[b, : 10 * made.pooled.weight.shape[0]].view(10, -1)
        assert slots.any(dim=1).sum() == min(length, 10)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_rows_of_no_requests(fusion: str) -> None:
    made = encoder(SequenceConfig(fusion=fusion))
    assert read(made, histories([], [], WIDTH, longest=0)).shape == (0, made.width)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_actions_beyond_the_newest_are_a_set(fusion: str) -> None:
    made, sequence = encoder(SequenceConfig(fusion=fusion)), histories([100, 60], [0, 1, 0], WIDTH)
    older = torch.cat([torch.arange(10), 10 + torch.randperm(50, generator=noise()), torch.arange(60, 100)])
    newer = torch.cat([torch.arange(10).flip(0), torch.arange(10, 100)])
    ours = read(made, sequence)
    assert torch.allclose(read(made, reordered(sequence, older)), ours, rtol=0, atol=1e-12)
    assert not torch.allclose(read(made, reordered(sequence, newer)), ours, rtol=0, atol=1e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_row_depends_on_its_own_request_only(fusion: str) -> None:
    made, sequence = encoder(SequenceConfig(fusion=fusion, newest=3)), histories([5, 0, 2], [2, 0, 2, 1, 0], WIDTH)
    together = read(made, sequence)
    for b, r in enumerate(sequence.request_index_B.tolist()):
        own = {
            name: getattr(sequence, name)[r : r + 1]
            for name in ("item_RLW", "action_RLW", "age_ms_RL", "is_real_RL", "user_RW")
        }
        candidate_BW = sequence.candidate_BW[b : b + 1]
        alone = SequenceInputs(**own, request_index_B=torch.zeros(1, dtype=torch.int64), candidate_BW=candidate_BW)
        assert torch.allclose(read(made, alone), together[b : b + 1], rtol=0, atol=1e-12)


def test_append_encodes_a_history_once_however_many_candidates_it_has() -> None:
    sizes = []
    for fusion in FUSIONS:
        made = encoder(SequenceConfig(fusion=fusion))
        made.layers[0].register_forward_hook(lambda module, given, out: sizes.append(tuple(out.shape[:2])))
        read(made, histories([7], [0] * 40, WIDTH))
    assert sizes == [(1, 8), (40, 8)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_training_forward_hides_the_last_actions(fusion: str) -> None:
    """As if they had not been: each history (`append`) or row (`early`) loses its own last stretch of time."""
    config = SequenceConfig(fusion=fusion, newest=3, hidden=5, time_mask_ms=1_000)
    made, sequence = encoder(config), histories([9, 6], [0, 0, 1, 0], WIDTH)
    p = dict(made.named_parameters())
    num_drawn = 4 if fusion == "early" else 2
    at_least_ms_N = (1_000.0 * torch.rand(num_drawn, 1, generator=noise()).double()).flatten().tolist()
    hidden = made(sequence, noise()).whole()
    assert len(set(at_least_ms_N)) == num_drawn
    for b in range(4):
        drawn = at_least_ms_N[b if fusion == "early" else int(sequence.request_index_B[b])]
        expected = expected_row(p, config, sequence, b, at_least_ms=drawn)
        assert torch.allclose(hidden[b], expected, rtol=0, atol=1e-10)
    assert torch.equal(
        made(sequence, None).whole(), encoder(dataclasses.replace(config, time_mask_ms=0))(sequence, noise()).whole()
    )


SHAPE = NetworkShape(
    blocks=("history_item", "history_action", "item_id"), block_width=WIDTH, num_scenarios=2, tasks=("click", "order")
)
TINY = HiNetConfig(expert_hidden=5, expert_width=4, scenario_embedding=3, task_hidden=5, task_width=4, tower=(3,))


def hinet_on_sequences(seed: int | None = 0, **changes: object) -> SequenceBlocks:
    config = SequenceBlocksConfig(blocks=2, **changes)
    return SequenceBlocks(config, SHAPE, lambda shape: HiNet(TINY, shape, seed=seed), seed=seed).double()


def rows(sequence: SequenceInputs, row_offsets: list[int]) -> NetworkInputs:
    x_BD = torch.randn(len(sequence.candidate_BW), SHAPE.width, generator=noise(), dtype=torch.float64)
    return NetworkInputs(x=RowInputs(x_BD), row_offsets=row_offsets, sequence=sequence)


def test_any_network_can_have_the_readout_as_further_blocks() -> None:
    net, sequence = hinet_on_sequences(), histories([4, 0], [0, 0, 1, 1], WIDTH)
    given = rows(sequence, [0, 3, 4])
    projection = net.front.projection
    columns_BS = read(net.front.encoder, sequence) @ projection.weight.t() + projection.bias
    wide = dataclasses.replace(given, x=RowInputs(torch.cat([given.x.whole(), columns_BS], dim=1)), sequence=None)
    assert torch.allclose(net(given), net.network(wide), rtol=0, atol=1e-12)
    assert net.network.shape.blocks == (*SHAPE.blocks, "sequence.0", "sequence.1") and net.uses_sequence
    net(given).sum().backward()
    assert all(one.grad is not None and one.grad.any() for one in net.front.encoder.layers.parameters())


def test_the_network_around_is_the_inner_one_in_all_else() -> None:
    net, given = hinet_on_sequences(), rows(histories([4, 0], [0, 0, 1, 1], WIDTH), [0, 3, 4])
    before, usage = net(given), net.gate_usage(given)
    assert [one.gate for one in usage] == [one.gate for one in net.network.gate_usage(net.inner_inputs(given))]
    assert {name.removeprefix("network.") for name in net.row_parameters()} == set(net.network.row_parameters())
    assert set(net.row_parameters()) <= set(dict(net.named_parameters()))
    assert net.add_scenario(1) == 2 and net.num_scenarios == 3
    grown = dataclasses.replace(given, row_offsets=[0, 3, 3, 4])
    assert torch.equal(net(grown)[:3], before[:3])
    net.start_at(0, 0.01)
    assert (net(grown)[:, 0] < -2).all()
    state = net.state_dict()
    loaded = hinet_on_sequences(seed=None)
    loaded.add_scenario(1)
    loaded.load_state_dict(state)
    assert torch.equal(loaded(grown), net(grown))
    assert net.scores_as_it_learns
    assert not hinet_on_sequences(encoder=SequenceConfig(time_mask_ms=1)).scores_as_it_learns


@pytest.mark.parametrize("missing", ["history_item", "item_id"])
def test_a_model_without_history_or_item_is_refused(missing: str) -> None:
    blocks = tuple(block for block in SHAPE.blocks if block != missing)
    with pytest.raises(ValueError, match="a history_length of at least 1 and item_id: true"):
        SequenceBlocks(
            SequenceBlocksConfig(),
            dataclasses.replace(SHAPE, blocks=blocks),
            lambda shape: HiNet(TINY, shape, seed=0),
            seed=0,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"newest": 0}, "newest: 0 is not allowed; at least 1"),
        ({"time_mask_ms": -1}, "time_mask_ms: -1 is not allowed; at least 0"),
        ({"num_heads": 3}, "num_heads: 3 is not allowed; a divisor of the row width 8"),
    ],
)
def test_bad_settings_are_refused_by_name(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceEncoder(SequenceConfig(**changes), WIDTH)
