"""The trainer's loop: what it learns, counts, publishes and survives."""

import errno
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import checkpoint_paths
from model.examples import ExampleDecoder
from model.exceptions import StaleEpochError, StoreUnavailableError, TrainingDivergedError
from model.features import EncodingConfig
from model.optim import OptimConfig
from model.progressive import MetricsConfig
from model.serving import ServingModel
from model.snapshot import Manifest, open_snapshot
from model.source import ExampleMessage, MemoryExampleSource
from model.store import Lane, MemorySnapshotStore, StoreConfig, chain_to
from model.trainer import Trainer
from model.trainer_config import TrainerConfig
from tests.model.example_log import METRICS, MODEL, SCHEMA, Clock, encode, new_trainer, partition_log, slate
from tests.model.test_checkpoint import BreakingWriter

LOG = {0: partition_log(seed=1, num_messages=12), 1: partition_log(seed=2, num_messages=8)}
CONFIG = TrainerConfig(batch_rows=16, metrics=METRICS)
KEEP_ALL = StoreConfig(keep_fulls=1_000)


def never() -> bool:
    return False


def num_rows(log: dict[int, list[bytes]]) -> int:
    decoder = ExampleDecoder(SCHEMA, new_trainer().learner.encoder)
    return sum(
        decoder.decode(message).rows.num_rows for messages in log.values() for message in messages if message != b"bad"
    )


def test_it_learns_what_is_in_the_log() -> None:
    rng = np.random.default_rng(5)
    fast = OptimConfig(dense_lr=0.02, row_lr=0.3)
    model = replace(MODEL, encoding=EncodingConfig(history_length=0), optim=fast)
    metrics = MetricsConfig(window_labels=2_000)
    trainer = new_trainer(model=model, config=replace(CONFIG, batch_rows=32, metrics=metrics))
    for offset in range(60):
        slates = [slate(rng, offset * 20 + n, with_scores=False) for n in range(20)]
        trainer.train_message(encode(slates), partition=0, offset=offset)
    trainer.flush()
    click = trainer.metrics.report("window")["click"]["all"]
    assert click["ne"] is not None
    assert click["auc"] is not None
    assert click["ne"] < 0.85
    assert click["auc"] > 0.75
    assert click["calibration"] == pytest.approx(1.0, abs=0.25)


def test_every_row_is_trained_once_and_positions_are_at_the_end() -> None:
    trainer = new_trainer(source=MemoryExampleSource(LOG))
    trainer.run(never)
    assert trainer.stats.examples == num_rows(LOG)
    assert trainer.stats.messages == 20
    assert trainer.stats.steps == trainer.learner.num_steps
    assert {partition: (at.offset, at.row) for partition, at in trainer.positions.items()} == {0: (12, 0), 1: (8, 0)}
    report = trainer.metrics.report()
    assert report["click"]["all"]["n"] == trainer.stats.examples
    assert report["click"]["home"]["n"] != 0


def test_looking_at_some_micro_batches_changes_no_weight() -> None:
    whole = new_trainer(config=CONFIG, source=MemoryExampleSource(LOG), store=MemorySnapshotStore())
    some_config = replace(CONFIG, judged_share=0.5)
    some = new_trainer(config=some_config, source=MemoryExampleSource(LOG), store=MemorySnapshotStore())
    for trainer in (whole, some):
        trainer.run(never)
    weights, others = whole.learner.trained.state(), some.learner.trained.state()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert some.stats.examples == whole.stats.examples
    seen = some.metrics.report()["click"]["all"]["n"] / whole.metrics.report()["click"]["all"]["n"]
    assert seen == pytest.approx(0.5, abs=0.1)


def test_handing_messages_in_equals_running_over_them() -> None:
    ran = new_trainer(source=MemoryExampleSource({0: LOG[0]}))
    ran.run(never)
    handed = new_trainer()
    for offset, message in enumerate(LOG[0]):
        handed.train_message(message, 0, offset)
    handed.flush()
    state = ran.learner.trained.state()
    for name, tensor in handed.learner.trained.state().items():
        assert torch.equal(tensor, state[name]), name


