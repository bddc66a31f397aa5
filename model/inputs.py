"""The network's input: rows whose request part is shared by all rows of a request.

Letters: R requests, B rows, D input width, N width of what is made of it.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F


class RowInputs:
    """B rows of width D, either whole, or as a request part [R, D_r] and an item part [B, D - D_r].

    Linear layers on the input cost the request part once per request: W x = W_r x_r + W_i x_i. Where most rows have a
    request of their own the parts are joined once instead, which is the cheaper form there.
    """

    __slots__ = ("_item_BD", "_request_RD", "_request_index_B")

    def __init__(
        self, item_BD: Tensor, request_RD: Tensor | None = None, request_index_B: Tensor | None = None
    ) -> None:
        if request_RD is not None and request_index_B is not None and 2 * len(request_RD) > len(item_BD):
            item_BD = torch.cat([F.embedding(request_index_B, request_RD), item_BD], dim=1)
            request_RD = None
        self._item_BD = item_BD
        self._request_RD = request_RD
        self._request_index_B = request_index_B

    def linear(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Returns x Wᵀ + b, [B, N], for weight [N, D] and bias [N]."""
        if self._request_RD is None or self._request_index_B is None:
            return F.linear(self._item_BD, weight, bias)
        request_width = self._request_RD.shape[1]
        request_weight, item_weight = torch.split(weight, [request_width, weight.shape[1] - request_width], dim=1)
        request_RN = F.linear(self._request_RD, request_weight, bias)
        if len(request_RN) == 1:
            return F.linear(self._item_BD, item_weight, request_RN[0])
        return torch.addmm(F.embedding(self._request_index_B, request_RN), self._item_BD, item_weight.t())

    def split(self, row_offsets: Sequence[int]) -> list["RowInputs"]:
        """Returns the rows from each of `row_offsets` to the next one, whose first is 0 and last B."""
        num_rows = [stop - start for start, stop in pairwise(row_offsets)]
        items = torch.split(self._item_BD, num_rows)
        if self._request_RD is None or self._request_index_B is None:
            return [RowInputs(item_BD) for item_BD in items]
        indices = torch.split(self._request_index_B, num_rows)
        return [RowInputs(item_BD, self._request_RD, index_B) for item_BD, index_B in zip(items, indices, strict=True)]

    def with_columns(self, columns_BN: Tensor) -> "RowInputs":
        """Returns these rows with further columns at their end."""
        item_BD = torch.cat([self._item_BD, columns_BN], dim=1)
        return RowInputs(item_BD, self._request_RD, self._request_index_B)

    @property
    def device_type(self) -> str:
        """Kind of the device that the rows are on: `cpu` or `cuda`."""
        return self._item_BD.device.type

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self._item_BD)

    def whole(self) -> Tensor:
        """Returns x, [B, D]."""
        if self._request_RD is None or self._request_index_B is None:
            return self._item_BD
        return torch.cat([F.embedding(self._request_index_B, self._request_RD), self._item_BD], dim=1)
