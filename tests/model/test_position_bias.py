"""The position tower: what it recovers, what of it serving keeps, and that training and serving stay exact."""

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model.architectures import NETWORKS, Architecture
from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.features import EncodingConfig, RowColumns
from model.hinet import HiNet
from model.hinet_config import HiNetConfig
from model.inputs import RowInputs
from model.labels import LabelBatch
from model.learner import Learner
from model.network import NetworkInputs, NetworkShape
from model.optim import OptimConfig
from model.position_bias import PositionBiasConfig, PositionBiased, PositionTower
from model.sequence_blocks import SequenceBlocksConfig
from model.serving import ServingModel
from stream.schema import SchemaConfig, TaskConfig
from tests.model.training_checks import trained_and_resumed
from tests.model.worlds import SCHEMA, TINY_NET, columns, labels, tiny_config

torch.set_num_threads(1)

SHAPE = NetworkShape(blocks=("item_id", "context.device"), block_width=3, num_scenarios=3, tasks=("click", "order"))
TINY = PositionBiasConfig(max_position=4, hidden=5, context="context.device")
Float64Array = npt.NDArray[np.float64]


def biased(config: PositionBiasConfig = TINY, seed: int = 0) -> PositionBiased:
    net = HiNet(TINY_NET, SHAPE, seed=seed)
    return PositionBiased(net, SHAPE, PositionTower(config, SHAPE, seed=seed)).double()


def given(positions: list[int], row_offsets: list[int], noise: torch.Generator | None = None) -> NetworkInputs:
    generator = torch.Generator().manual_seed(3)
    x_BD = torch.randn(len(positions), SHAPE.width, generator=generator, dtype=torch.float64)
    return NetworkInputs(x=RowInputs(x_BD), row_offsets=row_offsets, position_B=torch.tensor(positions), noise=noise)


def test_the_tower_is_its_equation_and_sees_no_item() -> None:
    tower, inputs = biased().tower, given([0, 3, 4, 900, -1, 2], [0, 2, 5, 6])
    assert tower is not None and inputs.position_B is not None
    p = {name: tensor.detach() for name, tensor in tower.named_parameters()}
    ours_BT, x_BD = tower(inputs, None), inputs.x.whole()
    for b, (position, i) in enumerate(zip([0, 3, 4, 4, -1, 2], [0, 0, 1, 1, 1, 2], strict=True)):
        hidden = p["position"][position] + p[f"scenarios.{i}.row"] + p["context"] @ x_BD[b, 3:6]
        expected_T = p["out"] @ torch.clamp(hidden, min=0) if position >= 0 else torch.zeros(2).double()
        assert torch.allclose(ours_BT[b], expected_T, rtol=0, atol=1e-12)
    other = x_BD.clone()
    other[:, :3] += 1.0
    assert torch.equal(tower(dataclasses.replace(inputs, x=RowInputs(other)), None), ours_BT)
    x_BD = x_BD.requires_grad_()
    absent = dataclasses.replace(given([1, 2], [0, 1, 1, 2]), x=RowInputs(x_BD[:2]))
    tower(absent, None).sum().backward()
    assert x_BD.grad is None
    assert tower.scenarios[1].row.grad is None and tower.scenarios[0].row.grad is not None


def test_features_are_left_out_in_training_and_the_rest_is_not_scaled() -> None:
    tower = biased(PositionBiasConfig(dropout=0.4)).tower
    assert tower is not None
    inputs = given([2] * 2_000, [0, 2_000, 2_000, 2_000])
    position, scenario = tower.position[2], tower.scenarios[0].row
    logits_BT = tower(inputs, torch.Generator().manual_seed(0))
    shares = []
    for keeps_position, keeps_scenario in ((1, 1), (1, 0), (0, 1), (0, 0)):
        expected_T = tower.out @ torch.clamp(keeps_position * position + keeps_scenario * scenario, min=0)
        shares.append(float((logits_BT - expected_T).abs().amax(dim=1).lt(1e-12).double().mean()))
    assert np.allclose(shares, [0.36, 0.24, 0.24, 0.16], atol=0.04)


def test_training_logits_are_the_networks_own_plus_the_towers_whatever_the_constant() -> None:
    net, inputs = biased(), given([0, 3, 4, -1], [0, 2, 2, 4], torch.Generator().manual_seed(1))
    without_noise = dataclasses.replace(inputs, noise=None)
    net.tower.out.data *= 5.0
    for _ in range(30):
        main_BT, logits_BT = net.network(inputs), net(inputs).detach()
        z_BT = net.tower(inputs, None)
        trained_BT = logits_BT + net.position_bias(without_noise, logits_BT)
        assert torch.allclose(trained_BT, main_BT + z_BT, rtol=0, atol=1e-12)
        net.position_bias(inputs, logits_BT)
        net.tower.rows_M.zero_()  # so that the last step counts in full
        net.after_step()
    for i, rows in ((0, slice(0, 2)), (2, slice(2, 4))):
        assert torch.allclose(net(inputs)[rows], main_BT[rows] + net.constant_MT[i], rtol=0, atol=1e-12)
        served, as_shown = (z[rows].sigmoid().mean(dim=0) for z in (net(inputs), main_BT + z_BT))
        assert torch.allclose(served, as_shown, rtol=0, atol=1e-9)
    assert not net.constant_MT[1].any() and (net.constant_MT[0].abs() > 1e-3).all()


