"""Growth: a scenario that is not listed becomes part of a model in training, and no score moves by it."""

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.architectures import NETWORKS
from model.auxiliary import AuxiliaryHeads
from model.config import ModelConfig
from model.examples import ExampleDecoder, TrainRows
from model.features import EncodedBatch
from model.growth import GrowthConfig, NameCounts, check_growth
from model.hinet import HiNet
from model.labels import LabelBatch
from model.learner import Learner
from model.position_bias import PositionBiasConfig
from model.scenario_registry import ScenarioRegistry
from model.sequence_blocks import SequenceBlocksConfig
from model.serving import ServingModel
from model.source import MemoryExampleSource
from model.store import MemorySnapshotStore
from model.task_heads import SettledRows
from model.trainer import Trainer
from model.trainer_config import TrainerConfig
from stream.schema import SchemaConfig, UnknownScenario
from tests.model.example_log import METRICS, SCHEMA, Clock, new_trainer
from tests.model.growing_log import GROWING, GROWING_MODEL, GROWTH, Naming, deals_from, growing_log
from tests.model.test_checkpoint import CrashError
from tests.model.test_resume import after_rounds, assert_same_bits, never
from tests.model.train_child import CONFIG

EVERY_BATCH = replace(CONFIG, checkpoint_interval_ms=1)
LOG = {0: growing_log(1, 22, deals_from(12)), 1: growing_log(2, 18, deals_from(20), first=3)}

pytestmark = pytest.mark.usefixtures("one_thread")


def grown_trainer(
    log: dict[int, list[bytes]] = LOG,
    checkpoint_dir: Path | None = None,
    config: TrainerConfig = EVERY_BATCH,
    model: ModelConfig = GROWING_MODEL,
    schema: SchemaConfig = GROWING,
) -> Trainer:
    source = MemoryExampleSource(log)
    return new_trainer(
        source=source, checkpoint_dir=checkpoint_dir, config=config, clock=Clock(step_ms=1), schema=schema, model=model
    )


def decoded(learner: Learner, naming: Naming = lambda rng, at: None, *, seed: int = 5) -> list[TrainRows]:
    decoder = ExampleDecoder(GROWING, learner.encoder)
    return [decoder.decode(message).rows for message in growing_log(seed, 4, naming)]


def learn(learner: Learner, rows: TrainRows) -> None:
    labels = LabelBatch(label_BT=rows.label_BT, mask_BT=rows.mask_BT, weight_BT=rows.weight_BT, first_BT=rows.first_BT)
    assert learner.learn(rows.batch, labels).made


def renamed(batch: EncodedBatch, name: str) -> EncodedBatch:
    """The same requests, all of another scenario."""
    return replace(batch, scenario_R=np.full_like(batch.scenario_R, -1), unknown_scenarios=(name,))


def logits(learner: Learner, batch: EncodedBatch) -> Tensor:
    return torch.from_numpy(learner.score(batch))


# The network and its optimiser at the moment of growth.


NETS: dict[str, Any] = {name: {"architecture": name} for name, one in NETWORKS.items() if not one.build.cannot_grow}
NETS |= {"with sequence": {"sequence": SequenceBlocksConfig()}, "with bias": {"position_bias": PositionBiasConfig()}}


@pytest.mark.parametrize("network", NETS)
def test_growth_moves_no_score_of_any_network(network: str) -> None:
    learner = Learner(GROWING, ModelConfig(growth=GROWTH, **NETS[network]), seed=0)
    rows = decoded(learner)
    for one in rows[:3]:
        learn(learner, one)
    probe = rows[3].batch
    old_BT, donor_BT = logits(learner, probe), logits(learner, renamed(probe, "home-as-unknown"))
    for index, name in enumerate(("deals", "outlet"), start=2):
        learner.trained.add_scenario(name)
        assert learner.trained.registry.index(name) == index
        assert torch.equal(logits(learner, probe), old_BT)
        assert torch.equal(logits(learner, renamed(probe, name)), donor_BT)
    for one in rows:  # what was added learns, with finite gradients, and parts from its donor
        learn(learner, replace(one, batch=renamed(one.batch, "deals")))
    deals_BT = logits(learner, renamed(probe, "deals"))
    assert deals_BT.isfinite().all() and not torch.equal(deals_BT, logits(learner, renamed(probe, "moon")))
    for index in (2, 3):
        learner.trained.net.open_scenario(index, 0.5)
    served = ServingModel.from_full(
        GROWING, learner.config, learner.trained.serving_full(), learner.trained.registry
    ).score(probe)
    # Serving takes the same sums in another order.
    torch.testing.assert_close(torch.from_numpy(served), logits(learner, probe).sigmoid(), rtol=1e-6, atol=0)


