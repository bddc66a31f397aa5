"""A trainer whose rows leave memory ends with the bits of one that keeps them, killed or not."""

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from freshrank.cold_store import ColdStore
from freshrank.metrics import exposition, registry
from freshrank.scrape import Scrape
from freshrank.train import readings
from model.checkpoint import FileWriter, checkpoint_paths
from model.checkpoint_load import check_checkpoint
from model.config import ModelConfig
from model.exceptions import CheckpointMismatchError
from model.score_regularization import ScoreRegularizationConfig
from model.source import MemoryExampleSource
from model.trainer import Trainer
from tests.model.cold_child import TIERED, WHOLE, trainer_on
from tests.model.example_log import Clock, new_trainer, partition_log
from tests.model.memory_bytes import MemoryStores
from tests.model.test_checkpoint import NUM_TOUCHES, BreakingWriter, CrashError
from tests.model.test_cold_tier import rows_of
from tests.model.test_resume import LOG, after_rounds, never
from tests.model.train_child import CONFIG, write_log

EVERY_BATCH = replace(CONFIG, checkpoint_interval_ms=1)

pytestmark = pytest.mark.usefixtures("one_thread")


def trainer(
    checkpoint_dir: Path | None = None, *, model: ModelConfig = TIERED, writer: FileWriter | None = None
) -> Trainer:
    return new_trainer(
        source=MemoryExampleSource(LOG),
        checkpoint_dir=checkpoint_dir,
        config=EVERY_BATCH,
        clock=Clock(step_ms=1),
        model=model,
        writer=writer,
        cold_stores=MemoryStores(),
    )


@pytest.fixture(scope="module")
def whole() -> Trainer:
    """A trainer that keeps all rows in memory."""
    one = trainer(model=WHOLE)
    one.run(never)
    assert one.learner.trained.table.cold is None and one.learner.num_steps > 10
    counters = one.learner.trained.table.counters
    assert counters["item_id"].evictions["full"] > 0 and counters["user_id"].evictions["expired"] > 0
    return one


def assert_same_bits(tiered: Trainer, whole: Trainer) -> None:
    ours, theirs = tiered.learner.trained, whole.learner.trained
    assert ours.table.cold is not None and len(ours.table.cold) > 10
    assert rows_of(ours.table) == rows_of(theirs.table)
    assert torch.equal(ours.table.reserved(), theirs.table.reserved())
    assert ours.state_meta() == theirs.state_meta() and tiered.positions == whole.positions
    state, expected = ours.state(), theirs.state()
    for name in expected:
        if not name.startswith("rows.") or name.startswith("rows.admission."):
            assert torch.equal(state[name], expected[name]), name
    our_metrics, their_metrics = tiered.metrics.state(), whole.metrics.state()
    for name, array in their_metrics.items():
        np.testing.assert_array_equal(our_metrics[name], array, err_msg=name)


def test_the_bits_are_those_of_a_trainer_that_keeps_all_rows(whole: Trainer) -> None:
    tiered = trainer()
    tiered.run(never)
    assert_same_bits(tiered, whole)
    assert tiered.learner.trained.table.counters == whole.learner.trained.table.counters


