"""Publishing a model some of whose rows are not in memory: the order of the steps, a crash at each, and the gate."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from model.canary import Canary, CanaryConfig
from model.exceptions import StoreUnavailableError
from model.gate import PublishGate
from model.gate_config import OFF, GateConfig
from model.hashing import Int64Array
from model.learner import Learner
from model.probe_set import ProbeModel, ProbeSet
from model.publish import Identity, Progress, Publisher, PublishStats
from model.rollback import roll_back_to
from model.row_publish import RowPublisher
from model.row_store import MemoryRowStore, fetch_rows
from model.scenario_registry import ScenarioRegistry
from model.serving import RowsBeside, ServingModel
from model.snapshot import Manifest, decode_manifest, encode_manifest, open_snapshot
from model.store import MemorySnapshotStore, chain_to
from model.trained_model import TrainedModel
from model.trainer import Trainer
from model.trainer_config import TrainerConfig, TrainerParts
from tests.model.example_log import MODEL, SCHEMA, Clock, partition_log
from tests.model.memory_bytes import MemoryStores
from tests.model.test_publish import ROWS, Bench, CrashError, Steps

WIDTH = MODEL.embedding.width


class OddRowsCold:
    """A model in training whose rows with an odd key are never in memory when a version is made."""

    def __init__(self, trained: TrainedModel) -> None:
        self._trained = trained
        self._told: set[int] = set()
        self._cooled = self._all()

    @property
    def registry(self) -> ScenarioRegistry:
        return self._trained.registry

    @property
    def num_cold(self) -> int:
        return len(self._all()[0])

    def cold_rows(self) -> Iterator[tuple[Int64Array, Tensor]]:
        yield self._all()

    def cooled(self) -> tuple[Int64Array, Tensor]:
        return self._cooled

    def evicted(self) -> Int64Array:
        return np.empty(0, np.int64)

    def serving_full(self) -> dict[str, Tensor]:
        return self._hot(self._trained.serving_full())

    def serving_delta(self) -> dict[str, Tensor]:
        return self._hot(self._trained.serving_delta())

    def mark_promoted(self) -> None:
        self._trained.mark_promoted()

    def _hot(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        is_odd = tensors["rows.keys"] % 2 != 0
        self._cooled = tensors["rows.keys"][is_odd].numpy(), tensors["rows.weights"][is_odd]
        hot = {name: tensors[name][~is_odd] for name in ("rows.keys", "rows.weights")}
        return tensors | hot | {"rows.cooled": tensors["rows.keys"][is_odd]}

    def _all(self) -> tuple[Int64Array, Tensor]:
        keys, weights, _ = self._trained.table.changes(0)
        return keys[keys % 2 != 0], weights[torch.from_numpy(keys % 2 != 0)]


class SeenRowStore(MemoryRowStore):
    """Records what is done, among the steps of the snapshot store."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self._steps = steps

    def write(self, generation: str, values: Mapping[int, bytes]) -> None:
        if values:
            self._steps("rows")
        super().write(generation, values)