def moments(learner: Learner) -> dict[str, dict[str, Tensor]]:
    model = learner.trained
    return {name: dict(model.adam.state.get(parameter, {})) for name, parameter in model.parameters.items()}


def test_the_optimiser_starts_with_the_donors_second_moments_and_no_first_ones() -> None:
    learner = Learner(GROWING, GROWING_MODEL, seed=0)
    for rows in decoded(learner):
        learn(learner, rows)
    before = copy.deepcopy(moments(learner))
    learner.trained.add_scenario("deals")
    after = moments(learner)
    row_names = learner.trained.net.row_parameters()
    assert row_names == ["attention.embedding", "attention.weight", "attention.bias"]
    new = set(after) - set(before)
    assert {name.split(".")[0] for name in new} == {"scenarios", "gates", "towers"}
    for name in new:
        donor = name.replace(".2.", ".0.", 1)
        assert not after[name]["exp_avg"].any()
        assert torch.equal(after[name]["exp_avg_sq"], before[donor]["exp_avg_sq"])
        assert torch.equal(after[name]["step"], before[donor]["step"]) and after[name]["step"] > 0
        assert torch.equal(learner.trained.parameters[name], learner.trained.parameters[donor])
    for name in row_names:
        parameter = learner.trained.parameters[name]
        assert torch.equal(parameter[2], parameter[0])
        assert not after[name]["exp_avg"][2].any()
        assert torch.equal(after[name]["exp_avg_sq"][2], before[name]["exp_avg_sq"][0])
        for moment, tensor in after[name].items():
            was = before[name][moment]
            assert torch.equal(tensor, was) if moment == "step" else torch.equal(tensor[:2], was[:2])
    for name in set(before) - set(row_names):
        assert before[name].keys() == after[name].keys()
        assert all(torch.equal(tensor, before[name][moment]) for moment, tensor in after[name].items()), name


@pytest.mark.parametrize("is_steady", [True, False])
def test_no_update_of_the_new_part_is_larger_than_the_donors_of_the_same_gradients(is_steady: bool) -> None:
    learner = Learner(GROWING, GROWING_MODEL, seed=0)
    model, generator = learner.trained, torch.Generator().manual_seed(3)
    steady = {name: torch.randn(p.shape, generator=generator) for name, p in model.parameters.items()}

    def step() -> None:
        noise = {name: torch.randn(g.shape, generator=generator) for name, g in steady.items()}
        for name, parameter in model.parameters.items():
            source = name.replace(".2.", ".0.", 1) if name not in steady else name
            parameter.grad = steady[source].clone() + (0.0 if is_steady else 3.0 * noise[source])
        model.adam.step()

    for _ in range(30):
        step()
    model.add_scenario("deals")
    pairs = [(name, name.replace(".2.", ".0.", 1)) for name in model.parameters if name not in steady]
    for _ in range(30):
        was = {name: parameter.detach().clone() for name, parameter in model.parameters.items()}
        step()
        moved = {name: (parameter.detach() - was[name]).abs() for name, parameter in model.parameters.items()}
        if is_steady:  # each single number
            assert all((moved[new] <= moved[donor] * (1 + 1e-4) + 1e-7).all() for new, donor in pairs)
        else:  # gradients that change their sign: as a whole
            ours, theirs = (sum(float(moved[n].square().sum()) for n in names) for names in zip(*pairs, strict=True))
            assert 0 < ours <= theirs * (1 + 1e-4)


def test_without_a_step_before_it_the_new_part_has_no_moments_either() -> None:
    learner = Learner(GROWING, GROWING_MODEL, seed=0)
    learner.trained.add_scenario("deals")
    assert not any(moments(learner).values())
    for rows in decoded(learner, deals_from(0)):
        learn(learner, rows)
    assert learner.trained.num_steps == 4


def test_growth_beyond_the_room_of_the_attention_keeps_the_scores_and_the_moments() -> None:
    assert GROWING_MODEL.hinet is not None
    narrow = replace(GROWING_MODEL, hinet=replace(GROWING_MODEL.hinet, san_capacity=2))
    learner = Learner(GROWING, narrow, seed=0)
    rows = decoded(learner)
    learn(learner, rows[0])
    before, old_BT = copy.deepcopy(moments(learner)), logits(learner, rows[1].batch)
    learner.trained.add_scenario("deals")
    torch.testing.assert_close(logits(learner, rows[1].batch), old_BT, rtol=0, atol=1e-6)
    after = moments(learner)
    for name in learner.trained.net.row_parameters():
        assert after[name]["exp_avg"].shape == learner.trained.parameters[name].shape
        assert torch.equal(after[name]["exp_avg"][:2], before[name]["exp_avg"])
        assert torch.equal(after[name]["exp_avg_sq"][2], before[name]["exp_avg_sq"][0])
    learn(learner, rows[1])


