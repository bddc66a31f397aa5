"""What `model.reshard` does with a view of the rows as they were (`model.teacher_rows`): old values go with their keys.

Letters: R reserved rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from model.hashing import Int64Array
from model.sharding import owner_of
from model.teacher_rows import ABSENT

View = Mapping[str, Tensor]
"""What `FrozenRows.state` returns."""


def owned_view(view: View, rows: Int64Array, rank: int, size: int) -> dict[str, Tensor]:
    """Returns the view for a table that has only these rows, in this order, and of removed keys those of the rank."""
    place_of_row = view["place_of_row"].numpy()
    place = np.full(len(rows), ABSENT, np.int64)
    is_covered = rows < len(place_of_row)
    place[is_covered] = place_of_row[rows[is_covered]]
    gone_keys = view["gone_keys"].numpy()
    gone = np.flatnonzero(owner_of(gone_keys, size) == rank)
    gone = gone[np.argsort(gone_keys[gone])]
    kept = torch.from_numpy(np.concatenate([place[place >= 0], view["gone_places"].numpy()[gone]]))
    num_live = len(kept) - len(gone)
    place[place >= 0] = np.arange(num_live)
    return {
        "place_of_row": torch.from_numpy(place),
        "examples": view["examples"][kept],
        "gone_keys": torch.from_numpy(gone_keys[gone]),
        "gone_places": torch.arange(num_live, len(kept)),
        "reserved": view["reserved"].clone(),
        "weight": view["weight"][kept],
    }


def joined_view(views: Sequence[View], num_reserved: int) -> dict[str, Tensor]:
    """Returns one view for the table that has the reserved rows once, then the other rows of each view's table."""
    places, gone_places, num_kept = [views[0]["place_of_row"][:num_reserved]], [], 0
    for view in views:
        place = view["place_of_row"][num_reserved:]
        places.append(torch.where(place >= 0, place + num_kept, place))
        gone_places.append(view["gone_places"] + num_kept)
        num_kept += len(view["examples"])
    return {
        "place_of_row": torch.cat(places),
        "gone_places": torch.cat(gone_places),
        "reserved": views[0]["reserved"],
        **{name: torch.cat([view[name] for view in views]) for name in ("examples", "gone_keys", "weight")},
    }