def test_bad_messages_are_set_aside_and_no_good_one_is_lost() -> None:
    log = {0: [LOG[0][0], b"bad", LOG[0][1]], 1: [b"bad"]}
    dead_letters: list[tuple[int, int, str]] = []
    trainer = new_trainer(source=MemoryExampleSource(log), dead_letters=dead_letters)
    trainer.run(never)
    assert trainer.stats.dead_letters == 2
    assert sorted(place[:2] for place in dead_letters) == [(0, 1), (1, 0)]
    assert all("is not an Arrow stream" in error for _, _, error in dead_letters)
    assert trainer.stats.examples == num_rows(log)
    assert trainer.positions[0].offset == 3
    assert trainer.positions[1].offset == 1


class ImpatientSource(MemoryExampleSource):
    """Delivers each message twice."""

    def poll(self, max_messages: int, timeout_ms: int) -> list[ExampleMessage]:
        return [message for message in super().poll(max_messages, timeout_ms) for _ in range(2)]


def test_messages_that_come_again_are_ignored() -> None:
    trainer = new_trainer(source=ImpatientSource(LOG))
    trainer.run(never)
    assert trainer.stats.repeated == 20
    assert trainer.stats.examples == num_rows(LOG)


def test_rows_wait_for_their_batch_no_longer_than_allowed() -> None:
    clock = Clock()
    trainer = new_trainer(source=MemoryExampleSource({0: LOG[0][:1]}, ends=False), clock=clock)
    steps_at_round: list[int] = []

    def should_stop() -> bool:
        steps_at_round.append(trainer.stats.steps)
        clock.ms += 10 if len(steps_at_round) > 1 else 0
        return len(steps_at_round) > 5

    trainer.run(should_stop)
    assert num_rows({0: LOG[0][:1]}) < CONFIG.batch_rows
    # Polled in round 1 at 0 ms, then 10 ms a round: due in the round that starts 20 ms later.
    assert steps_at_round == [0, 0, 0, 1, 1, 1]


def published(trainer: Trainer, store: MemorySnapshotStore, step_ms: int) -> list[Manifest]:
    trainer.run(never)
    manifests = [store.manifest(version) for version in store.versions()]
    return [manifest for manifest in manifests if manifest is not None]


def test_a_snapshot_is_published_once_per_interval_while_there_is_news() -> None:
    store = MemorySnapshotStore(KEEP_ALL)
    clock = Clock(step_ms=1)
    config = replace(CONFIG, publish_interval_ms=1, full_every=3)
    manifests = published(
        new_trainer(source=MemoryExampleSource(LOG), store=store, config=config, clock=clock), store, 1
    )
    assert [manifest.step for manifest in manifests] == list(range(1, len(manifests) + 1))
    assert [manifest.version for manifest in manifests] == list(range(1, len(manifests) + 1))
    assert [manifest.kind for manifest in manifests[:4]] == ["full", "delta", "delta", "full"]
    rare = MemorySnapshotStore(KEEP_ALL)
    config = replace(CONFIG, publish_interval_ms=1_000_000)
    assert len(published(new_trainer(source=MemoryExampleSource(LOG), store=rare, config=config), rare, 0)) == 1


def test_the_last_snapshot_scores_as_the_learner_does_and_says_what_it_knows() -> None:
    store = MemorySnapshotStore(KEEP_ALL)
    config = replace(CONFIG, publish_interval_ms=1)
    trainer = new_trainer(source=MemoryExampleSource(LOG), store=store, config=config, clock=Clock(step_ms=1))
    trainer.run(never)
    live = store.pointer()
    assert live is not None
    assert live.offsets == {0: 12, 1: 8}
    assert live.watermark_ms == trainer.gauges.watermark_ms > 0
    assert live.metrics == trainer.metrics.report("window")
    assert live.model_config["hinet"]["expert_hidden"] == 8
    decoder = ExampleDecoder(SCHEMA, trainer.learner.encoder)
    decoded = [decoder.decode(message) for messages in LOG.values() for message in messages]
    learned = {int(ms) for one in decoded for ms in one.rows.feedback_ms_BT.ravel() if ms >= 0}
    sampled = [ms for version in store.versions() for ms in (store.manifest(version) or live).feedback_ms]
    assert set(sampled) == learned, "each positive's time is in exactly the version that learned it first"
    for version in store.versions():
        manifest = store.manifest(version) or live
        assert manifest.feedback_joined_ms == [-1] * len(manifest.feedback_ms), "this source does not say when"
        assert all(ms <= manifest.created_ms for ms in manifest.feedback_trained_ms)
        assert len(manifest.feedback_trained_ms) == len(manifest.feedback_ms)
    model: ServingModel | None = None
    for manifest in chain_to(store, live):
        tensors = open_snapshot(manifest, store.payload(manifest), schema_hash=SCHEMA.schema_hash())
        model = ServingModel.from_full(SCHEMA, MODEL, tensors) if model is None else model.apply_delta(tensors)
    assert model is not None
    batch = decoded[0].rows.batch
    logits = torch.from_numpy(trainer.learner.score(batch))
    # Served by the same sums in another order, so equal but for rounding.
    np.testing.assert_allclose(model.score(batch), logits.sigmoid().numpy(), rtol=1e-6)


