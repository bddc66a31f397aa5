"""Collectives between real processes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.exceptions import RankLostError
from model.ranks import Ranks
from model.sharding import by_owner, owner_of
from tests.model.rank_world import outputs, start_ranks

CHILD = "tests.model.rank_child"


def test_every_collective_of_three_ranks_and_a_peer_that_falls_silent(tmp_path: Path) -> None:
    processes = start_ranks(CHILD, 3, tmp_path, "all")
    for process in processes[:2]:  # the third one sleeps until it is killed
        process.wait(timeout=120)
    processes[2].kill()
    texts = outputs(processes)
    assert all("done" in text for text in texts), texts
    for rank, text in enumerate(texts[:2]):
        assert f"lost: rank {rank} of 3, sum: a peer is gone, or silent for 3 s" in text, text
        assert text.endswith("exit 3")


def test_a_peer_that_dies_is_told_of_long_before_the_timeout(tmp_path: Path) -> None:
    texts = outputs(start_ranks(CHILD, 2, tmp_path, "dies"), timeout_s=50)  # that of the collectives is 60 s
    assert "lost: rank 0 of 2, sum" in texts[0] and texts[0].endswith("exit 3"), texts
    assert texts[1].endswith("exit -9")


def test_a_world_of_one_gives_back_what_it_got() -> None:
    ranks = Ranks.alone()
    tensor, array = torch.ones(3), np.arange(4)
    assert (ranks.rank, ranks.size, ranks.is_lead) == (0, 1, True)
    assert ranks.sum_(tensor) is tensor
    assert ranks.sum_arrays([array])[0] is array
    assert ranks.exchange([array])[0] is array and ranks.exchange_tensors([tensor], [3])[0] is tensor
    assert ranks.any(True) and not ranks.any(False)
    assert ranks.gather(b"a") == ranks.all_gather(b"a") == [b"a"] and ranks.broadcast(b"b") == b"b"
    ranks.barrier()
    ranks.close()


def test_without_torchrun_it_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Ranks.join().size == 1


@pytest.mark.parametrize(
    ("rank", "size", "text"),
    [
        ("0", "two", "WORLD_SIZE: 'two'"),
        (None, "2", "RANK: None"),
        ("2", "2", "RANK: 2"),
        ("0", "0", "WORLD_SIZE: '0'"),
    ],
)
def test_a_wrong_place_is_refused(monkeypatch: pytest.MonkeyPatch, rank: str | None, size: str, text: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", rank or "")
    if rank is None:
        monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match=text):
        Ranks.join()


def test_a_rank_whose_peers_never_come_gives_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RankLostError, match="rank 0 of 2, join"):
        Ranks.join(timeout_s=0.5, init_method=f"file://{tmp_path}/world")


def test_keys_are_spread_evenly_and_the_same_everywhere() -> None:
    keys = np.random.default_rng(1).integers(-(2**63), 2**63, 30_000)
    for size in (1, 2, 3, 7):
        owner = owner_of(keys, size)
        counts = np.bincount(owner, minlength=size)
        assert len(counts) == size and (np.abs(counts - len(keys) / size) < 6 * np.sqrt(len(keys) / size)).all()
        order, num = by_owner(keys, size)
        assert (np.diff(owner[order]) >= 0).all() and num.tolist() == counts.tolist()
        assert (np.diff(order)[np.diff(owner[order]) == 0] > 0).all()