class ColdBench(Bench):
    """The bench of `test_publish`, with a row store."""

    def __init__(self, before: "ColdBench | None" = None) -> None:
        super().__init__(before.store if before is not None else None)
        self.row_store: SeenRowStore = SeenRowStore(self.steps) if before is None else before.row_store
        self.learner = Learner(SCHEMA, MODEL, seed=0)
        self.model = OddRowsCold(self.learner.trained)
        stats = PublishStats()
        identity = Identity(
            model="main",
            schema_hash=SCHEMA.schema_hash(),
            config_hash="c",
            tasks=list(SCHEMA.tasks),
            model_config={},
            run_id="run",
        )
        self.gate = PublishGate(GateConfig(), SCHEMA, MODEL)
        self.publisher = Publisher(
            self.store,
            identity,
            full_every=4,
            now_ms=Clock(),
            last_version=0,
            stats=stats,
            gate=self.gate,
            canary=Canary(CanaryConfig(), tuple(SCHEMA.tasks)),
            rows=RowPublisher(self.row_store, self.model, width=WIDTH, stats=stats.cold),
        )

    def publish(self) -> Manifest | None:
        self.learn()
        progress = Progress(step=self.learner.num_steps, watermark_ms=9, offsets={0: 3}, metrics={})
        return self.publisher.publish(self.model, progress)

    def live_scores(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Returns what a ranker answers from the two stores alone."""
        live = self.store.pointer()
        assert live is not None and live.cold_rows is not None
        model: ServingModel | None = None
        for manifest in chain_to(self.store, live):
            tensors = open_snapshot(manifest, self.store.payload(manifest), schema_hash=SCHEMA.schema_hash())
            model = ServingModel.from_full(SCHEMA, MODEL, tensors) if model is None else model.apply_delta(tensors)
        assert model is not None
        looked = model.look_up(ROWS[-1].batch)
        keys = np.unique(model.keys_without_row(looked))
        found = fetch_rows(self.row_store, live.cold_rows, keys, WIDTH)
        assert found.has_row_N.any()
        return model.score_rows(looked, RowsBeside(keys[found.has_row_N], found.weights_NW[found.has_row_N]))

    def assert_live_is_the_learner(self) -> None:
        plain = ServingModel.from_full(SCHEMA, MODEL, self.learner.trained.serving_full())
        np.testing.assert_array_equal(self.live_scores(), plain.score(ROWS[-1].batch))


def test_rows_are_there_before_the_version_that_says_so() -> None:
    bench = ColdBench()
    for _ in range(6):
        bench.steps.done.clear()
        manifest = bench.publish()
        assert manifest is not None and bench.steps.done == ["rows", "payload", "manifest", "pointer"]
        assert manifest.cold_rows is not None and manifest.cold_rows.generation == "1.1"
        assert manifest.cold_rows.version == manifest.version
        assert decode_manifest(encode_manifest(manifest)) == manifest
        bench.assert_live_is_the_learner()
    assert bench.publisher.stats.snapshots == {"full": 2, "delta": 4}
    assert bench.publisher.stats.cold.generations == 1


@pytest.mark.parametrize("step", ["rows", "payload", "manifest", "pointer"])
def test_a_crash_before_any_step_harms_nobody(step: str) -> None:
    bench = ColdBench()
    before = [bench.publish() for _ in range(2)][-1]
    scores = bench.live_scores()
    bench.steps.break_before = step
    with pytest.raises(CrashError):
        bench.publish()
    assert bench.store.pointer() == before
    np.testing.assert_array_equal(bench.live_scores(), scores)
    bench.steps.break_before = None
    restarted = ColdBench(bench)
    after = restarted.publish()
    assert after is not None and after.kind == "full" and after.cold_rows is not None
    assert after.cold_rows.generation == f"2.{after.version}"
    restarted.assert_live_is_the_learner()


@pytest.mark.parametrize("step", ["rows", "payload", "manifest", "pointer"])
def test_a_store_that_is_gone_for_a_while_costs_versions_and_no_rows(step: str) -> None:
    bench = ColdBench()
    bench.publish()
    bench.steps.break_before, bench.steps.error = step, StoreUnavailableError("gone")
    assert [bench.publish(), bench.publish()] == [None, None]
    assert bench.failures == {"unavailable": 2}
    bench.steps.break_before = None
    back = bench.publish()
    assert back is not None and (back.kind, back.base_version) == ("delta", 1)
    bench.assert_live_is_the_learner()


def test_a_row_store_that_lost_its_rows_makes_the_next_version_a_full_one() -> None:
    bench = ColdBench()
    bench.publish()
    bench.row_store.drop("1.1", range(1))
    healed = bench.publish()
    assert healed is not None and healed.cold_rows is not None
    assert (healed.kind, healed.cold_rows.generation) == ("full", "1.2")
    bench.assert_live_is_the_learner()


def test_the_probe_set_sees_rows_wherever_they_are() -> None:
    bench = ColdBench()
    probes = ProbeSet(ROWS[-1].batch, SCHEMA, MODEL, {})
    probe_model = ProbeModel(SCHEMA, MODEL, probes)
    for _ in range(6):
        manifest = bench.publish()
        assert manifest is not None
        tensors = open_snapshot(manifest, bench.store.payload(manifest), schema_hash=SCHEMA.schema_hash())
        seen = probe_model.candidate(manifest, tensors, bench.gate.level0.read_cold)
        probe_model.hold(seen)
        assert seen is not None
        plain = ServingModel.from_full(SCHEMA, MODEL, bench.learner.trained.serving_full())
        np.testing.assert_array_equal(seen.score(ROWS[-1].batch), plain.score(ROWS[-1].batch))


def test_a_rollback_finds_the_rows_of_the_version_it_goes_back_to() -> None:
    bench = ColdBench()
    bench.publish()
    scores = bench.live_scores()
    for _ in range(5):
        bench.publish()
    assert not np.array_equal(bench.live_scores(), scores)
    manifest = roll_back_to(bench.store, 1, reason="test", now_ms=5)
    assert manifest.version == 7 and manifest.cold_rows is not None and manifest.cold_rows.version == 1
    np.testing.assert_array_equal(bench.live_scores(), scores)


def test_a_trainer_whose_rows_leave_memory_tells_where_they_are_and_needs_such_a_place() -> None:
    model = replace(MODEL, embedding=replace(MODEL.embedding, hot_rows=12))

    def trainer(row_store: MemoryRowStore | None) -> Trainer:
        parts = TrainerParts(store=MemorySnapshotStore(), row_store=row_store, cold_stores=MemoryStores())
        return Trainer(SCHEMA, TrainerConfig(batch_rows=16, gate=OFF), model, now_ms=Clock(), parts=parts)

    with pytest.raises(ValueError, match=r"row_store: none given; .*model\.embedding\.hot_rows"):
        trainer(None)
    store = MemoryRowStore()
    one = trainer(store)
    for offset, message in enumerate(partition_log(seed=1, num_messages=20)):
        one.train_message(message, partition=0, offset=offset)
    manifest = one.publish()
    assert manifest is not None and manifest.cold_rows is not None
    keys = np.sort(np.concatenate([keys for keys, _ in one.learner.trained.cold_rows()]))
    assert len(keys) > 10 and fetch_rows(store, manifest.cold_rows, keys, WIDTH).has_row_N.all()
    assert one.publish_stats.cold.records == len(keys)