def test_scores_are_continuous_while_a_scenario_opens() -> None:
    learner = Learner(GROWING, GROWING_MODEL, seed=0)
    for rows in decoded(learner):
        learn(learner, rows)
    learner.trained.add_scenario("deals")
    for rows in decoded(learner, seed=6):
        learn(learner, replace(rows, batch=renamed(rows.batch, "deals")))
    probe = decoded(learner, seed=7)[0].batch
    seen = []
    for share in np.linspace(0.0, 1.0, 65):
        learner.trained.net.open_scenario(2, float(share))
        seen.append(logits(learner, probe))
    steps = torch.stack([(b - a).abs().max() for a, b in zip(seen, seen[1:], strict=False)])
    whole = (seen[-1] - seen[0]).abs().max()
    assert whole > 0 and steps.max() < 8 * whole / 64


def test_shares_and_negatives_of_the_new_scenario() -> None:
    learner = Learner(GROWING, GROWING_MODEL, seed=0)
    for rows in decoded(learner):
        learn(learner, rows)
    model = learner.trained
    share_MT, has_negative_MT = model.shares.share_MT.copy(), model.has_negative_MT.copy()
    model.add_scenario("deals")
    most = GROWING_MODEL.loss.max_scenario_weight
    assert np.array_equal(model.shares.share_MT[:2], share_MT) and (model.shares.share_MT[2] == 1 / (3 * most)).all()
    assert model.shares.scenario_weights(most)[2] == pytest.approx(most)
    assert np.array_equal(model.has_negative_MT, [*has_negative_MT, has_negative_MT[0]])


def test_auxiliary_heads_know_the_new_scenario_as_their_donor() -> None:
    heads = AuxiliaryHeads(["order"], width=3, num_scenarios=2, min_positives=1, lr=0.05, seed=0)
    rng, num = np.random.default_rng(0), 40
    c_NC = torch.from_numpy(rng.normal(size=(num, 3)).astype(np.float32))

    def settled(scenario_N: npt.NDArray[np.int64]) -> SettledRows:
        return SettledRows(
            c_NC=c_NC,
            scenario_N=torch.from_numpy(scenario_N),
            label_N=rng.integers(0, 2, num).astype(np.float32),
            weight_N=np.ones(num, np.float32),
            delay_ms_N=rng.integers(1, 9_000, num),
            observe_ms_N=np.full(num, 3_000),
            window_ms_N=np.full(num, 10_000),
            place_N=np.arange(num),
        )

    assert heads.learn(0, settled(rng.integers(0, 2, num)))
    before = heads.state()
    task = heads._of(0)
    old_N4 = [task.outputs(c_NC, torch.full((num,), scenario)) for scenario in (0, 1)]
    heads.add_scenario(donor=1)
    for scenario, expected_N4 in ((0, old_N4[0]), (1, old_N4[1]), (2, old_N4[1])):
        torch.testing.assert_close(task.outputs(c_NC, torch.full((num,), scenario)), expected_N4, rtol=0, atol=1e-6)
    after = heads.state()
    squares = "order/adam/exp_avg_sq/hidden_weight"
    assert torch.equal(after[squares], torch.cat([before[squares], before[squares][:, 4:5]], dim=1))
    assert not after["order/adam/exp_avg/hidden_weight"][:, 5].any()
    assert heads.learn(0, settled(np.full(num, 2)))
    other = AuxiliaryHeads(["order"], width=3, num_scenarios=2, min_positives=1, lr=0.05, seed=0)
    other.add_scenario(donor=1)
    other.load_state(heads.state())
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in heads.state().items())


# The trainer: who is added, and when.


@pytest.fixture(scope="module")
def uninterrupted() -> Trainer:
    trainer = grown_trainer()
    trainer.run(never)
    assert trainer.learner.trained.registry.names == ("home", "search", "deals")
    return trainer


def opened(trainer: Trainer) -> float:
    """How far `deals` is open."""
    net = trainer.learner.trained.net
    assert isinstance(net, HiNet) and net.attention is not None
    return float(net.attention.share_N[2])


