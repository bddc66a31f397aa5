"""Which rows go is decided over all ranks: the same keys as one rank would evict, whatever each rank's own order."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest

from model import eviction
from model.eviction import Eviction, LastSeen
from model.features import Field
from model.field_ids import FieldIdsConfig, IdRules
from model.hashing import Int64Array
from model.id_table import IdTable
from model.ranks import Array, Ranks
from model.sharding import owner_of

FIELDS = [Field(name=name, side="item", ids_of=name, admission=1) for name in ("a", "b")]


class ThreadRanks(Ranks):
    """Ranks that are threads of this process."""

    def __init__(self, rank: int, size: int, said: list[Sequence[Array]], barrier: threading.Barrier) -> None:
        super().__init__(rank, size, timeout_s=10.0)
        self._said, self._barrier = said, barrier

    def exchange(self, arrays: Sequence[Array]) -> list[Array]:
        """Leaves the arrays where the others find them."""
        self._said[self.rank] = arrays
        self._barrier.wait(10)
        received = [one[self.rank] for one in self._said]
        self._barrier.wait(10)
        return received

    def sum_arrays(self, arrays: Sequence[Array]) -> list[Array]:
        """Adds up."""
        return [np.sum(self.exchange([array] * self.size), axis=0) for array in arrays]


def run(ranks: Ranks, steps: list[tuple[Int64Array, Int64Array]]) -> list[dict[str, list[int]]]:
    """Returns the keys that go after each step, by cause; of this rank."""
    ids, seen = IdTable(num_reserved=4), LastSeen(2_000)
    configs = {"a": FieldIdsConfig(ttl_ms=40), "b": FieldIdsConfig(max_rows=30)}
    limits = Eviction(IdRules(FIELDS, configs, "count"), ids, 90, 4, ranks)
    rows_F, gone = np.zeros(2, np.int64), []
    for clock, (keys, field) in enumerate(steps, start=1):
        own = owner_of(keys, ranks.size) == ranks.rank
        keys, field = keys[own], field[own]
        seen.advance(1_000 + 5 * clock)
        is_new = ids.lookup(keys) < 0
        seen.field[ids.insert(keys[is_new])] = field[is_new]
        seen.see(ids.lookup(keys), clock)
        admitted_F = np.bincount(field[is_new], minlength=2)
        (admitted_F,) = ranks.sum_arrays([admitted_F])
        rows_F = rows_F + admitted_F
        step: dict[str, list[int]] = {}
        for due in limits.due(seen, rows_F, clock=clock, num_admitted=int(admitted_F.sum())):
            step.setdefault(due.cause, []).extend(ids.key_of_row(due.rows).tolist())
            rows_F = rows_F - due.evicted_F
            ids.remove(ids.key_of_row(due.rows))
            seen.free(due.rows)
        gone.append(step)
    return gone


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [2, 3])
def test_the_oldest_of_all_go(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = rng.integers(-(2**63), 2**63 - 1, 400)
    steps = []
    for number in range(60):
        keys = rng.choice(known[: 60 + 5 * number], int(rng.integers(0, 25)), replace=False)
        steps.append((keys, keys % 2))
    with mock.patch.object(eviction, "_MIN_SAMPLE", 2):  # so that a queue is used up now and then
        alone = run(Ranks.alone(), steps)
        said: list[Sequence[Array]] = [[] for _ in range(size)]
        barrier = threading.Barrier(size)
        with ThreadPoolExecutor(size) as threads:
            parts = list(threads.map(lambda rank: run(ThreadRanks(rank, size, said, barrier), steps), range(size)))
    causes = set()
    for number, expected in enumerate(alone):
        for cause in ("expired", "full"):
            found = sorted(key for part in parts for key in part[number].get(cause, []))
            assert found == sorted(expected.get(cause, [])), (number, cause)
            causes |= {cause} if found else set()
    assert causes == {"expired", "full"}
