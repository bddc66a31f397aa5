"""Rows that left the memory of N ranks, dealt to those of M: each goes to the owner of its key, from store to store.

Afterwards a rank has rows from several, which let go of different ones: what is in memory and older than some row that
left has to leave, too, before the order holds again (`EmbeddingTable.load_state` sees to it).
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.cold_names import PLACE_BYTES, all_names, cold_name, parsed, row_names
from model.cold_rows import ByteStore, ColdStores
from model.ranks import Ranks
from model.sharding import owner_of

_PIECE = 10_000


def opened(stores: ColdStores, folders: Sequence[Path], ranks: Ranks) -> ByteStore:
    """Returns the store that a rank goes on with: of its own folder of a checkpoint, or dealt from those of several."""
    own = [folder for folder in folders if folder.name == cold_name(ranks.rank, ranks.size)]
    if own or not folders:
        return stores.open(own[0] if own else None)
    target = stores.open(None)
    for folder in folders:
        source = stores.read(folder)
        deal(source, target, ranks.rank, ranks.size)
        source.close()
    return target


def deal(source: ByteStore, target: ByteStore, rank: int, size: int) -> None:
    """Copies the rows that rank `rank` of `size` owns."""
    order = source.scan(*all_names())
    while piece := list(islice(order, _PIECE)):
        is_own = owner_of(parsed(name for name, _ in piece).keys, size) == rank
        own = [piece[place] for place in np.flatnonzero(is_own).tolist()]
        names = row_names(parsed(name for name, _ in own).keys)
        target.write([*own, *zip(names, source.get_many(names), strict=True)])


def joined_places(places: Sequence[Tensor]) -> Tensor:
    """Returns `ColdRows.state()["places"]` of rows of several ranks: nothing is passed over, some is told again."""
    last, _, promoted = zip(*(_split(one) for one in places), strict=True)
    joined = max(last) + 2 * min(promoted)
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8)


def _split(places: Tensor) -> list[bytes]:
    data = places.numpy().tobytes()
    return [data[first : first + PLACE_BYTES] for first in range(0, len(data), PLACE_BYTES)]
