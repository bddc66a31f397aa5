"""Hundreds of swaps beside threads that score without pause: each answer is wholly of one version."""

import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.serving_rows import RowTable
from model.store import MemorySnapshotStore
from ranker.follow import SnapshotFollower
from ranker.freshness import FreshnessRecorder
from ranker.stats import RankerStats
from tests.ranker.given import SCHEMA, Trainer

NUM_SWAPS, FULL_EVERY = 200, 50


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Lets threads take turns far more often than they would."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before_s)


class Reader(threading.Thread):
    """Scores by whatever is live, twice by each version it gets hold of, and remembers what came out."""

    def __init__(self, follower: SnapshotFollower, trainer: Trainer) -> None:
        super().__init__()
        self._follower, self._columns = follower, trainer.columns
        self.is_over = threading.Event()
        self.seen: list[tuple[int, NDArray[np.float32]]] = []

    def run(self) -> None:
        while not self.is_over.is_set():
            live = self._follower.live
            assert live is not None
            for _ in range(2):
                self.seen.append((live.manifest.version, live.score(self._columns)))


def shaken(tensors: dict[str, torch.Tensor], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Returns other numbers of the same kind, as different from version to version as training never makes them."""
    return {
        name: torch.from_numpy(rng.normal(0, 0.3, tuple(tensor.shape)).astype(np.float32))
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }


@pytest.mark.usefixtures("eager_threads")
def test_every_answer_is_the_score_of_one_version_and_never_a_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    store, stats, rng = MemorySnapshotStore(), RankerStats(), np.random.default_rng(0)
    trainer = Trainer(store)
    follower = SnapshotFollower(store, SCHEMA, stats, FreshnessRecorder(lambda: 0))
    trainer.publish("full")
    tensors = trainer.learner.trained.serving_full()
    expected: dict[int, NDArray[np.float32]] = {}

    def swap() -> None:
        follower.round()
        live = follower.live
        assert live is not None
        expected[live.manifest.version] = live.score(trainer.columns)

    swap()
    readers = [Reader(follower, trainer) for _ in range(2)]
    monkeypatch.setattr(trainer, "learn", lambda: None)  # numbers are drawn here instead
    num_copies = 0

    def copy(table: RowTable) -> RowTable:
        nonlocal num_copies
        num_copies += 1
        return copied(table)

    copied = RowTable.copy
    monkeypatch.setattr(RowTable, "copy", copy)
    for reader in readers:
        reader.start()
    try:
        for number in range(1, NUM_SWAPS + 1):
            kind = "full" if number % FULL_EVERY == 0 else "delta"
            trainer.publish(kind, tensors=tensors | shaken(tensors, rng))
            swap()
    finally:
        for reader in readers:
            reader.is_over.set()
            reader.join()
    assert stats.snapshots_applied == NUM_SWAPS + 1 and not stats.snapshots_refused
    assert num_copies < NUM_SWAPS - 20, "tables are handed on beside the readers, or this proves nothing"
    seen = [answer for reader in readers for answer in reader.seen]
    assert len({version for version, _ in seen}) > NUM_SWAPS / 4
    for version, scores_NT in seen:
        np.testing.assert_array_equal(scores_NT, expected[version])
    assert len({scores_NT.tobytes() for scores_NT in expected.values()}) == NUM_SWAPS + 1