def test_a_scenario_is_added_once_enough_was_learned_of_it(uninterrupted: Trainer) -> None:
    stats = uninterrupted.stats
    assert stats.scenarios_added == 1 and stats.dead_letters == 0
    assert GROWTH.scenario_admission <= stats.unknown_rows < GROWTH.scenario_admission + 2 * CONFIG.batch_rows
    figures = uninterrupted.metrics.report()["click"]
    assert list(figures) == ["all", "home", "search", "deals"]
    assert (figures["deals"]["n"] or 0) > GROWTH.open_full_rows
    assert sum(figures[name]["n"] or 0 for name in ("home", "search", "deals")) == figures["all"]["n"]
    assert opened(uninterrupted) == 1.0


@pytest.mark.parametrize("poll_messages", [1, 3])
def test_the_bits_depend_on_the_log_alone(uninterrupted: Trainer, poll_messages: int) -> None:
    other = grown_trainer(config=replace(EVERY_BATCH, poll_messages=poll_messages))
    other.run(never)
    assert_same_bits(other, uninterrupted)


def test_being_stopped_and_started_all_the_time_changes_no_bit(uninterrupted: Trainer, tmp_path: Path) -> None:
    rare, shares = replace(CONFIG, checkpoint_interval_ms=1_000_000), set()
    for _ in range(200):
        trainer = grown_trainer(checkpoint_dir=tmp_path, config=rare)
        trainer.run(after_rounds(7))
        if len(trainer.learner.trained.registry.names) == 3:
            shares.add(opened(trainer))
        if trainer.learner.num_steps == uninterrupted.learner.num_steps:
            break
    assert len(shares - {0.0, 1.0}) > 1, "it was stopped while the scenario opened, or this test shows nothing"
    assert_same_bits(trainer, uninterrupted)


