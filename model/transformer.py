"""Attention and transformer layers without positional encoding.

Letters: N sets, S rows of a set, Q queries of a set, d row width, H heads, f feed-forward width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.seeding import Drawn, draw_uniform


class Attention(Drawn):
    """Multi-head attention of queries to the valid rows of their set; every set must have one.

    out = W_o [softmax(q_h k_h' / sqrt(d / H)) v_h, h = 1..H] + b_o,   q = W_q query + b_q,   k, v = W_kv row + b_kv
    """

    def __init__(self, query_width: int, row_width: int, *, num_heads: int) -> None:
        super().__init__()
        self._num_heads = num_heads
        self.query_weight = nn.Parameter(torch.empty(row_width, query_width))
        self.query_bias = nn.Parameter(torch.empty(row_width))
        self.row_weight = nn.Parameter(torch.empty(2 * row_width, row_width))
        self.row_bias = nn.Parameter(torch.empty(2 * row_width))
        self.out_weight = nn.Parameter(torch.empty(row_width, row_width))
        self.out_bias = nn.Parameter(torch.empty(row_width))

    def forward(self, query_NQq: Tensor, rows_NSd: Tensor, is_valid_NS: Tensor | None = None) -> Tensor:
        """Returns what each query takes from its set, [N, Q, d]; without `is_valid_NS` all rows are valid."""
        keys_NSd, values_NSd = F.linear(rows_NSd, self.row_weight, self.row_bias).chunk(2, dim=2)
        queries_NQd = F.linear(query_NQq, self.query_weight, self.query_bias)
        mask_N11S = None if is_valid_NS is None else is_valid_NS[:, None, None, :]
        q_NHQe, k_NHSe, v_NHSe = (self._by_head(one) for one in (queries_NQd, keys_NSd, values_NSd))
        mixed_NHQe = F.scaled_dot_product_attention(q_NHQe, k_NHSe, v_NHSe, attn_mask=mask_N11S)
        return F.linear(mixed_NHQe.transpose(1, 2).flatten(2), self.out_weight, self.out_bias)

    def _by_head(self, rows_NSd: Tensor) -> Tensor:
        num_sets, num_rows, width = rows_NSd.shape
        return rows_NSd.view(num_sets, num_rows, self._num_heads, width // self._num_heads).transpose(1, 2)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the layers."""
        for layer in ("query", "row", "out"):
            weight = getattr(self, f"{layer}_weight")
            for name in (f"{layer}_weight", f"{layer}_bias"):
                draw_uniform(getattr(self, name), weight.shape[1], generator_of(name))


class LayerNorm(Drawn):
    """Layer normalisation; starts without scale and shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the rows normalised."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Sets scale 1 and shift 0."""
        self.weight.fill_(1.0)
        self.bias.zero_()


class Dense(Drawn):
    """One linear layer."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, width))
        self.bias = nn.Parameter(torch.empty(out))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x W' + b."""
        return F.linear(x, self.weight, self.bias)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the parameters."""
        for name in ("weight", "bias"):
            draw_uniform(getattr(self, name), self.weight.shape[1], generator_of(name))


class TransformerLayer(nn.Module):
    """One encoder layer: y = LN(x + attention(x)), out = LN(y + W2 relu(W1 y + b1) + b2); no dropout."""

    def __init__(self, width: int, *, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, width, num_heads=num_heads)
        self.attention_norm = LayerNorm(width)
        self.hidden = Dense(width, hidden)
        self.out = Dense(hidden, width)
        self.out_norm = LayerNorm(width)

    def forward(self, rows_NSd: Tensor, is_valid_NS: Tensor | None = None) -> Tensor:
        """Returns the rows, [N, S, d]; rows that are not valid are not looked at, what becomes of them is unused."""
        y_NSd = self.attention_norm(rows_NSd + self.attention(rows_NSd, rows_NSd, is_valid_NS))
        out_NSd: Tensor = self.out_norm(y_NSd + self.out(F.relu(self.hidden(y_NSd))))
        return out_NSd


def check_heads(num_heads: int, width: int) -> None:
    """Refuses rows that cannot be split into heads.

    Raises:
        ValueError: `num_heads` does not divide `width`.
    """
    if width % num_heads:
        raise ValueError(f"num_heads: {num_heads} is not allowed; a divisor of the row width {width}")
