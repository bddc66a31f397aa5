"""Policies that correct labels later, through decoder, learner and trainer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.auxiliary import AuxiliaryHeads
from model.delayed_labels import POLICY_CODE, DelayedLabels, policy_weights
from model.examples import ExampleDecoder, TrainRows
from model.features import FeatureEncoder, RowColumns
from model.label_policy import row_terms, served_probability
from model.labels import LabelBatch
from model.learner import Learner
from model.serving import ServingModel
from model.source import MemoryExampleSource
from model.task_heads import SettledRows
from model.trainer import Trainer
from stream.schema import KIND_CODE, KindName, PolicyName
from tests.model.delayed_log import (
    CONFIG,
    MODEL,
    OBSERVE_MS,
    SHARE,
    TASK,
    WINDOW_MS,
    messages,
    schema_of,
    slates,
)
from tests.model.example_log import Clock, new_trainer

CATEGORIES = RowColumns(
    scenario=["home"],
    user_id=["u"],
    item_id=list(SHARE),
    request_index_B=np.zeros(len(SHARE), np.int64),
    item={"category": list(SHARE)},
)
NO_WARM_UP = replace(MODEL, loss=replace(MODEL.loss, aux_min_positives=1))
ONLY_WARM_UP = replace(MODEL, loss=replace(MODEL.loss, aux_min_positives=10**9))

pytestmark = pytest.mark.usefixtures("one_thread")


def decoded(policy: PolicyName, number: int = 30, seed: int = 0) -> list[TrainRows]:
    schema = schema_of(order=policy)
    decoder = ExampleDecoder(schema, FeatureEncoder(schema, MODEL.encoding))
    return [decoder.decode(message).rows for message in messages(slates(seed, number), schema)]


def labels_of(rows: TrainRows) -> LabelBatch:
    return LabelBatch(
        label_BT=rows.label_BT,
        mask_BT=rows.mask_BT,
        weight_BT=rows.weight_BT,
        first_BT=rows.first_BT,
        delayed=rows.delayed,
    )


def of_kinds(rows: TrainRows, *kinds: KindName) -> np.ndarray:
    assert rows.delayed is not None
    return np.flatnonzero(np.isin(rows.delayed.kind_BT[:, 0], [KIND_CODE[kind] for kind in kinds]))


def whole(policy: PolicyName) -> TrainRows:
    return TrainRows.concat(decoded(policy))


# Decoding.


def test_final_policies_carry_nothing_of_it_and_may_share_a_batch_with_others() -> None:
    wait, fnw = whole("wait"), whole("fnw")
    assert wait.delayed is None
    mixed = TrainRows.concat([fnw, wait])
    assert mixed.delayed is not None
    assert fnw.delayed is not None
    assert (mixed.delayed.kind_BT[len(fnw.label_BT) :, 0] == KIND_CODE["final"]).all()
    np.testing.assert_array_equal(mixed.settled_BT, mixed.delayed.settled_BT())
    assert mixed.take(slice(3, 7)).delayed is not None


def test_every_emission_of_an_item_has_its_key_and_no_other_item_has_it() -> None:
    rows = whole("es_dfm")
    assert rows.delayed is not None
    keys = rows.delayed.key_B
    first, settled = of_kinds(rows, "early_positive", "early_negative"), of_kinds(rows, "matured")
    late = of_kinds(rows, "late_positive")
    assert len(np.unique(keys[first])) == len(first) == 30 * 4
    assert set(keys[first]) == set(keys[settled])
    assert set(keys[late]) < set(keys[first])


def test_settled_rows_alone_are_the_truth_and_first_rows_alone_are_admitted() -> None:
    for policy in POLICY_CODE:
        rows = whole(policy)  # type: ignore[arg-type] # the table's keys are the names
        assert rows.settled_BT.sum() == rows.first_BT.sum() == 30 * 4, policy


# Weights in a batch.


def test_rows_of_several_policies_in_one_batch_weigh_what_each_of_their_policies_says() -> None:
    parts = [whole("fnw"), whole("defer_neg"), whole("wait"), whole("defuse")]
    rows = TrainRows.concat(parts)
    assert rows.delayed is not None
    score_BT = np.random.default_rng(0).uniform(0.05, 0.95, rows.label_BT.shape).astype(np.float32)

    def estimates(policy: PolicyName, task: int, chosen: np.ndarray) -> dict[str, np.ndarray]:
        exact = {"defer_neg": {"late": 0.1}, "defuse": {"late": 0.2, "negative": 0.8}}[policy]
        return {name: np.full(len(chosen), value, np.float32) for name, value in exact.items()}

    got = policy_weights(rows.delayed, rows.label_BT, rows.mask_BT, score_BT, estimates)  # type: ignore[arg-type]
    start = 0
    policies: tuple[PolicyName, ...] = ("fnw", "defer_neg", "wait", "defuse")
    for part, policy in zip(parts, policies, strict=True):
        here = slice(start, start + part.num_rows)
        start += part.num_rows
        kind = rows.delayed.kind_BT[here, 0]
        needed = {} if policy in ("fnw", "wait") else estimates(policy, 0, kind)
        terms = row_terms(policy, kind, part.label_BT[:, 0], score_BT[here, 0], **needed)
        trained = part.mask_BT[:, 0]
        plus, minus = (
            got.target_BT[here, 0] * got.factor_BT[here, 0],
            (1 - got.target_BT)[here, 0] * got.factor_BT[here, 0],
        )
        np.testing.assert_allclose(plus[trained], terms.a_plus[trained], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(minus[trained], terms.a_minus[trained], rtol=1e-6, atol=1e-7)
    assert got.num_weighed == sum(int(part.mask_BT.sum()) for part in (parts[0], parts[1], parts[3]))


def test_a_log_trains_by_the_policy_it_was_recorded_under() -> None:
    """Recorded under `fnw`, replayed under a config that says `es_dfm`: nothing of `es_dfm` happens."""
    log = messages(slates(1, 60), schema_of(order="fnw"))
    states = []
    for configured in ("fnw", "es_dfm"):
        trainer = new_trainer(schema=schema_of(order=configured), model=MODEL, config=CONFIG)
        for offset, value in enumerate(log):
            trainer.train_message(value, 0, offset)
        states.append(trainer.learner.trained.state())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# Auxiliary heads.


def test_settled_rows_move_the_heads_and_nothing_else() -> None:
    learner = Learner(schema_of(order="es_dfm"), NO_WARM_UP, seed=0)
    rows = whole("es_dfm")
    learner.learn(rows.batch, labels_of(rows))
    before, steps = learner.trained.state(), learner.num_steps
    matured = of_kinds(rows, "matured")
    # Shown after everything so far: the policy holds, settled rows are for the heads alone.
    labels = labels_of(rows).take(matured)
    assert labels.delayed is not None
    labels = replace(labels, delayed=replace(labels.delayed, impression_ms_B=labels.delayed.impression_ms_B + 10**9))
    stats = learner.trained.table.counters["item.category"].lookups
    report = learner.learn(rows.batch.take(matured), labels)
    after = learner.trained.state()
    assert not report.made
    assert np.isnan(report.logits_BT).all()
    assert learner.num_steps == steps
    assert learner.trained.table.counters["item.category"].lookups == stats
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("heads.order/") for name in moved)
    assert "heads.order/tower/out_weight" in moved


def delayed_at(*impression_ms: int) -> DelayedLabels:
    shape = (len(impression_ms), 1)
    return DelayedLabels(
        key_B=np.arange(len(impression_ms)),
        impression_ms_B=np.array(impression_ms),
        policy_BT=np.full(shape, POLICY_CODE["es_dfm"], np.int8),
        kind_BT=np.full(shape, KIND_CODE["matured"], np.int8),
        delay_ms_BT=np.full(shape, 5),
        observe_ms_BT=np.full(shape, OBSERVE_MS),
        window_ms_BT=np.full(shape, WINDOW_MS),
    )


def settled(num_rows: int, label: float) -> SettledRows:
    ones = np.ones(num_rows, np.int64)
    return SettledRows(
        c_NC=torch.ones(num_rows, 3),
        scenario_N=torch.zeros(num_rows, dtype=torch.int64),
        label_N=np.full(num_rows, label, np.float32),
        weight_N=np.ones(num_rows, np.float32),
        delay_ms_N=5 * ones,
        observe_ms_N=OBSERVE_MS * ones,
        window_ms_N=WINDOW_MS * ones,
        place_N=np.arange(num_rows),
    )


def test_the_policy_takes_over_for_slates_shown_after_all_that_was_seen() -> None:
    heads = AuxiliaryHeads((TASK,), width=3, num_scenarios=1, min_positives=10, lr=0.01, seed=0)
    assert heads.cold_BT(delayed_at(1)).all()
    heads.learn(0, settled(9, 1.0))
    heads.learn(0, settled(50, 0.0))
    assert heads.advance(heads.newest_ms_T(delayed_at(700, 300))) == []
    assert heads.cold_BT(delayed_at(10**12)).all(), "nine positives are not ten"
    heads.learn(0, settled(1, 1.0))
    assert heads.advance(heads.newest_ms_T(delayed_at(500))) == [TASK]
    assert heads.cold_BT(delayed_at(699, 700, 701))[:, 0].tolist() == [True, True, False]
    heads.learn(0, settled(5, 1.0))
    assert heads.advance(heads.newest_ms_T(delayed_at(900))) == [], "only once"
    assert heads.cold_BT(delayed_at(700, 701))[:, 0].tolist() == [True, False]


def test_heads_start_at_the_base_rates() -> None:
    heads = AuxiliaryHeads((TASK,), width=3, num_scenarios=1, min_positives=10, lr=1e-9, seed=0)
    heads.learn(0, settled(30, 1.0))
    heads.learn(0, settled(70, 0.0))
    estimates = heads.estimates("es_dfm", 0, torch.ones(1, 3), torch.zeros(1, dtype=torch.int64), delayed_at(0))
    assert estimates["late"] == pytest.approx(0.0, abs=0.01), "all positives came early"
    assert estimates["negative"] == pytest.approx(1.0, abs=0.01)
    seen = heads.estimates("fsiw", 0, torch.ones(1, 3), torch.zeros(1, dtype=torch.int64), delayed_at(0))["seen"]
    assert seen == pytest.approx(1.0, abs=0.02)


def test_the_rate_of_exponential_delays_is_found() -> None:
    rng = np.random.default_rng(0)
    mean_ms, num_rows = 15_000.0, 4_000
    drawn_ms = rng.exponential(mean_ms, 3 * num_rows)
    delay_ms = drawn_ms[drawn_ms <= WINDOW_MS][:num_rows].astype(np.int64)
    heads = AuxiliaryHeads((TASK,), width=3, num_scenarios=1, min_positives=10, lr=0.01, seed=0)
    for _ in range(4):
        heads.learn(0, replace(settled(len(delay_ms), 1.0), delay_ms_N=delay_ms))
    seen = heads.estimates("dfm", 0, torch.ones(1, 3), torch.zeros(1, dtype=torch.int64), delayed_at(0))["seen"]
    truth = (delay_ms <= OBSERVE_MS).mean()
    assert seen == pytest.approx(truth, rel=0.03)


def test_until_then_a_task_is_trained_as_under_wait() -> None:
    """Early rows pass, and only settled ones leave a trace; `vanilla` on the same log learns from the early ones."""
    rows = whole("es_dfm")
    early = of_kinds(rows, "early_positive", "early_negative")
    states = {}
    for flip in (False, True):
        learner = Learner(schema_of(order="es_dfm"), ONLY_WARM_UP, seed=0)
        labels = labels_of(rows)
        label_BT = labels.label_BT.copy()
        if flip:
            label_BT[early] = 1 - label_BT[early]
        for _ in range(3):
            learner.learn(rows.batch, replace(labels, label_BT=label_BT))
        states[flip] = learner.trained.state()
    assert all(torch.equal(states[False][name], states[True][name]) for name in states[False])
    start = Learner(schema_of(order="es_dfm"), ONLY_WARM_UP, seed=0).trained.state()
    assert any(not torch.equal(start[name], states[False][name]) for name in start if name.startswith("dense."))


def trained_on(policy: PolicyName, number: int) -> tuple[Trainer, float]:
    """Returns a trainer after a stream that still runs at its end, and sum p / sum y over its second half."""
    schema = schema_of(order=policy)
    log = slates(0, number, every_ms=100)
    last_ms = log[-1].impression.ts
    trainer = new_trainer(schema=schema, model=MODEL, config=CONFIG)
    batch = trainer.learner.encode(CATEGORIES)
    scores = []
    stream = messages(log, schema, until_ms=last_ms)
    for offset, value in enumerate(stream):
        trainer.train_message(value, 0, offset)
        if offset > len(stream) // 2:
            scores.append(1 / (1 + np.exp(-trainer.learner.score(batch)[:, 0].astype(np.float64))))
    return trainer, float(np.mean(scores, axis=0).sum() / sum(SHARE.values()))


@pytest.mark.parametrize("policy", ["es_dfm", "defer"])
def test_with_learnt_heads_the_model_ends_at_the_truth(policy: PolicyName) -> None:
    trainer, calibration = trained_on(policy, 6_000)
    assert trainer.stats.policies_begun == 1
    assert trainer.stats.labels_weighed > 20_000
    assert trainer.stats.labels_guarded < 0.01 * trainer.stats.labels_weighed
    assert calibration == pytest.approx(1.0, abs=0.03)


# Metrics and serving.


@pytest.mark.parametrize("policy", ["fnw", "es_dfm", "defer", "vanilla"])
def test_each_item_is_one_label_of_the_metrics_whatever_was_sent(policy: PolicyName) -> None:
    log = slates(2, 50)
    positives = sum(int((slate.delay_ms[TASK] >= 0).sum()) for slate in log)
    for scores in (None, 0.25):
        schema = schema_of(order=policy)
        trainer = new_trainer(schema=schema, model=NO_WARM_UP, config=CONFIG)
        for offset, value in enumerate(messages(slates(2, 50, scores=scores), schema)):
            trainer.train_message(value, 0, offset)
        trainer.flush()
        figures = trainer.metrics.report()[TASK]["all"]
        assert (figures["n"], figures["positives"]) == (200, positives)
        assert (trainer.stats.labels_unscored, trainer.stats.scores_dropped) == (0, 0)
        if scores is not None:
            assert figures["calibration"] == pytest.approx(200 * scores / positives), "the served score counts"


def test_scores_of_fnc_are_mapped_wherever_they_leave() -> None:
    schema = schema_of(order="fnc")
    trainer = new_trainer(schema=schema, model=replace(MODEL, priors={TASK: 0.2}), config=CONFIG)
    first, *rest = messages(slates(3, 200), schema)
    trainer.train_message(first, 0, 0)
    for offset, value in enumerate(rest, start=1):
        trainer.train_message(value, 0, offset)
    learner = trainer.learner
    own = 1 / (1 + np.exp(-learner.score(learner.encode(CATEGORIES))))
    serving = ServingModel.from_full(schema, learner.config, learner.trained.serving_full())
    np.testing.assert_allclose(serving.score(serving.encode(CATEGORIES)), served_probability("fnc", own), rtol=1e-4)
    raw = ServingModel.from_full(schema_of(order="fnw"), learner.config, learner.trained.serving_full())
    np.testing.assert_allclose(raw.score(raw.encode(CATEGORIES)), own, rtol=1e-4)


# Resume.


@pytest.mark.parametrize("rounds", [3, 12, 20])
@pytest.mark.parametrize("policy", ["defer", "dfm"])
def test_a_resumed_run_has_the_same_bits_heads_and_kept_scores_included(
    tmp_path: Path, policy: PolicyName, rounds: int
) -> None:
    schema = schema_of(order=policy, click="eager")
    log = {0: messages(slates(4, 200, ("order", "click")), schema)}
    config = replace(CONFIG, deterministic=True, checkpoint_interval_ms=10**9)
    model = replace(MODEL, loss=replace(MODEL.loss, aux_min_positives=40))

    def run(folder: Path | None, stop_after: int) -> Trainer:
        looks = iter([False] * stop_after)
        trainer = new_trainer(
            source=MemoryExampleSource(log),
            schema=schema,
            model=model,
            config=config,
            checkpoint_dir=folder,
            clock=Clock(step_ms=1),
        )
        trainer.run(lambda: next(looks, True))
        return trainer

    uninterrupted = run(None, 10**6)
    assert uninterrupted.stats.policies_begun == 1
    stopped = run(tmp_path, rounds)
    assert 0 < stopped.learner.num_steps < uninterrupted.learner.num_steps
    resumed = run(tmp_path, 10**6)
    ours, theirs = resumed.learner.trained.state(), uninterrupted.learner.trained.state()
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("heads.order/adam/exp_avg/") for name in ours)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    our_metrics, their_metrics = resumed.metrics.state(), uninterrupted.metrics.state()
    assert our_metrics.keys() == their_metrics.keys()
    for name, array in our_metrics.items():
        np.testing.assert_array_equal(array, their_metrics[name], err_msg=name)
    for count in ("steps", "labels_weighed", "labels_guarded", "policies_begun", "labels_unscored"):
        assert getattr(resumed.stats, count) == getattr(uninterrupted.stats, count), count