@pytest.mark.parametrize("where", ["before growing", "after growing", "while opening"])
def test_a_crash_changes_no_bit(
    uninterrupted: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    crashing = grown_trainer(checkpoint_dir=tmp_path)
    model = crashing.learner.trained
    grow, open_scenarios = model.add_scenario, model.open_scenarios

    def crash_growing(name: str) -> None:
        if where == "after growing":
            grow(name)
        raise CrashError

    def crash_opening(num_rows_M: npt.NDArray[np.int64]) -> None:
        open_scenarios(num_rows_M)
        if len(model.registry.names) == 3 and 0.3 < opened(crashing) < 1.0:
            raise CrashError

    if where == "while opening":
        monkeypatch.setattr(model, "open_scenarios", crash_opening)
    else:
        monkeypatch.setattr(model, "add_scenario", crash_growing)
    with pytest.raises(CrashError):
        crashing.run(never)
    resumed = grown_trainer(checkpoint_dir=tmp_path)
    assert resumed.resume()
    assert len(resumed.learner.trained.registry.names) == (3 if where == "while opening" else 2)
    resumed.run(never)
    assert_same_bits(resumed, uninterrupted)


def test_other_thresholds_of_opening_hold_from_the_resume_on(tmp_path: Path) -> None:
    grown_trainer(checkpoint_dir=tmp_path).run(never)
    wide = replace(GROWING_MODEL, growth=replace(GROWTH, open_full_rows=10**9))
    resumed = grown_trainer(checkpoint_dir=tmp_path, model=wide)
    assert resumed.resume() and 0 < opened(resumed) < 1e-6


def test_a_batch_that_is_not_finite_counts_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = replace(EVERY_BATCH, max_skipped_in_row=100)
    trainer = grown_trainer({0: growing_log(1, 12, deals_from(0, share=1.0))}, config=patient)
    honest = trainer.learner.learn

    def poisoned(batch: EncodedBatch, labels: LabelBatch) -> object:
        return honest(batch, replace(labels, weight_BT=np.full_like(labels.weight_BT, np.nan)))

    monkeypatch.setattr(trainer.learner, "learn", poisoned)
    trainer.run(never)
    assert trainer.stats.skipped > 3 and trainer.stats.unknown_rows == 0
    assert trainer.learner.trained.registry.names == ("home", "search")


def garbage(rng: np.random.Generator, at: int) -> str | None:
    return f"x{rng.integers(10**9)}" if rng.random() < 0.8 else ("deals" if rng.random() < 0.7 else None)


def test_names_without_end_do_not_grow_the_model() -> None:
    small = replace(GROWING_MODEL, growth=replace(GROWTH, max_scenarios=3, scenario_admission=10))
    trainer = grown_trainer({0: growing_log(1, 110, garbage)}, model=small)
    trainer.run(never)
    model = trainer.learner.trained
    assert model.registry.names == ("home", "search", "deals")
    assert trainer.stats.scenarios_added == 1 and trainer.stats.unknown_rows > 800
    assert len(model.state_meta()["growth"]["counts"]) <= 256


def test_the_bound_holds_for_names_that_are_worth_it() -> None:
    small = replace(GROWING_MODEL, growth=replace(GROWTH, max_scenarios=4, scenario_admission=8))
    trainer = grown_trainer({0: growing_log(1, 20, lambda rng, at: f"s{rng.integers(5)}")}, model=small)
    trainer.run(never)
    assert len(trainer.learner.trained.registry.names) == trainer.learner.trained.net.num_scenarios == 4


@pytest.mark.parametrize("mode", ["reject", "default"])
def test_without_add_nothing_is_added(mode: UnknownScenario) -> None:
    schema = replace(GROWING, unknown_scenario=mode, default_scenario="search")
    trainer = grown_trainer(schema=schema)
    trainer.run(never)
    assert trainer.learner.trained.registry.names == ("home", "search")
    assert (trainer.stats.dead_letters > 0) == (mode == "reject")


def test_the_snapshot_after_it_is_full_and_carries_the_registry() -> None:
    store, clock = MemorySnapshotStore(), Clock()
    config = TrainerConfig(batch_rows=12, publish_interval_ms=1, metrics=METRICS)
    trainer = new_trainer(store=store, config=config, clock=clock, schema=GROWING, model=GROWING_MODEL)
    manifests = []
    for offset, message in enumerate(growing_log(1, 14, deals_from(15))):
        clock.ms += 10
        trainer.train_message(message, 0, offset)
        manifests.append(trainer.publish_if_due())
    published = [(m.kind, len(m.scenarios), m.scenario_parents) for m in manifests if m is not None]
    added = next(place for place, (_, num, _) in enumerate(published) if num == 3)
    assert 1 < added < len(published) - 2
    assert [kind for kind, _, _ in published] == ["full" if n in (0, added) else "delta" for n in range(len(published))]
    assert {str(parents) for _, num, parents in published if num == 3} == {"{'deals': 'home'}"}
    assert not any(parents for _, num, parents in published if num == 2)


# What cannot grow says so at the start.


def test_a_network_that_takes_in_no_scenario_is_refused_at_the_start() -> None:
    config = ModelConfig(architecture="aesm2")
    with pytest.raises(ValueError, match=r"^architecture: aesm2 .*\(unknown_scenario: add\)$") as refused:
        Learner(GROWING, config, seed=0)
    assert "\n" not in str(refused.value)
    Learner(SCHEMA, config, seed=0)


def test_a_full_model_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"^growth.max_scenarios: 2 is not allowed .* 2 listed scenarios"):
        check_growth(nn.Module(), GROWING, GrowthConfig(max_scenarios=2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario_admission": 0}, "scenario_admission: 0 is not allowed; at least 1"),
        ({"open_from_rows": -1}, "open_from_rows: -1 is not allowed; at least 0"),
        ({"open_from_rows": 9, "open_full_rows": 9}, "open_full_rows: 9 is not allowed; more than open_from_rows, 9"),
        ({"max_scenarios": 0}, "max_scenarios: 0 is not allowed; at least 1"),
    ],
)
def test_settings_that_are_not_allowed(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GrowthConfig(**changes)


@pytest.mark.parametrize(
    ("names", "parents", "message"),
    [
        (["home"], {}, "scenarios: "),
        (["search", "home"], {}, "scenarios: "),
        (["home", "search", "deals", "deals"], {"deals": "home"}, "scenarios: "),
        (["home", "search", "deals"], {}, "parents.deals: None is not allowed"),
        (["home", "search", "deals"], {"deals": "deals"}, "parents.deals: 'deals' is not allowed"),
    ],
)
def test_a_registry_of_another_schema_is_refused(names: list[str], parents: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScenarioRegistry.restored(SCHEMA, names, parents)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 5)), max_size=60), st.integers(1, 5))
def test_counts_are_never_too_high_and_too_low_by_a_bounded_part(pairs: list[tuple[str, int]], most: int) -> None:
    counts, truth = NameCounts(most), Counter[str]()
    for name, num in pairs:
        truth[name] += num
        now = counts.add(name, num)
        assert now == counts.of.get(name, 0) and len(counts.of) <= most
    for name, num in truth.items():
        assert num - truth.total() / (most + 1) <= counts.of.get(name, 0) <= num
