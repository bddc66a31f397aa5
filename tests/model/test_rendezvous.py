"""Ranks that are started again meet each other, and not what those before them have left in the store."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import FileStore, HashStore  # type: ignore[attr-defined]  # public all the same
from torch.distributed.distributed_c10d import Store

from model.exceptions import RankLostError
from model.rendezvous import fresh_store

SIZE = 3


def start(store: Store, number: int, late: int) -> list[list[bytes]]:
    """Starts all ranks, one of them late. Returns, by rank, whom each has found there."""

    def rank(rank: int) -> list[bytes]:
        time.sleep(0.1 if rank == late else 0)
        fresh = fresh_store(store, rank, SIZE, timeout_s=20)
        fresh.set(f"address-{rank}", f"rank {rank} of start {number}")
        return [fresh.get(f"address-{other}") for other in range(SIZE)]

    with ThreadPoolExecutor(SIZE) as threads:
        return list(threads.map(rank, range(SIZE)))


@pytest.mark.parametrize("kind", ["hash", "file"])
def test_every_start_has_a_store_of_its_own(tmp_path: Path, kind: str) -> None:
    store = HashStore() if kind == "hash" else FileStore(str(tmp_path / "store"), -1)
    for number in range(6):
        expected = [f"rank {rank} of start {number}".encode() for rank in range(SIZE)]
        assert start(store, number, late=number % SIZE) == [expected] * SIZE


@pytest.mark.parametrize("rank", [0, 1])
def test_who_is_alone_says_so(rank: int) -> None:
    store = HashStore()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda other: fresh_store(store, other, 2, 20), range(2)))
    with pytest.raises(RankLostError, match=f"^rank {rank} of 2, join: not all ranks came within 0.05 s$"):
        fresh_store(store, rank, 2, timeout_s=0.05)