class BrokenStore(MemorySnapshotStore):
    """Does not answer until told to."""

    is_gone = True

    def pointer(self, lane: Lane = "canary") -> Manifest | None:
        if self.is_gone:
            raise StoreUnavailableError("gone")
        return super().pointer(lane)


def test_training_goes_on_without_the_store_and_publishing_catches_up() -> None:
    store = BrokenStore()
    config = replace(CONFIG, publish_interval_ms=1)
    trainer = new_trainer(source=MemoryExampleSource(LOG), store=store, config=config, clock=Clock(step_ms=1))
    trainer.run(never)
    assert trainer.stats.examples == num_rows(LOG)
    assert trainer.publish_stats.failures["unavailable"] > 3
    store.is_gone = False
    manifest = trainer.publish()
    assert manifest is not None
    assert manifest.step == trainer.learner.num_steps


def test_a_store_that_hangs_costs_a_quarter_of_the_time_at_most() -> None:
    class HangingStore(MemorySnapshotStore):
        def pointer(self, lane: Lane = "canary") -> Manifest | None:
            clock.ms += 2_000
            raise StoreUnavailableError("timed out")

    clock = Clock()
    trainer = new_trainer(store=HangingStore(), config=replace(CONFIG, publish_interval_ms=100), clock=clock)
    started_ms = clock.ms
    for offset, message in enumerate(LOG[0]):
        trainer.train_message(message, 0, offset)
    for _ in range(400):
        clock.ms += 50
        trainer.publish_if_due()
    num_attempts = trainer.publish_stats.failures["unavailable"]
    assert num_attempts > 2
    assert num_attempts * 2_000 < 0.3 * (clock.ms - started_ms)


def test_a_trainer_that_was_overtaken_stops() -> None:
    store = MemorySnapshotStore()
    config = replace(CONFIG, publish_interval_ms=1)
    trainer = new_trainer(source=MemoryExampleSource(LOG), store=store, config=config, clock=Clock(step_ms=1))

    def overtaken() -> bool:
        if trainer.publish_stats.version == 2:
            store.next_epoch()
        return False

    with pytest.raises(StaleEpochError, match="another trainer publishes model main with epoch 2"):
        trainer.run(overtaken)
    assert store.versions() == [1, 2]


def test_a_full_disk_stops_checkpoints_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class FullDisk(BreakingWriter):
        def __init__(self) -> None:
            super().__init__(1, OSError(errno.ENOSPC, "No space left on device"))

        def _touch(self) -> bool:
            return True

    config = replace(CONFIG, checkpoint_interval_ms=1)
    trainer = new_trainer(
        source=MemoryExampleSource(LOG),
        checkpoint_dir=tmp_path,
        config=config,
        clock=Clock(step_ms=1),
        writer=FullDisk(),
    )
    with caplog.at_level(logging.ERROR):
        trainer.run(never)
    assert trainer.stats.examples == num_rows(LOG)
    assert trainer.stats.checkpoint_failures > 3
    assert trainer.stats.checkpoints == 0
    assert list(tmp_path.iterdir()) == []
    assert "Checkpoint not written, training goes on" in caplog.text
    assert "No space left on device" in caplog.text