def test_the_mean_is_cumulative_first_and_forgets_after_its_half_life() -> None:
    tower = biased(PositionBiasConfig(half_life_rows=100.0)).tower
    assert tower is not None
    rows_M = torch.tensor([10.0, 10.0, 0.0])
    tower.rows_M.copy_(torch.tensor([0.0, 10_000.0, 50.0]))
    assert torch.allclose(tower.shares_of_batch(rows_M).float(), torch.tensor([1.0, 1 - 2**-0.1, 0.0]))
    tower.rows_M[0] = 30.0
    assert torch.allclose(tower.shares_of_batch(rows_M)[0].float(), torch.tensor(0.25))


def test_an_added_scenario_starts_as_its_donor() -> None:
    net, inputs = biased(), given([0, 3, 4, 1], [0, 2, 4, 4])
    net.position_bias(inputs, net(inputs).detach())
    net.after_step()
    before_BT = net(inputs)
    assert net.add_scenario(donor=1) == 3 and net.num_scenarios == 4
    inputs = dataclasses.replace(inputs, row_offsets=[0, 2, 4, 4, 4])
    assert torch.equal(net(inputs), before_BT)
    moved = dataclasses.replace(inputs, row_offsets=[0, 2, 2, 2, 4])
    assert torch.equal(net(moved), before_BT)
    assert torch.equal(net.position_bias(moved, before_BT), net.position_bias(inputs, before_BT))


