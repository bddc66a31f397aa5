"""Publishing: the numbered order, a crash at each step, and what happens when the store or the gate says no."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from model.canary import Canary, CanaryConfig
from model.exceptions import SnapshotMissingError, StaleEpochError, StoreUnavailableError
from model.gate import PublishGate
from model.gate_config import GateConfig
from model.labels import LabelBatch
from model.learner import Learner
from model.publish import Identity, Progress, Publisher, PublishStats
from model.serving import ServingModel
from model.snapshot import Manifest, open_snapshot
from model.store import MemorySnapshotStore, SnapshotStore, StoreConfig, chain_to
from model.trained_model import TrainedModel
from tests.model.example_log import MODEL, SCHEMA, Clock, partition_log
from tests.model.test_batching import DECODER

ROWS = [DECODER.decode(message).rows for message in partition_log(seed=1, num_messages=60)]


class CrashError(Exception):
    """Stands for a process that ends here."""


class Steps:
    """Records the steps of a `MemorySnapshotStore` and breaks before a chosen one."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.break_before: str | None = None
        self.error: Exception = CrashError()

    def __call__(self, step: str) -> None:
        if step == self.break_before:
            raise self.error
        self.done.append(step)


class Bench:
    """A learner that has always something new to publish, a store whose steps are seen, and a publisher."""

    def __init__(self, store: SnapshotStore | None = None, *, full_every: int = 100, last_version: int = 0) -> None:
        self.steps = Steps()
        self.store = store or MemorySnapshotStore(StoreConfig(keep_fulls=3), on_step=self.steps)
        self.learner = Learner(SCHEMA, MODEL, seed=0)
        self.num_batches = 0
        identity = Identity(
            model="main",
            schema_hash=SCHEMA.schema_hash(),
            config_hash="c",
            tasks=list(SCHEMA.tasks),
            model_config={},
            run_id="run",
        )
        self.publisher = Publisher(
            self.store,
            identity,
            full_every=full_every,
            now_ms=Clock(),
            last_version=last_version,
            stats=PublishStats(),
            gate=PublishGate(GateConfig(), SCHEMA, MODEL),
            canary=Canary(CanaryConfig(), tuple(SCHEMA.tasks)),
        )

    @property
    def failures(self) -> dict[str, int]:
        return {reason: n for reason, n in self.publisher.stats.failures.items() if n}

    def learn(self) -> None:
        rows = ROWS[self.num_batches % len(ROWS)]
        self.num_batches += 1
        self.learner.learn(
            rows.batch,
            LabelBatch(label_BT=rows.label_BT, mask_BT=rows.mask_BT, weight_BT=rows.weight_BT, first_BT=rows.first_BT),
        )

    def publish(self) -> Manifest | None:
        self.learn()
        progress = Progress(step=self.learner.num_steps, watermark_ms=9, offsets={0: 3}, metrics={})
        return self.publisher.publish(self.learner.trained, progress)

    def assert_live_is_the_learner(self) -> None:
        """What a ranker builds from the pointer alone scores what the learner scores, but for rounding."""
        live = self.store.pointer()
        assert live is not None
        model: ServingModel | None = None
        for manifest in chain_to(self.store, live):
            tensors = open_snapshot(manifest, self.store.payload(manifest), schema_hash=SCHEMA.schema_hash())
            model = ServingModel.from_full(SCHEMA, MODEL, tensors) if model is None else model.apply_delta(tensors)
        assert model is not None
        expected = torch.from_numpy(self.learner.score(ROWS[-1].batch)).sigmoid().numpy()
        np.testing.assert_allclose(model.score(ROWS[-1].batch), expected, rtol=1e-6)


def test_the_first_is_full_then_deltas_then_full_again() -> None:
    bench = Bench(full_every=3)
    published = [bench.publish() for _ in range(7)]
    assert [(m.version, m.kind, m.base_version) for m in published if m] == [
        (1, "full", 0),
        (2, "delta", 1),
        (3, "delta", 2),
        (4, "full", 0),
        (5, "delta", 4),
        (6, "delta", 5),
        (7, "full", 0),
    ]
    assert bench.publisher.stats.snapshots == {"full": 3, "delta": 4}
    bench.assert_live_is_the_learner()


def test_the_steps_come_in_their_order() -> None:
    bench = Bench()
    bench.publish()
    assert bench.steps.done == ["payload", "manifest", "pointer"]


def test_a_manifest_says_what_the_snapshot_is() -> None:
    bench = Bench()
    bench.publisher.feedback.add(np.array([5, 7]), np.array([8, -1]), 9)
    manifest = bench.publish()
    assert manifest is not None
    assert manifest == bench.store.pointer()
    assert (manifest.step, manifest.watermark_ms, manifest.offsets) == (1, 9, {0: 3})
    assert (manifest.scenarios, manifest.tasks) == (["home", "search"], ["click", "order"])
    assert (manifest.run_id, manifest.config_hash, manifest.feedback_ms) == ("run", "c", [5, 7])
    second = bench.publish()
    assert second is not None
    assert (manifest.feedback_joined_ms, manifest.feedback_trained_ms) == ([8, -1], [9, 9])
    assert second.feedback_ms == second.feedback_joined_ms == [], "each feedback is new once"


