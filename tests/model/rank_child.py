"""A rank that goes through every collective: `python -m tests.model.rank_child FOLDER CHECK`."""

import os
import signal
import sys

import numpy as np
import torch

from model.exceptions import RankLostError
from model.ranks import Ranks
from tests.model.rank_world import join


def all_collectives(ranks: Ranks) -> None:
    """Each with uneven and with empty contributions."""
    me, size = ranks.rank, ranks.size
    assert ranks.is_lead == (me == 0)
    # sums: the same bits everywhere, also where the order of a sum shows
    torch.manual_seed(me)
    for length in (0, 1, 1_000, 100_003):
        mine = torch.randn(length)
        copies = ranks.all_gather(mine.numpy().tobytes())
        summed = ranks.sum_(mine.clone())
        parts = [torch.from_numpy(np.frombuffer(copy, np.float32).copy()) for copy in copies]
        assert torch.allclose(summed, torch.stack(parts).sum(dim=0), rtol=1e-5, atol=1e-6)
        everywhere = ranks.all_gather(summed.numpy().tobytes())
        assert all(copy == everywhere[0] for copy in everywhere)
    mean, count, flag, nothing = ranks.sum_arrays(
        [np.full((2, 3), me + 0.5, np.float32), np.array(me + (1 << 40)), np.array([me == 1, False]), np.zeros((0, 4))]
    )
    assert mean.dtype == np.float32 and (mean == sum(range(size)) + 0.5 * size).all()
    assert count.shape == () and int(count) == sum(range(size)) + (size << 40)
    assert flag.dtype == np.bool_ and flag.tolist() == [True, False] and nothing.shape == (0, 4)
    assert np.isnan(ranks.sum_arrays([np.array([np.nan if me == 0 else 1.0])])[0][0])
    assert ranks.any(me == size - 1) and not ranks.any(False)
    # exchange: rank s sends r (s + r) rows to rank r, and nothing at all in the last round
    for factor in (1, 0):
        sent = [np.full((factor * r * (me + r), 2), 100 * me + r, np.int64) for r in range(size)]
        received = ranks.exchange(sent)
        for s, part in enumerate(received):
            assert part.shape == (factor * me * (s + me), 2) and (part == 100 * s + me).all()
        tensors = ranks.exchange_tensors([torch.from_numpy(one).float() for one in sent], [len(p) for p in received])
        assert [one.tolist() for one in tensors] == [one.tolist() for one in received]
    flat = ranks.exchange([np.arange(r, dtype=np.float32) for r in range(size)])
    assert all(one.dtype == np.float32 and one.tolist() == list(range(me)) for one in flat)
    # messages: empty, short, around the length of a short one, long
    for length in (0, 1, 1_015, 1_016, 1_017, 300_000):
        mine_b = bytes([me]) * (length if me else length // 2)
        expected = [bytes([r]) * (length if r else length // 2) for r in range(size)]
        assert ranks.all_gather(mine_b) == expected
        gathered = ranks.gather(mine_b)
        assert gathered == (expected if me == 0 else None)
        said = b"from the lead" * length
        assert ranks.broadcast(said if me == 0 else None) == said
    ranks.barrier()


def main(folder: str, check: str) -> None:
    """`all`: every collective, then the last rank falls silent. `dies`: rank 1 is killed between two of them."""
    torch.set_num_threads(1)
    ranks = join(folder, timeout_s=3.0 if check == "all" else 60.0)
    if check == "all":
        all_collectives(ranks)
        if ranks.rank == ranks.size - 1:
            print("done", flush=True)
            signal.pause()
    elif ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    print("done", flush=True)
    try:
        ranks.sum_(torch.ones(10))
    except RankLostError as error:
        print(f"lost: {error}", flush=True)
        os._exit(3)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
