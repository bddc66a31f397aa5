"""Serving calibration: the fit, the metrics before and after it, and the way of the pairs into what is served."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.calibrator import MAX_SLOPE, CalibrationConfig, Calibrator, fitted, pairs_array
from model.config import ModelConfig
from model.exceptions import SnapshotManifestError
from model.learner import Learner
from model.metrics import NUM_BINS, Float64Array, Int64Array, Tally, bin_of, scored_labels
from model.progressive import MetricsConfig, ProgressiveMetrics
from model.serving import ServingModel
from model.snapshot import decode_manifest, encode_manifest, open_snapshot
from model.source import MemoryExampleSource
from model.store import MemorySnapshotStore
from model.trainer import Trainer
from stream.schema import TaskConfig
from tests.model.example_log import MODEL, SCHEMA, Clock, new_trainer, partition_log
from tests.model.test_resume import after_rounds, assert_same_bits, never
from tests.model.train_child import CONFIG
from tests.model.worlds import SCHEMA as WORLD
from tests.model.worlds import columns, labels, tiny_config

AFFINE = CalibrationConfig(form="affine", prior_positives=20.0, half_life_labels=1e6)
LOG = {0: partition_log(seed=1, num_messages=30), 1: partition_log(seed=2, num_messages=20, first=3)}


@pytest.mark.parametrize("setting", ["half_life_labels", "prior_positives"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}: 0.0 is not allowed; greater than 0"):
        replace(CalibrationConfig(), **{setting: 0.0})  # type: ignore[arg-type]


def drawn(rng: np.random.Generator, num: int, slope: float, offset: float) -> tuple[Float64Array, Float64Array]:
    """Logits of a model, and labels of a world that it sees through (slope, offset)."""
    z = rng.normal(-1.5, 1.2, num)
    return z, (rng.random(num) < 1 / (1 + np.exp(-(slope * z + offset)))).astype(np.float64)


def histogram(z: Float64Array, label: Float64Array) -> Float64Array:
    counts = np.zeros((2, NUM_BINS))
    np.add.at(counts, (label.astype(int), bin_of(z)), 1)
    return counts


def plain_fit(z: Float64Array, label: Float64Array, prior: float) -> tuple[float, float]:
    """Gradient descent on the penalised likelihood, row by row in the sense of the definition."""
    mean, slope, shift = float(z.mean()), 1.0, 0.0
    rate = 4.0 / (len(z) * (1 + float(z.var())))
    for _ in range(4_000):
        error = 1 / (1 + np.exp(-(mean + shift + slope * (z - mean)))) - label
        slope, shift = (
            slope - rate * (float(error @ (z - mean)) + prior * (slope - 1)),
            shift - rate * (float(error.sum()) + prior * shift),
        )
    return slope, mean + shift - slope * mean


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.6, 0.8), (1.8, -0.7)])
@pytest.mark.parametrize("prior", [1e-6, 200.0])
def test_the_fit_is_the_penalised_maximum_likelihood(slope: float, offset: float, prior: float) -> None:
    z, label = drawn(np.random.default_rng(0), 3_000, slope, offset)
    assert fitted(histogram(z, label), prior) == pytest.approx(plain_fit(z, label, prior), abs=0.01)


def test_much_data_finds_the_truth_and_little_finds_nothing() -> None:
    rng = np.random.default_rng(1)
    z, label = drawn(rng, 200_000, 0.7, 0.5)
    assert fitted(histogram(z, label), 200.0) == pytest.approx((0.7, 0.5), abs=0.03)
    slope, offset = fitted(histogram(z[:20], label[:20]), 200.0)
    assert abs(slope - 1) < 0.05 and abs(offset) < 0.1


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_alone_and_far_logits_stay_finite(label: float) -> None:
    z = np.array([-40.0, -3.0, 0.0, 3.0, 40.0] * 1_000)
    slope, offset = fitted(histogram(z, np.full(5_000, label)), 1.0)
    assert 0 < slope <= MAX_SLOPE and np.isfinite(offset)


def test_older_labels_count_less_and_cells_are_apart() -> None:
    calibrator, rng = Calibrator(3, replace(AFFINE, half_life_labels=2_000)), np.random.default_rng(2)

    def learn(cell: int, offset: float, num: int) -> None:
        z, label = drawn(rng, num, 1.0, offset)
        tally = Tally(3)
        tally.add(scored_labels(np.full(num, cell), label, z))
        calibrator.learn(tally)

    learn(0, 1.0, 20_000)
    assert calibrator.pairs_C2[0, 1] == pytest.approx(1.0, abs=0.15)
    for _ in range(10):
        learn(0, -1.0, 2_000)
    assert calibrator.pairs_C2[0, 1] == pytest.approx(-1.0, abs=0.2)
    assert calibrator.pairs_C2[1:].tolist() == [[1.0, 0.0], [1.0, 0.0]]
    other = Calibrator(3, replace(AFFINE, half_life_labels=2_000))
    other.load_state(calibrator.state())
    assert other.pairs(["home"], ["a", "b", "c"]) == calibrator.pairs(["home"], ["a", "b", "c"])
    assert list(other.pairs(["home"], ["a", "b", "c"])["home"]) == ["a"]


def test_closed_cohorts_alone_are_fitted_and_the_metrics_show_before_and_after() -> None:
    """A model that is off by (0.6, 0.8): the labels of a cohort count when all of them must have arrived."""
    metrics = ProgressiveMetrics(("home",), ("click",), MetricsConfig(cohort_ms=1_000), 1_000, AFFINE)
    rng = np.random.default_rng(3)

    def update(at_ms: int, num: int = 2_000) -> None:
        z, label = drawn(rng, num, 0.6, 0.8)
        metrics.update(
            scenario_B=np.zeros(num, np.int64),
            impression_ms_B=np.full(num, at_ms, np.int64),
            label_BT=label[:, None],
            settled_BT=np.ones((num, 1), np.bool_),
            pre_step_logit_BT=z[:, None],
            served_BT=np.full((num, 1), np.nan),
        )

    update(500)
    metrics.advance(2_499, 1_500)
    assert metrics.calibration() == {}
    metrics.advance(2_500, 1_500)
    slope, offset = metrics.calibration()["home"]["click"]
    assert (slope, offset) == pytest.approx((0.6, 0.8), abs=0.12)
    for at_ms in range(1_500, 20_500, 1_000):
        update(at_ms)
        metrics.advance(at_ms + 2_000, 1_500)
    before = metrics.report("window", "pre_step")["click"]["all"]
    after = metrics.report("window", "calibrated")["click"]["all"]
    assert before["ne"] is not None and after["ne"] is not None and before["ne"] - after["ne"] > 0.01
    assert after["calibration"] == pytest.approx(1.0, abs=0.03)
    assert abs((before["calibration"] or 0) - 1) > 0.1
    assert metrics.report("window", "counted")["click"]["all"]["n"] == after["n"]
    other = ProgressiveMetrics(("home",), ("click",), MetricsConfig(cohort_ms=1_000), 1_000, AFFINE)
    other.load_state(metrics.state())
    metrics.add_scenario("deals")
    assert other.calibration() == metrics.calibration()


def test_a_scenario_may_come_later() -> None:
    metrics = ProgressiveMetrics(("home",), ("click",), MetricsConfig(cohort_ms=1_000), 1_000, AFFINE)
    metrics.add_scenario("deals")
    rng = np.random.default_rng(4)
    z, label = drawn(rng, 5_000, 0.6, 0.8)
    scenario: Int64Array = np.ones(5_000, np.int64)
    metrics.update(
        scenario_B=scenario,
        impression_ms_B=np.zeros(5_000, np.int64),
        label_BT=label[:, None],
        settled_BT=np.ones((5_000, 1), np.bool_),
        pre_step_logit_BT=z[:, None],
        served_BT=np.full((5_000, 1), np.nan),
    )
    metrics.advance(5_000, 1_000)
    assert list(metrics.calibration()) == ["deals"]


def test_what_is_served_is_the_calibrated_score() -> None:
    """By scenario and task, in the order of the rows, in full and delta; a task of `fnc` after its map to P(y=1)."""
    schema = replace(WORLD, tasks=WORLD.tasks | {"order": TaskConfig(action="order", window_ms=5_000, policy="fnc")})
    learner, rng = Learner(schema, tiny_config(), seed=0), np.random.default_rng(5)
    for _ in range(5):
        learner.learn(learner.encode(columns(rng, 10, 60)), labels(rng, 60))
    pairs = {"home": {"click": (0.5, 1.0)}, "deals": {"click": (2.0, -0.5), "order": (1.5, 0.25)}}
    rows = columns(rng, 12, 50)
    batch = learner.encode(rows)
    full = learner.trained.serving_full()
    raw = ServingModel.from_full(schema, learner.config, full)
    served = ServingModel.from_full(schema, learner.config, full, calibration=pairs)
    delta = learner.trained.serving_full()
    for model, own in ((served, pairs), (raw.apply_delta(delta, pairs), pairs), (served.apply_delta(delta), {})):
        p_BT, found_BT = raw.score(batch).astype(np.float64), model.score(batch)
        for b, request in enumerate(rows.request_index_B.tolist()):
            for t, task in enumerate(("click", "order")):
                slope, offset = own.get(rows.scenario[request], {}).get(task, (1.0, 0.0))
                odds = np.exp(slope * np.log(p_BT[b, t] / (1 - p_BT[b, t])) + offset)
                assert found_BT[b, t] == pytest.approx(odds / (1 + odds), abs=1e-6)
    assert pairs_array({}, ["home"], ["click"]).tolist() == [[[1.0, 0.0]]]


def calibrated_model() -> ModelConfig:
    return replace(MODEL, calibration=replace(AFFINE, prior_positives=5.0))


def test_the_manifest_of_every_snapshot_brings_the_pairs_to_the_ranker() -> None:
    store = MemorySnapshotStore()
    trainer = new_trainer(
        source=MemoryExampleSource(LOG), store=store, config=CONFIG, clock=Clock(step_ms=1), model=calibrated_model()
    )
    trainer.run(never)
    manifest = trainer.publish()
    assert manifest is not None and manifest.calibration and manifest.calibration == trainer.metrics.calibration()
    pairs = [pair for by_task in manifest.calibration.values() for pair in by_task.values()]
    assert all(slope > 0 for slope, _ in pairs) and any(pair != (1.0, 0.0) for pair in pairs)
    kept = store.manifest(manifest.version)
    assert kept is not None and decode_manifest(encode_manifest(kept)).calibration == manifest.calibration
    tensors = open_snapshot(kept, store.payload(kept), schema_hash=SCHEMA.schema_hash())
    assert not any("calibration" in name for name in tensors)


@pytest.mark.parametrize("slope", ["0.0", "-1.0", "1e400"])
def test_pairs_that_would_turn_the_order_are_refused(slope: str) -> None:
    trainer = new_trainer(
        source=MemoryExampleSource(LOG), store=MemorySnapshotStore(), config=CONFIG, clock=Clock(step_ms=1)
    )
    trainer.run(after_rounds(20))
    manifest = trainer.publish()
    assert manifest is not None
    pairs = b'"calibration":{"home":{"click":[%s,0.0]}}' % slope.encode()
    data = encode_manifest(manifest)
    with pytest.raises(SnapshotManifestError, match="manifest"):
        decode_manifest(data.replace(b'"calibration":{}', pairs))
    assert decode_manifest(data.replace(b'"calibration":{}', pairs.replace(slope.encode(), b"2.0")))


def test_a_resumed_trainer_calibrates_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def trainer(folder: Path | None) -> Trainer:
        source, config = MemoryExampleSource(LOG), replace(CONFIG, checkpoint_interval_ms=1)
        clock = Clock(step_ms=1)
        return new_trainer(source=source, checkpoint_dir=folder, config=config, clock=clock, model=calibrated_model())

    whole = trainer(None)
    whole.run(never)
    trainer(tmp_path).run(after_rounds(40))
    resumed = trainer(tmp_path)
    resumed.run(never)
    assert whole.metrics.calibration()
    assert_same_bits(resumed, whole)
