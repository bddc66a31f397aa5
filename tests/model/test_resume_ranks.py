"""Resume on several ranks: whoever dies, and however many go on, it is the same model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.admission import AdmissionConfig
from model.checkpoint import FileWriter, checkpoint_paths
from model.checkpoint_load import check_checkpoint
from model.embedding_config import EmbeddingConfig
from model.exceptions import CheckpointMismatchError, RankLostError
from model.field_ids import FieldIdsConfig
from model.ranks import Ranks
from model.reshard import reshard, split_rows
from model.source import MemoryExampleSource
from model.store import MemorySnapshotStore
from model.trainer import Trainer
from model.trainer_config import TrainerConfig
from tests.model.example_log import MODEL, Clock, new_trainer, partition_log
from tests.model.test_checkpoint import NUM_TOUCHES, BreakingWriter, CrashError
from tests.model.test_resume import after_rounds, assert_same_bits, never
from tests.model.thread_ranks import on_ranks
from tests.model.train_child import CONFIG

LOG = {p: partition_log(seed=p, num_messages=num, first=p) for p, num in enumerate([7, 0, 5, 9])}
LOG[2].insert(1, b"not a message")
ROWS = EmbeddingConfig(
    width=4,
    admission=AdmissionConfig(counter_bits=14),
    max_rows=40,
    evictions_per_step=3,
    fields={"item_id": FieldIdsConfig(admission=3), "user_id": FieldIdsConfig(ttl_ms=6_000)},
)
EVERY_BATCH = replace(CONFIG, checkpoint_interval_ms=1)
RARELY = replace(CONFIG, checkpoint_interval_ms=1_000_000)

pytestmark = pytest.mark.usefixtures("one_thread")


def of_rank(
    ranks: Ranks,
    checkpoint_dir: Path | None = None,
    config: TrainerConfig = EVERY_BATCH,
    *,
    writer: FileWriter | None = None,
    store: MemorySnapshotStore | None = None,
) -> Trainer:
    """The trainer of one of several ranks, with its partitions of the log."""
    return new_trainer(
        source=MemoryExampleSource({p: log for p, log in LOG.items() if p % ranks.size == ranks.rank}),
        checkpoint_dir=checkpoint_dir,
        config=config,
        model=replace(MODEL, embedding=ROWS),
        clock=Clock(step_ms=1),
        writer=writer,
        store=store if ranks.is_lead else None,
        ranks=ranks,
    )


def trained(
    size: int,
    checkpoint_dir: Path | None = None,
    config: TrainerConfig = EVERY_BATCH,
    *,
    should_stop: Callable[[], Callable[[], bool]] = lambda: never,
) -> list[Trainer]:
    """The trainers of a world after they have run."""

    def run(ranks: Ranks) -> Trainer:
        trainer = of_rank(ranks, checkpoint_dir, config)
        trainer.run(should_stop())
        return trainer

    found = on_ranks(size, run)
    for one in found:
        if isinstance(one, Exception):
            raise one
    return [one for one in found if isinstance(one, Trainer)]


@pytest.fixture(scope="module")
def undisturbed() -> list[Trainer]:
    """Two ranks that nobody disturbed."""
    ranks = trained(2)
    assert ranks[0].learner.num_steps > 10
    return ranks


def assert_all_same_bits(ours: Sequence[Trainer], theirs: Sequence[Trainer]) -> None:
    assert_same_bits(ours[0], theirs[0])
    for one, other in zip(ours[1:], theirs[1:], strict=True):  # they keep no metrics
        tensors, expected = one.learner.trained.state(), other.learner.trained.state()
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
        assert one.positions == other.positions and one.stats.examples == other.stats.examples


@pytest.mark.parametrize(("rank", "step"), [(0, 2), (1, 7)])
def test_a_rank_that_dies_around_a_step_changes_no_bit(
    undisturbed: list[Trainer], tmp_path: Path, rank: int, step: int
) -> None:
    def run(ranks: Ranks) -> None:
        trainer = of_rank(ranks, tmp_path)
        honest, calls = trainer.learner.learn, 0

        def crash(*args: object) -> object:
            nonlocal calls
            calls += 1
            if calls == step and ranks.rank == rank:
                raise CrashError
            return honest(*args)  # type: ignore[arg-type]  # passed through as it came

        trainer.learner.learn = crash  # type: ignore[method-assign,assignment]
        trainer.run(never)

    came = on_ranks(2, run)
    assert isinstance(came[rank], CrashError) and isinstance(came[1 - rank], RankLostError)
    assert_all_same_bits(trained(2, tmp_path), undisturbed)


@pytest.mark.parametrize(("rank", "touch"), [(0, 2), (0, NUM_TOUCHES), (1, 1), (1, 3)])
def test_a_rank_that_dies_inside_a_checkpoint_changes_no_bit(
    undisturbed: list[Trainer], tmp_path: Path, rank: int, touch: int
) -> None:
    def run(ranks: Ranks) -> None:
        writer = BreakingWriter(touch, CrashError()) if ranks.rank == rank else None
        of_rank(ranks, tmp_path, writer=writer).run(never)

    came = on_ranks(2, run)
    assert isinstance(came[rank], CrashError) and isinstance(came[1 - rank], RankLostError)
    assert_all_same_bits(trained(2, tmp_path), undisturbed)


def test_a_full_disk_of_one_rank_is_counted_by_all_and_changes_no_bit(
    undisturbed: list[Trainer], tmp_path: Path
) -> None:
    def run(ranks: Ranks) -> Trainer:
        writer = BreakingWriter(2, OSError("No space left on device")) if ranks.rank == 1 else None
        trainer = of_rank(ranks, tmp_path, writer=writer)
        trainer.run(never)
        return trainer

    ranks = [one for one in on_ranks(2, run) if isinstance(one, Trainer)]
    assert [one.stats.checkpoint_failures for one in ranks] == [1, 1]
    assert_all_same_bits(ranks, undisturbed)


def assert_same_model(ours: Sequence[Trainer], alone: Trainer) -> None:
    """The same rows and counts, and floats as near as another order of sums allows."""
    parts = [split_rows(one.learner.trained.state()) for one in ours]
    rows, alike = split_rows(alone.learner.trained.state())
    whole, expected = reshard([of_rank for of_rank, _ in parts], 0, 1), reshard([rows], 0, 1)
    assert whole.keys() == expected.keys()
    num_reserved = ours[0].learner.trained.table.layout.num_reserved
    for name, tensor in expected.items():
        kept = slice(num_reserved, None) if name == "rows.examples" else ...  # nobody asks how many reserved ones have
        torch.testing.assert_close(whole[name][kept], tensor[kept], msg=name)
    for _, ours_alike in parts:
        assert ours_alike.keys() == alike.keys()
        for name, tensor in alike.items():
            torch.testing.assert_close(ours_alike[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    for one in ours:
        assert one.positions == alone.positions
        for count in ("messages", "examples", "steps"):
            assert getattr(one.stats, count) == getattr(alone.stats, count), count
    metrics, expected_metrics = ours[0].metrics.state(), alone.metrics.state()
    assert metrics.keys() == expected_metrics.keys()
    for name, array in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], array, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("sizes", [[2, 4, 1], [1, 3, 2]])
def test_any_number_of_ranks_goes_on_with_the_same_model(tmp_path: Path, sizes: list[int]) -> None:
    [alone] = trained(1)
    steps = [0]
    for size in sizes[:-1]:
        stopped = trained(size, tmp_path, RARELY, should_stop=lambda: after_rounds(9))
        steps.append(stopped[0].learner.num_steps)
        assert check_checkpoint(checkpoint_paths(tmp_path)[0]).num_ranks == size
    assert steps == sorted(set(steps)) and steps[-1] < alone.learner.num_steps, "each made some steps and left some"
    assert_same_model(trained(sizes[-1], tmp_path, RARELY), alone)


def test_ranks_that_go_on_publish_under_a_new_epoch(tmp_path: Path) -> None:
    store = MemorySnapshotStore()
    publishing = replace(EVERY_BATCH, publish_interval_ms=1)

    def run(ranks: Ranks, num_rounds: int) -> int:
        trainer = of_rank(ranks, tmp_path, publishing, store=store)
        trainer.run(after_rounds(num_rounds))
        return trainer.publish_stats.epoch

    first = on_ranks(2, lambda ranks: run(ranks, 12))
    live = store.manifest(store.last_version())
    second = on_ranks(2, lambda ranks: run(ranks, 30))
    newest = store.manifest(store.last_version())
    assert live is not None and newest is not None
    assert (first, second) == ([live.epoch, 0], [newest.epoch, 0])
    assert newest.epoch > live.epoch and newest.version > live.version and newest.step > live.step


def test_a_checkpoint_that_does_not_fit_is_one_line_on_every_rank(tmp_path: Path) -> None:
    trained(2, tmp_path)

    def run(ranks: Ranks) -> None:
        model = replace(MODEL, embedding=replace(ROWS, width=8))
        new_trainer(checkpoint_dir=tmp_path, model=model, ranks=ranks).resume()

    for one in on_ranks(3, run):
        assert isinstance(one, CheckpointMismatchError) and "model.embedding.width: was 4, is 8" in str(one)