def test_told_to_stop_it_finishes_the_batch_and_writes_a_checkpoint(tmp_path: Path) -> None:
    looks = iter([False] * 4)
    stopped = new_trainer(source=MemoryExampleSource(LOG), checkpoint_dir=tmp_path)
    stopped.run(lambda: next(looks, True))
    assert 0 < stopped.stats.examples < num_rows(LOG)
    assert len(checkpoint_paths(tmp_path)) == 1
    resumed = new_trainer(source=MemoryExampleSource(LOG), checkpoint_dir=tmp_path)
    resumed.run(never)
    assert resumed.stats.examples == num_rows(LOG)
    assert resumed.metrics.report()["click"]["all"]["n"] == num_rows(LOG)


def test_a_restart_publishes_a_full_snapshot_under_the_next_version(tmp_path: Path) -> None:
    store = MemorySnapshotStore(KEEP_ALL)
    config = replace(CONFIG, publish_interval_ms=1)
    for messages in (6, 12):
        log = {0: LOG[0][:messages]}
        new_trainer(
            source=MemoryExampleSource(log), store=store, checkpoint_dir=tmp_path, config=config, clock=Clock(1)
        ).run(never)
    manifests = [store.manifest(version) for version in store.versions()]
    first_of_second = next(manifest for manifest in manifests if manifest is not None and manifest.epoch == 2)
    assert first_of_second.kind == "full"
    assert store.versions() == list(range(1, len(manifests) + 1))


def poisoned(trainer: Trainer) -> None:
    with torch.no_grad():
        next(iter(trainer.learner.trained.net.parameters())).fill_(float("nan"))


def test_a_model_that_is_not_finite_stops_with_the_place() -> None:
    trainer = new_trainer(source=MemoryExampleSource(LOG))
    poisoned(trainer)
    with pytest.raises(TrainingDivergedError, match="5 micro-batches in a row were not finite .*, the last at .*@"):
        trainer.run(never)
    assert trainer.stats.skipped == 5
    assert trainer.stats.steps == 0
    assert trainer.metrics.report()["click"]["all"]["n"] == 0


def test_one_bad_micro_batch_is_skipped_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = new_trainer(source=MemoryExampleSource({0: LOG[0]}))
    honest: Callable[..., object] = trainer.learner.learn
    calls = 0

    def spoil_third(batch: object, labels: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            labels = replace(labels, weight_BT=np.full_like(labels.weight_BT, np.nan))  # type: ignore[type-var,attr-defined]  # a LabelBatch, passed through
        return honest(batch, labels)

    monkeypatch.setattr(trainer.learner, "learn", spoil_third)
    trainer.run(never)
    assert trainer.stats.skipped == 1
    assert trainer.stats.steps == calls - 1
    assert trainer.positions[0].offset == 12
    assert all(torch.isfinite(tensor.double()).all() for tensor in trainer.learner.trained.state().values())
    assert "Micro-batch skipped, not finite part=loss partition@offset=0@" in caplog.text


def test_skew_is_measured_where_the_log_has_scores() -> None:
    trainer = new_trainer(source=MemoryExampleSource(LOG))
    trainer.run(never)
    report = trainer.metrics.report(series="served")
    served = report["click"]["all"]["n"]
    assert served == trainer.metrics.num_skew
    assert 0 < served < num_rows(LOG)
    assert trainer.metrics.mean_skew > 0.01


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_rows", 0),
        ("max_wait_ms", 0),
        ("poll_messages", 0),
        ("publish_interval_ms", 0),
        ("full_every", 0),
        ("checkpoint_interval_ms", 0),
        ("keep_checkpoints", 0),
        ("max_skipped_in_row", 0),
    ],
)
def test_impossible_settings_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}: {value} is not allowed; at least 1"):
        TrainerConfig(**{name: value})  # type: ignore[arg-type]  # the numbers among its settings


@pytest.mark.parametrize("share", [0, 1.5, float("nan")])
def test_a_share_that_cannot_be_looked_at_is_named(share: float) -> None:
    with pytest.raises(ValueError, match=f"judged_share: {share} is not allowed; above 0, at most 1"):
        TrainerConfig(judged_share=share)


def test_a_model_needs_a_name_and_a_run_a_source() -> None:
    with pytest.raises(ValueError, match="model_name: must not be empty"):
        TrainerConfig(model_name="")
    with pytest.raises(ValueError, match="source: none given"):
        new_trainer().run(never)
