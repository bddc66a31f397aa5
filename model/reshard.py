"""The rows of N ranks made those of rank r of M: each key, and all that is known of it, goes to its owner.

What is per key moves; what all ranks have alike (reserved rows, clocks) stays. Rows are numbered anew in the order of
their keys, so that the same table comes out whichever way it went.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from model.cold_deal import joined_places
from model.exceptions import CheckpointMismatchError
from model.hashing import MISSING_KEY
from model.reshard_views import joined_view, owned_view
from model.sharding import NUM_SHARDS, owner_of, shards_of_rank

State = Mapping[str, Tensor]
"""Named tensors, as `TrainedModel.state` returns them."""

_OF_ROWS = re.compile(r"(rows|teacher\.copies\.\w+\.rows)\.")
_VIEW = re.compile(r"teacher\.copies\.\w+\.rows\.")
_KEY_OF_ROW, _FREE, _EVICTED = "rows.ids.key_of_row", "rows.ids.free", "rows.evicted"
_PER_ROW = (
    _KEY_OF_ROW, "rows.weight", "rows.accumulator", "rows.changed_at", "rows.examples",
    "rows.seen.field", "rows.seen.clock", "rows.seen.ms",
)  # fmt: skip
_ALIKE = ("rows.clock", "rows.has_exported", "rows.seen.now")
_PER_SHARD = ("rows.admission.counts", "rows.admission.num_counted")
_COLD_PLACES, _NUM_COLD = "rows.cold.places", "rows.cold.num_rows"
_DEALT = {_FREE, _EVICTED, *_PER_ROW, *_PER_SHARD, *_ALIKE, _COLD_PLACES, _NUM_COLD}


def split_rows(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns a model's state in two: what a rank has of its own rows, and what all ranks have alike."""
    of_rows = {name for name in state if _OF_ROWS.match(name)}
    return {n: state[n] for n in state if n in of_rows}, {n: state[n] for n in state if n not in of_rows}


def ranks_with(rank: int, size: int, *, of: int) -> range:
    """Returns which of `of` ranks may have keys that rank `rank` of `size` owns.

    >>> [list(ranks_with(*place, of=of)) for place, of in (((3, 4), 2), ((0, 1), 3), ((1, 2), 4))]
    [[1], [0, 1, 2], [1, 3]]
    """
    step = math.gcd(size, of)
    return range(rank % step, of, step)


def reshard(parts: Iterable[State], rank: int, size: int) -> dict[str, Tensor]:
    """Returns the rows of rank `rank` of `size`, out of the rows of the ranks that `ranks_with` names.

    The tensors are new. Parts are read one after the other, and only what is taken from them is kept.

    Raises:
        CheckpointMismatchError: there is something that cannot be dealt to other ranks.
    """
    return _owned(_joined([_owned(part, rank, size) for part in parts]), rank, size)


def _owned(part: State, rank: int, size: int) -> dict[str, Tensor]:
    """Returns what a rank owns of a part: the reserved rows, then its own in the order of their keys."""
    if other := sorted(name for name in part if name not in _DEALT and not _VIEW.match(name)):
        raise CheckpointMismatchError(f"{', '.join(other)}: cannot be dealt to another number of ranks")
    keys, is_reserved = part[_KEY_OF_ROW].numpy(), part[_KEY_OF_ROW].numpy() == MISSING_KEY
    is_reserved[part[_FREE].numpy()] = False
    own = np.flatnonzero((keys != MISSING_KEY) & (owner_of(keys, size) == rank))
    rows = np.concatenate([np.flatnonzero(is_reserved), own[np.argsort(keys[own])]])
    evicted = part[_EVICTED].numpy()
    evicted = evicted[owner_of(evicted[:, 0].copy(), size) == rank]
    owned = {name: part[name][torch.from_numpy(rows)] for name in _PER_ROW}
    owned |= {name: part[name].clone() for name in (*_ALIKE, _COLD_PLACES) if name in part}
    is_own = torch.zeros(NUM_SHARDS, dtype=torch.bool)
    is_own[torch.from_numpy(shards_of_rank(rank, size))] = True
    for name in _PER_SHARD:
        owned[name] = part[name].clone()
        owned[name][~is_own] = 0
    owned[_FREE] = torch.empty(0, dtype=torch.int64)
    owned[_EVICTED] = torch.from_numpy(evicted[np.argsort(evicted[:, 0])])
    for prefix, view in _views(part).items():
        owned |= {prefix + name: tensor for name, tensor in owned_view(view, rows, rank, size).items()}
    return owned


def _joined(parts: Sequence[State]) -> State:
    """Returns parts that `_owned` returned as one."""
    first = parts[0]
    num_reserved = int((first[_KEY_OF_ROW] == MISSING_KEY).sum())
    joined = {name: first[name] for name in (*_ALIKE, _FREE)}
    joined[_EVICTED] = torch.cat([part[_EVICTED] for part in parts])
    if all(_COLD_PLACES in part for part in parts):  # how many rows there are is counted when they are dealt
        joined[_COLD_PLACES] = joined_places([part[_COLD_PLACES] for part in parts])
    for name in _PER_SHARD:  # of each shard one part has all, the others nothing
        joined[name] = torch.stack([part[name] for part in parts]).amax(dim=0)
    for name in _PER_ROW:
        joined[name] = torch.cat([first[name][:num_reserved], *(part[name][num_reserved:] for part in parts)])
    views = [_views(part) for part in parts]
    for prefix in views[0]:
        view = joined_view([view[prefix] for view in views], num_reserved)
        joined |= {prefix + name: tensor for name, tensor in view.items()}
    return joined


def _views(part: State) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors of each teacher's view of the rows, by the prefix of their names."""
    views: dict[str, dict[str, Tensor]] = {}
    for name in part:
        if match := _VIEW.match(name):
            views.setdefault(match.group(), {})[name.removeprefix(match.group())] = part[name]
    return views