MODEL = tiny_config(position_bias=PositionBiasConfig(context="context.device"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_trains_resumes_and_serves_without_the_tower(precision: str) -> None:
    config = dataclasses.replace(MODEL, precision=precision)
    rng = np.random.default_rng(0)
    learner = trained_and_resumed(config, rng, num_steps=8)
    ours = learner.trained.state()
    assert "dense.tower.position" in ours and "adam.exp_avg.tower.position" in ours and ours["dense.constant_MT"].any()

    exported = learner.trained.serving_full()
    assert not [name for name in exported if name.startswith("dense.tower")] and "dense.constant_MT" in exported
    serving = ServingModel.from_full(SCHEMA, config, exported)
    learner.trained.mark_promoted()
    learner.learn(learner.encode(columns(rng, 6, 24)), labels(rng, 24))
    batch = serving.encode(columns(rng, 20, 40))
    expected = 1 / (1 + np.exp(-learner.score(batch).astype(np.float64)))
    slack = 2e-2 if precision == "bfloat16" else 1e-6
    assert np.allclose(serving.apply_delta(learner.trained.serving_delta()).score(batch), expected, atol=slack)
    nowhere = dataclasses.replace(batch, position_B=np.full(40, -1))
    assert np.array_equal(serving.score(nowhere), serving.score(batch))


@pytest.mark.parametrize("architecture", NETWORKS)
def test_every_network_can_have_a_tower_and_sequences(architecture: Architecture) -> None:
    sequence = None if architecture == "closeup" else SequenceBlocksConfig(blocks=1)
    bias = PositionBiasConfig(hidden=4)
    config = ModelConfig(architecture=architecture, position_bias=bias, sequence=sequence)
    learner, rng = Learner(SCHEMA, config, seed=0), np.random.default_rng(0)
    batch, given_labels = learner.encode(columns(rng, 6, 24)), labels(rng, 24)
    scored = learner.score(batch)
    before = learner.trained.state()
    report = learner.learn(batch, given_labels)
    assert report.skipped is None and np.allclose(report.logits_BT, scored, atol=1e-6)
    after = learner.trained.state()
    learned = {name for name in after if name.startswith("dense.") and not torch.equal(before[name], after[name])}
    reader = "dense.network.sequence." if sequence is None else "dense.network.front.encoder."
    assert {"dense.tower.position", "dense.tower.out", "dense.constant_MT"} < learned
    assert any(name.startswith(reader) for name in learned)
    serving = ServingModel.from_full(SCHEMA, config, learner.trained.serving_full())
    assert np.allclose(serving.score(batch), 1 / (1 + np.exp(-learner.score(batch))), atol=1e-6)


class World(NamedTuple):
    """Thirty items of which some are pushed up the page, whatever their quality, and a curve of positions."""

    quality: Float64Array
    push: Float64Array
    curve: Float64Array

    def batch(
        self, rng: np.random.Generator, num_requests: int, *, at_random: bool = False
    ) -> tuple[RowColumns, LabelBatch]:
        slates = []
        for _ in range(num_requests):
            items = rng.choice(len(self.quality), len(self.curve), replace=False)
            noise = rng.normal(0.0, 1.0, len(items))
            slates.append(items if at_random else items[np.argsort(-(self.push[items] + noise))])
        items = np.concatenate(slates)
        position = np.tile(np.arange(len(self.curve)), num_requests)
        p = 1 / (1 + np.exp(-(self.quality[items] + self.curve[position] - 0.5)))
        on = np.ones((len(items), 1), bool)
        rows = RowColumns(
            scenario=["home"] * num_requests,
            user_id=["u"] * num_requests,
            item_id=[f"i{item}" for item in items],
            request_index_B=np.repeat(np.arange(num_requests), len(self.curve)),
            position_B=position,
        )
        label_BT = (rng.random((len(items), 1)) < p[:, None]).astype(np.float32)
        return rows, LabelBatch(label_BT=label_BT, mask_BT=on, weight_BT=on.astype(np.float32), first_BT=on)


WORLD = World(
    quality=np.random.default_rng(5).normal(0.0, 1.0, 30),
    push=np.where(np.arange(30) % 3 == 0, 2.0, 0.0),
    curve=-2.0 * np.log1p(np.arange(8)) / np.log(8.0),
)
SMALL = ModelConfig(
    preset="custom",
    hinet=HiNetConfig(expert_hidden=16, expert_width=8, task_hidden=16, task_width=8, tower=(8,)),
    encoding=EncodingConfig(user_id=False, history_length=0, admission_ids=1),
    embedding=EmbeddingConfig(width=8),
    optim=OptimConfig(dense_lr=6e-3, row_lr=0.1),
)
ONE_TASK = SchemaConfig(scenarios=("home",), tasks={"click": TaskConfig(action="click", window_ms=1_000)})


def learned(config: ModelConfig, *, at_random: bool = False, steps: int) -> Learner:
    learner, rng = Learner(ONE_TASK, config, seed=0), np.random.default_rng(1)
    for _ in range(steps):
        rows, label = WORLD.batch(rng, 80, at_random=at_random)
        assert learner.learn(learner.encode(rows), label).skipped is None
    return learner


def scores_of_items(learner: Learner) -> Float64Array:
    rows = RowColumns(
        scenario=["home"],
        user_id=["u"],
        item_id=[f"i{item}" for item in range(30)],
        request_index_B=np.zeros(30, np.int64),
    )
    return learner.score(learner.encode(rows))[:, 0].astype(np.float64)


def pairs_in_order(scores: Float64Array) -> float:
    """Returns the share of pairs of items that stand as their qualities do."""
    ours, truth = (np.sign(one[:, None] - one) for one in (scores, WORLD.quality))
    return float((ours == truth)[~np.eye(30, dtype=bool)].mean())


def test_it_recovers_a_planted_curve_and_ranks_as_if_positions_had_been_random() -> None:
    learner = learned(dataclasses.replace(SMALL, position_bias=PositionBiasConfig()), steps=400)
    net = learner.trained.net
    assert isinstance(net, PositionBiased) and net.tower is not None
    shown = NetworkInputs(x=RowInputs(torch.zeros(8, 8)), row_offsets=[0, 8], position_B=torch.arange(8))
    found = net.tower(shown, None).detach().numpy()[:, 0].astype(np.float64)
    span = np.ptp(WORLD.curve)
    assert np.abs((found - found.mean()) - (WORLD.curve - WORLD.curve.mean())).max() < 0.1 * span

    without, at_random = learned(SMALL, steps=250), learned(SMALL, at_random=True, steps=250)
    in_order = [pairs_in_order(scores_of_items(one)) for one in (learner, without, at_random)]
    assert in_order[0] > 0.95 and in_order[2] > 0.95 and in_order[1] < 0.9

    rows, label = WORLD.batch(np.random.default_rng(9), 2_000)
    served = 1 / (1 + np.exp(-learner.score(learner.encode(rows))[:, 0].astype(np.float64)))
    assert abs(served.mean() / label.label_BT.mean() - 1) < 0.05


def test_bad_settings_are_one_line() -> None:
    for changes, message in (
        ({"max_position": 0}, "max_position: 0 is not allowed; at least 1"),
        ({"dropout": 1.0}, "dropout: 1.0 is not allowed; at least 0 and below 1"),
        ({"half_life_rows": 0.0}, "half_life_rows: 0.0 is not allowed; greater than 0"),
        ({"context": "item.price"}, "context: item.price is not allowed; context.<feature>"),
    ):
        with pytest.raises(ValueError, match=message):
            PositionBiasConfig(**changes)
    with pytest.raises(ValueError, match="^position_bias.context: 'context.weather' is not a field of this model"):
        Learner(SCHEMA, tiny_config(position_bias=PositionBiasConfig(context="context.weather")), seed=0)