@pytest.mark.parametrize("step", [3, 9])
def test_a_crash_after_any_step_changes_no_bit(
    whole: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    crashing = trainer(tmp_path)
    honest, calls = crashing.learner.learn, iter(range(1, 100))

    def crash(*args: object) -> object:
        report = honest(*args)  # type: ignore[arg-type]  # passed through as it came
        if next(calls) == step:
            raise CrashError
        return report

    monkeypatch.setattr(crashing.learner, "learn", crash)
    with pytest.raises(CrashError):
        crashing.run(never)
    resumed = trainer(tmp_path)
    resumed.run(never)
    assert_same_bits(resumed, whole)


@pytest.mark.parametrize("touch", [4, NUM_TOUCHES + 6, 2 * NUM_TOUCHES + 1])
def test_a_crash_inside_a_checkpoint_changes_no_bit(whole: Trainer, tmp_path: Path, touch: int) -> None:
    with pytest.raises(CrashError):
        trainer(tmp_path, writer=BreakingWriter(touch, CrashError())).run(never)
    resumed = trainer(tmp_path)
    resumed.run(never)
    assert_same_bits(resumed, whole)


def test_a_checkpoint_with_a_torn_store_costs_only_the_way_from_the_one_before(whole: Trainer, tmp_path: Path) -> None:
    trainer(tmp_path).run(after_rounds(20))
    newest, former = checkpoint_paths(tmp_path)[:2]
    [file] = (newest / "cold-00000-of-00001").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    resumed = trainer(tmp_path)
    resumed.resume()
    assert resumed.learner.num_steps == check_checkpoint(former).step
    resumed.run(never)
    assert_same_bits(resumed, whole)


def test_the_tier_may_come_and_its_size_change_over_a_resume_but_not_go(whole: Trainer, tmp_path: Path) -> None:
    trainer(tmp_path, model=WHOLE).run(after_rounds(12))
    for hot_rows in (30, 9):
        model = replace(TIERED, embedding=replace(TIERED.embedding, hot_rows=hot_rows))
        resumed = trainer(tmp_path, model=model)
        resumed.run(after_rounds(9))
    assert resumed.learner.trained.num_cold > 0
    sentence = "does not fit: hot_rows: null is not allowed where rows have left memory; any number"
    with pytest.raises(CheckpointMismatchError, match=sentence):
        trainer(tmp_path, model=WHOLE).resume()
    resumed = trainer(tmp_path)
    resumed.run(never)
    assert_same_bits(resumed, whole)


def test_kill_9_changes_no_bit_and_leaves_what_is_kept(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    log = {0: partition_log(seed=3, num_messages=50), 1: partition_log(seed=4, num_messages=40)}
    log_folder, checkpoints = tmp_path / "log", tmp_path / "checkpoints"
    write_log(log_folder, log)
    whole = new_trainer(source=MemoryExampleSource(log), config=CONFIG, clock=Clock(step_ms=1), model=WHOLE)
    whole.run(never)
    child = subprocess.Popen([sys.executable, "-m", "tests.model.cold_child", log_folder, checkpoints])
    try:
        wait_until(
            lambda: child.poll() is not None or len(checkpoint_paths(checkpoints)) > 1,
            "the child writes checkpoints",
            timeout_s=120,
        )
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL, "killed in the middle, or this test shows nothing"
    store = ColdStore(checkpoints, 0, 1, 16)
    killed = trainer_on(log_folder, checkpoints, store)
    assert killed.resume()
    assert killed.learner.num_steps < whole.learner.num_steps
    killed.run(never)
    assert_same_bits(killed, whole)
    kept = checkpoint_paths(checkpoints)
    assert len(kept) == CONFIG.keep_checkpoints and all(check_checkpoint(path).num_ranks == 1 for path in kept)
    store.close()


def test_the_pages_show_what_left_memory() -> None:
    tiered = trainer()
    tiered.run(never)
    scrape = Scrape.parse(exposition(registry("trainer", lambda: readings(tiered)))[0].decode())
    table = tiered.learner.trained.table
    assert table.cold is not None
    assert scrape.value("freshrank_trainer_hot_rows") == len(table.ids) > 0
    assert scrape.value("freshrank_trainer_cold_rows") == len(table.cold) > 0
    assert scrape.value("freshrank_trainer_cold_hits_total") == table.cold.stats.found > 0
    assert scrape.value("freshrank_trainer_cold_store_seconds_total") == table.cold.stats.store_s > 0


def test_a_teacher_that_is_a_copy_is_refused() -> None:
    for teacher in ("snapshot", "ema"):
        with pytest.raises(ValueError, match=f"score_regularization.teacher: {teacher} is not allowed with embedding"):
            replace(TIERED, score_regularization=ScoreRegularizationConfig(teacher=teacher))
    replace(TIERED, score_regularization=ScoreRegularizationConfig(teacher="served"))
