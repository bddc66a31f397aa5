"""The teacher: what it says, when it is renewed, who may be one, and that it changes nothing but the loss."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.delayed_labels import Float32Array
from model.drift_guard import DriftGuard, DriftGuardConfig
from model.features import EncodedBatch
from model.labels import LabelBatch
from model.learner import Learner
from model.score_regularization import ScoreRegularizationConfig
from model.served_teacher import ServedScores, ServedTeacher
from model.source import MemoryExampleSource
from model.store import MemorySnapshotStore
from model.teacher import Taught, Teacher
from model.teacher_releases import TeacherReleases
from model.trainer import Trainer
from stream.schema import SchemaConfig
from tests.model.example_log import MODEL, Clock, new_trainer, partition_log
from tests.model.test_resume import after_rounds, assert_same_bits, never
from tests.model.train_child import CONFIG
from tests.model.worlds import SCHEMA, columns, labels, tiny_config

SNAPSHOT = ScoreRegularizationConfig(teacher="snapshot", min_examples=0, known_ids=(), drift_guard=None)
LOG = {0: partition_log(seed=1, num_messages=14), 1: partition_log(seed=2, num_messages=9, first=3)}


def learner_of(config: ScoreRegularizationConfig = SNAPSHOT, schema: SchemaConfig = SCHEMA) -> Learner:
    return Learner(schema, tiny_config(score_regularization=config), seed=0)


def teacher_of(learner: Learner) -> Teacher:
    assert learner.trained.teacher is not None
    return learner.trained.teacher


def learn(learner: Learner, rng: np.random.Generator, steps: int, watermark_ms: int = 1_000) -> None:
    for _ in range(steps):
        own = replace(labels(rng, 60), watermark_ms=watermark_ms)
        learner.learn(learner.encode(columns(rng, 10, 60)), own)


def take(learner: Learner, version: int = 1, watermark_ms: int = 1_000) -> None:
    learner.trained.take_teacher(version, watermark_ms)
    learner.trained.promote_teacher(version, {})


def ask(learner: Learner, batch: EncodedBatch, own: LabelBatch) -> Taught | None:
    """What the teacher says of a batch; rows sorted by scenario."""
    rows = learner.trained.rows
    batch, order_B, row_offsets = learner.resolved(batch).by_scenario(learner.trained.net.num_scenarios)
    own = own.take(order_B)
    lookup = rows.lookup(batch, np.any(own.first_BT, axis=1))
    return teacher_of(learner).teach(batch, rows, lookup, row_offsets, own, own.mask_BT, "float32")


def said(learner: Learner, batch: EncodedBatch, own: LabelBatch) -> tuple[Float32Array, Float32Array]:
    """Logits and whether they are held to, in the order of the batch."""
    _, order_B, _ = learner.resolved(batch).by_scenario(learner.trained.net.num_scenarios)
    taught = ask(learner, batch, own)
    assert taught is not None
    logits_BT, held_BT = np.empty((2, *own.label_BT.shape), np.float32)
    logits_BT[order_B], held_BT[order_B] = taught.z_BT.numpy(), taught.is_held_BT
    return logits_BT, held_BT


def all_on(num_rows: int) -> LabelBatch:
    on = np.ones((num_rows, 2), np.bool_)
    zero = np.zeros((num_rows, 2), np.float32)
    return LabelBatch(label_BT=zero, mask_BT=on, weight_BT=zero + 1, first_BT=on, watermark_ms=2_000)


def test_it_says_what_the_model_said_when_it_was_taken() -> None:
    learner, rng = learner_of(), np.random.default_rng(0)
    learn(learner, rng, 10)
    probe = learner.encode(columns(rng, 12, 80, num_ids=60))
    then = learner.score(probe)
    take(learner)
    keys, _ = learner.trained.table.ids.items()
    learner.trained.table.evict(keys[::3])
    learn(learner, rng, 10)
    now = learner.score(probe)
    assert np.abs(now - then).max() > 0.01
    logits_BT, held_BT = said(learner, probe, all_on(80))
    np.testing.assert_allclose(logits_BT, then, atol=1e-6)
    assert held_BT.all()


def test_asking_it_changes_nothing_and_nothing_of_it_learns() -> None:
    learner, rng = learner_of(), np.random.default_rng(1)
    learn(learner, rng, 6)
    take(learner)
    learn(learner, rng, 2)
    before = learner.trained.state()
    learner.trained.adam.zero_grad(set_to_none=True)
    taught = ask(learner, learner.encode(columns(rng, 10, 60)), all_on(60))
    assert taught is not None and not taught.z_BT.requires_grad
    after = learner.trained.state()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in learner.trained.parameters.values())
    copies = {name: tensor for name, tensor in before.items() if name.startswith("teacher.copies.current.dense")}
    learn(learner, rng, 5)
    final = learner.trained.state()
    assert copies and all(torch.equal(tensor, final[name]) for name, tensor in copies.items())
    live = {name.replace("teacher.copies.current.", ""): tensor for name, tensor in copies.items()}
    assert any(not torch.equal(tensor, final[name]) for name, tensor in live.items())


def test_a_mean_network_is_the_mean_of_the_networks() -> None:
    learner, rng = learner_of(replace(SNAPSHOT, teacher="ema", ema_half_life_steps=3)), np.random.default_rng(2)
    mean: dict[str, torch.Tensor] = {}
    for _ in range(6):
        learn(learner, rng, 1)
        parameters = learner.trained.parameters.items()
        dense = {name: parameter.detach().clone() for name, parameter in parameters}
        share = 1 - 2 ** (-1 / 3)
        mean = {name: mean[name] + share * (dense[name] - mean[name]) for name in mean} or dense
    take(learner)
    state = learner.trained.state()
    for name, tensor in mean.items():
        assert torch.allclose(state[f"teacher.copies.current.dense.{name}"], tensor, atol=1e-6), name


def test_rows_that_say_nothing_new_or_unknown_are_not_held() -> None:
    """Repeats, cells that are not trained, ids with too few examples; each is counted by its reason."""
    config = replace(SNAPSHOT, known_ids=("item_id",), min_examples=4, task_weights={"order": 0.0})
    learner, rng = learner_of(config), np.random.default_rng(3)
    seen: dict[str, int] = {}
    for _ in range(6):
        rows, own = columns(rng, 10, 60), all_on(60)
        learner.learn(learner.encode(rows), own)
        for item in rows.item_id:
            seen[item] = seen.get(item, 0) + 1
    take(learner)
    rows, own = columns(rng, 10, 80, num_ids=60), all_on(80)
    first_BT, mask_BT = rng.random((80, 2)) < 0.8, rng.random((80, 2)) < 0.8
    _, held_BT = said(learner, learner.encode(rows), replace(own, first_BT=first_BT, mask_BT=mask_BT))
    teacher = teacher_of(learner)
    asked_B = first_BT[:, 0] & mask_BT[:, 0]
    never_seen_B = np.array([item not in seen for item in rows.item_id])
    often_seen_B = np.array([seen.get(item, 0) >= 14 for item in rows.item_id])
    assert (asked_B & often_seen_B).any() and (asked_B & never_seen_B).any()
    assert not held_BT[:, 1].any() and not held_BT[~asked_B, 0].any()
    assert not held_BT[never_seen_B, 0].any() and held_BT[asked_B & often_seen_B, 0].all()
    assert teacher.masked["unknown_id"] == asked_B.sum() - held_BT[:, 0].sum()


def test_an_item_is_known_from_its_nth_example_on() -> None:
    config = replace(SNAPSHOT, known_ids=("item_id",), min_examples=3)
    learner = learner_of(config)
    rng = np.random.default_rng(4)
    rows = replace(columns(rng, 1, 2), item_id=["one", "other"])
    held = []
    for _ in range(12):
        learner.learn(learner.encode(rows), all_on(2))
        take(learner)
        held.append(bool(said(learner, learner.encode(rows), all_on(2))[1].all()))
    assert held[0] is False and held[-1] is True and held == sorted(held)


def test_a_scenario_added_after_the_copy_is_not_held() -> None:
    schema = replace(SCHEMA, unknown_scenario="add")
    learner, rng = learner_of(schema=schema), np.random.default_rng(5)
    learn(learner, rng, 5)
    rows = columns(rng, 6, 40)
    names = [*rows.scenario[:3], "moon", "moon", "moon"]
    probe = learner.encode(replace(rows, scenario=names))
    then = learner.score(probe)
    take(learner)
    learner.trained.add_scenario("moon")
    learn(learner, rng, 3)
    logits_BT, held_BT = said(learner, probe, all_on(40))
    is_moon_B = np.array([names[request] == "moon" for request in rows.request_index_B])
    assert is_moon_B.any() and not held_BT[is_moon_B].any() and held_BT[~is_moon_B].all()
    np.testing.assert_allclose(logits_BT[~is_moon_B], then[~is_moon_B], atol=1e-6)
    assert teacher_of(learner).masked["new_scenario"] == 2 * is_moon_B.sum()
    take(learner, version=2)
    assert said(learner, probe, all_on(40))[1].all()


def test_a_copy_is_due_once_per_refresh_of_event_time() -> None:
    learner = learner_of(replace(SNAPSHOT, teacher_refresh_ms=100))
    teacher, taken = teacher_of(learner), []
    for watermark_ms in (0, 50, 149, 150, 150, 151, 249, 250, 900, 901, 1_000):
        if teacher.falls_due(watermark_ms):
            take(learner, watermark_ms, watermark_ms)
            taken.append(watermark_ms)
    assert taken == [150, 250, 900, 1_000]


def test_a_version_that_is_not_promoted_does_not_teach_and_stays_due() -> None:
    learner, rng = learner_of(replace(SNAPSHOT, teacher_refresh_ms=100)), np.random.default_rng(6)
    teacher = teacher_of(learner)
    learn(learner, rng, 3, watermark_ms=50)
    falls = [(teacher.falls_due(at), teacher.is_due) for at in (50, 150, 151)]
    assert falls == [(False, False), (True, True), (False, True)]
    learner.trained.take_teacher(7, 151)
    assert (teacher.falls_due(200), teacher.is_due) == (False, False)
    assert ask(learner, learner.encode(columns(rng, 5, 10)), all_on(10)) is None
    learner.trained.promote_teacher(6, {})
    assert ask(learner, learner.encode(columns(rng, 5, 10)), all_on(10)) is None
    assert teacher.masked["no_teacher"] >= 40
    learner.trained.promote_teacher(7, {})
    assert ask(learner, learner.encode(columns(rng, 5, 10)), all_on(10)) is not None


def test_a_denied_version_hands_over_to_the_one_before() -> None:
    learner, rng = learner_of(), np.random.default_rng(7)
    probe = learner.encode(columns(rng, 5, 20))
    scores = []
    for version in (1, 2, 3):
        learn(learner, rng, 5)
        scores.append(learner.score(probe))
        take(learner, version)
    teacher = teacher_of(learner)
    teacher.deny(3)
    np.testing.assert_allclose(said(learner, probe, all_on(20))[0], scores[1], atol=1e-6)
    learner.trained.promote_teacher(3, {})
    np.testing.assert_allclose(said(learner, probe, all_on(20))[0], scores[1], atol=1e-6)
    teacher.deny(2)
    assert ask(learner, probe, all_on(20)) is None


def test_served_scores_are_turned_back_into_the_networks_logits() -> None:
    rng = np.random.default_rng(8)
    teacher = ServedTeacher(("wait", "fnc"), max_versions=3)
    pairs = {"home": {"click": (0.8, 0.3), "order": (1.3, -0.5)}, "search": {"order": (2.0, 0.1)}}
    for version, own in ((3, {}), (4, pairs), (5, pairs), (7, {})):
        teacher.promoted(version, ("home", "search"), ("click", "order"), own)
    teacher.deny(5)
    z_BT = np.stack([rng.uniform(-4, 4, 60), rng.uniform(-6, -0.5, 60)], axis=1)
    scenario_B, version_B = rng.integers(0, 3, 60), rng.choice([0, 3, 4, 5, 6, 7], 60)
    served_BT = np.empty((60, 2))
    for b in range(60):
        for t, task in enumerate(("click", "order")):
            name = ("home", "search", "later")[scenario_B[b]]
            slope, offset = pairs.get(name, {}).get(task, (1.0, 0.0)) if version_B[b] in (4, 5) else (1.0, 0.0)
            f = 1 / (1 + np.exp(-z_BT[b, t]))
            p = f / (1 - f) if task == "order" else f
            served_BT[b, t] = 1 / (1 + np.exp(-(slope * np.log(p / (1 - p)) + offset)))
    served_BT[:5, 0] = np.nan
    served = ServedScores(
        probability_BT=served_BT.astype(np.float32), version_B=version_B, impression_ms_B=np.zeros(60, np.int64)
    )
    restored = ServedTeacher(("wait", "fnc"), max_versions=3)
    restored.load_state(teacher.state())
    for one in (teacher, restored):
        found_BT, reasons = one.logits(scenario_B, served)
        silent = np.zeros((60, 2), np.bool_)
        for is_silent in reasons.values():
            silent |= is_silent
        expected = np.isnan(served_BT) | ~np.isin(version_B, [4, 7])[:, None] | (scenario_B == 2)[:, None]
        np.testing.assert_array_equal(silent, expected)
        assert np.abs(found_BT - z_BT)[~silent].max() < 1e-5
        assert (reasons["denied_version"][:, 0] == (version_B == 5)).all()
        assert (reasons["unknown_version"][:, 0] == np.isin(version_B, [0, 3, 6])).all()  # 3: beyond max_versions


def test_what_was_served_teaches_by_version() -> None:
    learner = learner_of(ScoreRegularizationConfig(teacher="served", drift_guard=None))
    rng = np.random.default_rng(9)
    learn(learner, rng, 2)
    teacher = teacher_of(learner)
    learner.trained.promote_teacher(1, {"home": {"click": (2.0, 0.5)}})
    learner.trained.promote_teacher(2, {})
    teacher.deny(2)
    rows = replace(columns(rng, 1, 6), scenario=["home"])
    served = ServedScores(
        probability_BT=np.full((6, 2), 0.7, np.float32),
        version_B=np.array([1, 1, 1, 2, 9, 9]),
        impression_ms_B=np.full(6, 1_500),
    )
    logits_BT, held_BT = said(learner, learner.encode(rows), replace(all_on(6), served=served))
    logit = float(np.log(0.7 / 0.3))
    assert logits_BT[0].tolist() == pytest.approx([(logit - 0.5) / 2, logit], abs=1e-5)
    assert held_BT[:3].all() and not held_BT[3:].any()
    assert teacher.masked["denied_version"] == 2 and teacher.masked["unknown_version"] == 4
    assert teacher.age_ms == 500


def test_an_alarm_puts_the_term_to_rest_for_one_age_then_lets_it_back() -> None:
    """Another share of positives: rest for one refresh, a copy of the new world, then back over another."""
    config = replace(
        SNAPSHOT, teacher_refresh_ms=1_000, drift_guard=DriftGuardConfig(min_steps=10), known_ids=(), weight=2.0
    )
    model = tiny_config(score_regularization=config, priors={"click": 0.05, "order": 0.05})
    learner, rng = Learner(SCHEMA, model, seed=0), np.random.default_rng(10)
    teacher, factors, copies, alarm_ms = teacher_of(learner), {}, [], 0
    probe, own = learner.encode(columns(rng, 5, 20)), all_on(20)
    for step in range(120):
        watermark_ms = 1_000 + 100 * step
        rows = columns(rng, 10, 60)
        label_BT = (rng.random((60, 2)) < (0.05 if step < 60 else 0.6)).astype(np.float32)
        learner.learn(learner.encode(rows), replace(all_on(60), label_BT=label_BT, watermark_ms=watermark_ms))
        if teacher.num_alarms and not alarm_ms:
            alarm_ms = watermark_ms
        if teacher.falls_due(watermark_ms):
            copies.append(watermark_ms)
            take(learner, step, watermark_ms)
        taught = ask(learner, probe, replace(own, watermark_ms=watermark_ms))
        factors[watermark_ms] = 0.0 if taught is None else float(taught.factor_BT.max())
    assert 7_000 <= alarm_ms < 9_000
    assert all(factors[alarm_ms + 100 * i] == 0 for i in range(11))
    rising = [factors[alarm_ms + 100 * i] for i in range(11, 21)]
    assert rising == pytest.approx([0.2 * i for i in range(1, 11)], abs=1e-5)
    assert factors[5_900] == 2.0 and alarm_ms + 1_000 in copies


def test_the_guard_sees_a_rise_soon_and_a_steady_loss_as_steady() -> None:
    rng, alarms, seen_after = np.random.default_rng(11), 0, []
    for _ in range(20):
        guard = DriftGuard(DriftGuardConfig())
        alarms += sum(guard.update(float(loss)) for loss in rng.normal(0.3, 0.05, 400))
        after = [n for n in range(200) if guard.update(float(rng.normal(0.4, 0.05)))]
        seen_after.append(after[0] if after else 200)
        other = DriftGuard(DriftGuardConfig())
        other.load_state(guard.state())
        assert other.update(0.4) == guard.update(0.4)
    falling = DriftGuard(DriftGuardConfig())
    assert not any(falling.update(0.7 * 0.99**n + 0.2) for n in range(600))
    assert alarms <= 1 and np.median(seen_after) < 60


def regularized(teacher: str) -> ModelConfig:
    config = ScoreRegularizationConfig(
        teacher=teacher,  # type: ignore[arg-type]
        teacher_refresh_ms=3_000,
        min_examples=2,
        drift_guard=DriftGuardConfig(min_steps=3),
    )
    return replace(MODEL, score_regularization=config)


def trainer_with(teacher: str, folder: Path | None = None) -> Trainer:
    config = replace(CONFIG, checkpoint_interval_ms=1)
    trainer = new_trainer(
        source=MemoryExampleSource(LOG),
        checkpoint_dir=folder,
        config=config,
        clock=Clock(step_ms=1),
        model=regularized(teacher),
    )
    trainer.learner.trained.promote_teacher(7, {"home": {"click": (0.9, 0.2)}})  # the log's version
    return trainer


@pytest.mark.parametrize("teacher", ["snapshot", "served", "ema"])
def test_a_resumed_trainer_is_held_as_if_nothing_had_happened(tmp_path: Path, teacher: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = trainer_with(teacher)
    whole.run(never)
    for rounds in (9, 7, 11):
        trainer_with(teacher, tmp_path).run(after_rounds(rounds))
    resumed = trainer_with(teacher, tmp_path)
    resumed.run(never)
    torch.set_num_threads(threads)
    assert teacher_of(whole.learner).num_held > 50
    assert_same_bits(resumed, whole)


def test_a_trainer_that_publishes_copies_what_went_live() -> None:
    store, clock = MemorySnapshotStore(), Clock(step_ms=1)
    trainer = new_trainer(
        source=MemoryExampleSource(LOG), store=store, config=CONFIG, clock=clock, model=regularized("snapshot")
    )
    trainer.run(never)
    meta = trainer.learner.trained.state_meta()["teacher"]
    copies = meta["copies"]
    assert set(copies) == {"current", "previous"}
    versions = [copies[role]["version"] for role in ("previous", "current")]
    assert 0 < versions[0] < versions[1] <= trainer.publish_stats.version
    assert copies["current"]["taken_ms"] - copies["previous"]["taken_ms"] >= 3_000
    trainer.deny_teacher(versions[1])
    assert trainer.learner.trained.state_meta()["teacher"]["copies"]["current"]["version"] == versions[0]


def test_a_version_on_trial_teaches_when_it_is_released() -> None:
    """Also after a restart, from what the store says of it."""
    store = MemorySnapshotStore()
    new_trainer(source=MemoryExampleSource(LOG), store=store, config=CONFIG, clock=Clock(step_ms=1)).run(never)
    manifest = store.pointer()
    assert manifest is not None
    learner, rng = learner_of(replace(SNAPSHOT, teacher_refresh_ms=100)), np.random.default_rng(12)
    probe, releases = learner.encode(columns(rng, 5, 20)), TeacherReleases(learner.trained)
    teacher = teacher_of(learner)
    falls = [teacher.falls_due(watermark_ms) for watermark_ms in (1, 101)]
    releases.published(manifest, 101)
    assert falls == [False, True] and ask(learner, probe, all_on(20)) is None
    releases.released(manifest.version - 1)
    assert ask(learner, probe, all_on(20)) is None
    state, meta = learner.trained.state(), learner.trained.state_meta()
    releases.released(manifest.version)
    assert ask(learner, probe, all_on(20)) is not None
    other = learner_of(replace(SNAPSHOT, teacher_refresh_ms=100))
    other.trained.load_state(state, meta)
    assert ask(other, probe, all_on(20)) is None
    TeacherReleases(other.trained).take_up(store)
    assert ask(other, probe, all_on(20)) is not None
