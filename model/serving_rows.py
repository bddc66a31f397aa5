"""The rows of a model as a ranker holds them: immutable for readers; a delta makes new ones.

Letters: N keys, W embedding width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from model.id_table import NO_ROW, IdTable
from model.shapes import check_same_shapes


class ServingRows:
    """Ids and their embeddings. Safe to share between threads: nothing changes after construction."""

    def __init__(self, ids: IdTable, weight: Tensor) -> None:
        self.ids = ids
        self.weight = weight
        """Rows of all ids, the reserved ones first; there may be more than are in use."""

    @classmethod
    def empty(cls, *, num_reserved: int, width: int) -> "ServingRows":
        """Returns rows of no keys; the reserved ones are zero."""
        return cls(IdTable(num_reserved=num_reserved), torch.zeros(num_reserved, width))

    def __len__(self) -> int:
        return len(self.ids)

    def after(self, tensors: Mapping[str, Tensor]) -> "ServingRows":
        """Returns the rows after the evictions and then the changed rows of a delta; these go on as they are.

        Raises:
            ValueError: names or shapes of the `rows.` tensors are not those of these rows.
        """
        rows = {name: tensor for name, tensor in tensors.items() if name.startswith("rows.")}
        num_reserved, width = self.ids.num_reserved, self.weight.shape[1]
        num_keys = len(rows.get("rows.keys", ()))
        check_same_shapes(
            {name: tensor for name, tensor in rows.items() if name != "rows.evicted"},
            {
                "rows.keys": torch.empty(num_keys),
                "rows.weights": torch.empty(num_keys, width),
                "rows.reserved": torch.empty(num_reserved, width),
            },
        )
        keys, evicted = rows["rows.keys"].numpy(), rows["rows.evicted"].numpy()
        rows_N = self.ids.lookup(keys)
        is_new = rows_N == NO_ROW
        ids = self.ids
        if len(evicted) or is_new.any():
            ids = ids.copy()
            ids.remove(evicted)
            rows_N[is_new] = ids.insert(keys[is_new])
        room = ids.num_rows - len(self.weight)
        weight = torch.cat([self.weight, torch.zeros(max(room, 0) and room + len(self.weight) // 4, width)])
        weight[:num_reserved] = rows["rows.reserved"]
        weight[torch.from_numpy(rows_N)] = rows["rows.weights"]
        return ServingRows(ids, weight)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the rows as a full export: equal rows are equal by key."""
        keys, rows = self.ids.items()
        return {
            "rows.keys": torch.from_numpy(keys),
            "rows.weights": self.weight[torch.from_numpy(rows)],
            "rows.evicted": torch.empty(0, dtype=torch.int64),
            "rows.reserved": self.weight[: self.ids.num_reserved].clone(),
        }