@pytest.mark.parametrize("step", ["payload", "manifest", "pointer"])
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
def test_a_crash_before_any_step_leaves_a_pointer_that_can_be_served(step: str, is_first: bool) -> None:
    bench = Bench()
    before = None if is_first else bench.publish()
    bench.steps.break_before = step
    with pytest.raises(CrashError):
        bench.publish()
    assert bench.store.pointer() == before
    if before is not None:
        assert bench.store.payload(before)
    restarted = Bench(bench.store)
    after = restarted_publish(bench, restarted)
    assert after.kind == "full"
    restarted.assert_live_is_the_learner()


def restarted_publish(bench: Bench, restarted: Bench) -> Manifest:
    bench.steps.break_before = None
    manifest = restarted.publish()
    assert manifest is not None
    return manifest


@pytest.mark.parametrize("step", ["payload", "manifest", "pointer"])
def test_a_store_that_is_gone_is_counted_and_nothing_is_lost(step: str) -> None:
    bench = Bench()
    bench.publish()
    bench.steps.break_before, bench.steps.error = step, StoreUnavailableError("gone")
    assert [bench.publish(), bench.publish()] == [None, None]
    assert bench.failures == {"unavailable": 2}
    bench.steps.break_before = None
    back = bench.publish()
    assert back is not None
    assert (back.kind, back.base_version) == ("delta", 1)
    bench.assert_live_is_the_learner()


class ForgetfulStore(MemorySnapshotStore):
    """Fails right after the chosen call was done: the answer is lost, the effect is not."""

    lose_answer = False

    def promote(self, manifest: Manifest, *, release: bool = True) -> bool:
        moved = super().promote(manifest, release=release)
        if self.lose_answer:
            self.lose_answer = False
            raise StoreUnavailableError("answer lost")
        return moved


@pytest.mark.parametrize("is_first", [True, False], ids=["full", "delta"])
def test_a_promotion_whose_answer_was_lost_becomes_the_base(is_first: bool) -> None:
    store = ForgetfulStore()
    bench = Bench(store)
    if not is_first:
        bench.publish()
    store.lose_answer = True
    assert bench.publish() is None
    unknown = store.pointer()
    assert unknown is not None
    following = bench.publish()
    assert following is not None
    assert (following.kind, following.base_version) == ("delta", unknown.version)
    assert bench.failures == {"unavailable": 1}
    bench.assert_live_is_the_learner()


def test_a_store_that_forgot_everything_gets_a_full_one() -> None:
    bench = Bench()
    bench.publish()
    forgotten = Bench(MemorySnapshotStore())
    bench.publisher._store = forgotten.store
    again = bench.publish()
    assert again is not None
    assert (again.version, again.kind) == (2, "full")


def test_a_trainer_that_was_overtaken_stops() -> None:
    old = Bench()
    old.publish()
    new = Bench(old.store)
    first_of_new = new.publish()
    assert first_of_new is not None
    assert (first_of_new.version, first_of_new.kind) == (2, "full")
    with pytest.raises(StaleEpochError):
        old.publish()
    assert old.store.pointer() == first_of_new


def test_versions_go_on_after_the_ones_of_the_checkpoint_and_of_the_store() -> None:
    from_checkpoint = Bench(last_version=8).publish()
    assert from_checkpoint is not None
    assert from_checkpoint.version == 9
    store = MemorySnapshotStore()
    Bench(store, last_version=20).publish()
    from_store = Bench(store, last_version=8).publish()
    assert from_store is not None
    assert from_store.version == 22


def test_a_candidate_that_fails_its_gate_is_kept_not_served_and_never_a_base(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.publish()
    spoil(monkeypatch, bench.learner.trained, "serving_delta")
    assert bench.publish() is None
    assert bench.failures == {"rejected": 1}
    [rejection] = bench.store.rejected()
    assert rejection.manifest.version == 2
    assert rejection.reason == "finite: tensor rows.weights holds NaN or infinity"
    monkeypatch.undo()
    healthy = bench.publish()
    assert healthy is not None
    assert (healthy.version, healthy.kind, healthy.base_version) == (3, "delta", 1)
    bench.assert_live_is_the_learner()


def spoil(monkeypatch: pytest.MonkeyPatch, model: TrainedModel, export: str) -> None:
    honest: Callable[[], dict[str, torch.Tensor]] = getattr(model, export)

    def spoiled() -> dict[str, torch.Tensor]:
        tensors = honest()
        return tensors | {"rows.weights": tensors["rows.weights"].clone().index_fill_(0, torch.tensor(0), torch.nan)}

    monkeypatch.setattr(model, export, spoiled)


def test_a_refused_delta_is_followed_by_a_full_one() -> None:
    class LosingStore(MemorySnapshotStore):
        def promote(self, manifest: Manifest, *, release: bool = True) -> bool:
            if manifest.version == 2:
                raise SnapshotMissingError("version 2 is not in the store")
            return super().promote(manifest, release=release)

    bench = Bench(LosingStore())
    bench.publish()
    assert bench.publish() is None
    assert bench.failures == {"refused": 1}
    full = bench.publish()
    assert full is not None
    assert full.kind == "full"
    bench.assert_live_is_the_learner()
