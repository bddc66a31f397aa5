"""Where the ranks of a job meet: in the store that they all reach, under a name of this start alone.

torchrun lets ranks that it starts again use the store of the start before, where the addresses of those that died still
are. Whoever comes first would try to reach them, and fail. So a new name is agreed on before anything else:

1. each rank says a new word of its own
2. rank 0 says a new name, and which words it has heard, anew until 4
3. a rank that finds its own word among them has heard a rank 0 that lives, and says the name back
4. rank 0 has heard the name from everybody
"""

import secrets
import time

from torch.distributed.distributed_c10d import PrefixStore, Store

from model.exceptions import RankLostError

_LOOK_S = 0.005


def fresh_store(store: Store, rank: int, size: int, timeout_s: float) -> Store:
    """Returns a part of the store that no start before has used, the same on all ranks.

    Raises:
        RankLostError: not all ranks came within `timeout_s`.
    """
    told, word = PrefixStore("meeting", store), secrets.token_hex(8)
    deadline_s = time.monotonic() + timeout_s
    if rank:
        told.set(f"word-{rank}", word)
    while time.monotonic() < deadline_s:
        name = _lead(told, size, word) if rank == 0 else _follow(told, rank, word)
        if name:
            return PrefixStore(name, store)
        time.sleep(_LOOK_S)
    raise RankLostError(f"rank {rank} of {size}, join: not all ranks came within {timeout_s:g} s")


def _lead(told: Store, size: int, name: str) -> str:
    """Says the name and what was heard. Returns the name if all have said it back, else ""."""
    words = [_heard(told, f"word-{rank}") for rank in range(1, size)]
    told.set("name", ",".join([name, *words]))
    return name if all(_heard(told, f"name-{rank}") == name for rank in range(1, size)) else ""


def _follow(told: Store, rank: int, word: str) -> str:
    """Returns the name, and says it back, if it is said by one who has heard the word, else ""."""
    name, *words = _heard(told, "name").split(",")
    if rank > len(words) or words[rank - 1] != word:
        return ""
    told.set(f"name-{rank}", name)
    return name


def _heard(told: Store, key: str) -> str:
    return told.get(key).decode() if told.check([key]) else ""
