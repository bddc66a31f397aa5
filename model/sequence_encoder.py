"""What a user's last actions say about a candidate: a small transformer over them (TransAct, Xia et al., KDD 2023).

    rows      [action; item; candidate] per action, newest first, and one context row [learned; user; candidate]
    encoder   transformer layers, no positional encoding, padding masked
    read-out  [newest n encoded rows, zeros beyond the history; Linear(max over valid rows)]

Letters: R requests, B rows, N histories to encode (B or R), L actions of the longest, S = 1 + L, W block width, n
newest rows read out, d row width, Q candidates of a request, C width of the read-out.

Departures: rows are as wide as the embeddings (published: 32 each). `append` leaves the candidate out of the rows, so
that a history is encoded once per request whatever the number of its candidates, and adds the candidate's attention to
the encoded rows to the read-out. The context row is always valid, so an empty history never makes a softmax over
nothing. The read-out takes the newest *visible* actions: an action under the time mask is as if it had not been.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.inputs import RowInputs
from model.network import NetworkShape
from model.network_config import check_counts
from model.seeding import Drawn, draw_uniform
from model.sequence_inputs import SequenceInputs
from model.transformer import Attention, Dense, TransformerLayer, check_heads

Fusion = Literal["append", "early"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceConfig:
    """The encoder of a user's last actions."""

    fusion: Fusion = "append"
    """`append`: a history is encoded once per request, and each candidate attends to it; `early`: the candidate is in
    every row (published), at the price of encoding the history once per candidate."""
    num_layers: int = 2
    """Transformer layers; at least 1."""
    num_heads: int = 2
    """Attention heads; a divisor of the row width (3 embeddings with `early`, 2 with `append`)."""
    hidden: int = 32
    """Hidden width of the feed-forward layers; at least 1."""
    newest: int = 10
    """Newest actions that are read out one by one; at least 1."""
    time_mask_ms: int = 0
    """In training hide each history's actions of the last D, D uniform up to this, so that the network does not learn
    to follow the last action only; 0: hide none. Published: 24 hours, for models that are trained once a day."""

    def __post_init__(self) -> None:
        check_counts(self, but=("time_mask_ms",))
        if self.time_mask_ms < 0:
            raise ValueError(f"time_mask_ms: {self.time_mask_ms} is not allowed; at least 0")


class SequenceEncoder(Drawn):
    """Returns a read-out of each row's history, as wide as `width`."""

    def __init__(self, config: SequenceConfig, block_width: int) -> None:
        super().__init__()
        self._config = config
        self._is_early = config.fusion == "early"
        row_width = (3 if self._is_early else 2) * block_width
        check_heads(config.num_heads, row_width)
        self.context = nn.Parameter(torch.empty(block_width))
        self.layers = nn.ModuleList(
            TransformerLayer(row_width, num_heads=config.num_heads, hidden=config.hidden)
            for _ in range(config.num_layers)
        )
        self.pooled = Dense(row_width, row_width)
        self.candidate = None if self._is_early else Attention(block_width, row_width, num_heads=config.num_heads)
        self.width = (config.newest + (1 if self._is_early else 2)) * row_width
        """Columns of the read-out."""

    def forward(self, sequence: SequenceInputs, noise: torch.Generator | None) -> RowInputs:
        """Returns the read-out of B rows; with `append` its history part is computed once per request."""
        rows_NSd, is_valid_NS = self._rows(sequence, noise)
        for layer in self.layers:
            rows_NSd = layer(rows_NSd, is_valid_NS)
        parts = [self._newest(rows_NSd[:, 1:], is_valid_NS[:, 1:])]
        parts.append(self.pooled(torch.where(is_valid_NS[..., None], rows_NSd, -torch.inf).amax(dim=1)))
        readout_NC = torch.cat(parts, dim=1)
        if self.candidate is None:
            return RowInputs(readout_NC)
        queries_RQW, slot_B = _by_request(sequence)
        attended_RQd = self.candidate(queries_RQW, rows_NSd, is_valid_NS)
        return RowInputs(attended_RQd.flatten(0, 1)[slot_B], readout_NC, sequence.request_index_B)

    def _rows(self, sequence: SequenceInputs, noise: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Returns the rows to encode, [N, S, d], the context row first, and which of them are valid, [N, S]."""
        is_valid_RL, age_ms_RL = sequence.is_real_RL, sequence.age_ms_RL
        num_requests = len(is_valid_RL)
        context_RW = self.context.expand(num_requests, -1)
        action_RSW = torch.cat([context_RW[:, None], sequence.action_RLW], dim=1)
        item_RSW = torch.cat([sequence.user_RW[:, None], sequence.item_RLW], dim=1)
        rows_NSd, is_valid_NL, age_ms_NL = torch.cat([action_RSW, item_RSW], dim=2), is_valid_RL, age_ms_RL
        if self._is_early:
            index_B = sequence.request_index_B
            candidate_BSW = sequence.candidate_BW[:, None].expand(-1, rows_NSd.shape[1], -1)
            rows_NSd = torch.cat([rows_NSd[index_B], candidate_BSW], dim=2)
            is_valid_NL, age_ms_NL = is_valid_RL[index_B], age_ms_RL[index_B]
        if noise is not None and self._config.time_mask_ms:
            share_N1 = torch.rand(len(age_ms_NL), 1, generator=noise).to(age_ms_NL.device)
            is_valid_NL = is_valid_NL & (age_ms_NL >= share_N1.double() * self._config.time_mask_ms)
        return rows_NSd, F.pad(is_valid_NL, (1, 0), value=True)

    def _newest(self, rows_NLd: Tensor, is_valid_NL: Tensor) -> Tensor:
        """Returns the first valid rows side by side, [N, n d]; zeros where there are fewer."""
        order_Nn = is_valid_NL.byte().sort(dim=1, descending=True, stable=True).indices[:, : self._config.newest]
        newest_Nnd = rows_NLd.gather(1, order_Nn[..., None].expand(-1, -1, rows_NLd.shape[2]))
        newest_Nnd = torch.where(is_valid_NL.gather(1, order_Nn)[..., None], newest_Nnd, 0.0)
        return F.pad(newest_Nnd, (0, 0, 0, self._config.newest - order_Nn.shape[1])).flatten(1)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the context row's reserved action."""
        draw_uniform(self.context, len(self.context), generator_of("context"))


def _by_request(sequence: SequenceInputs) -> tuple[Tensor, Tensor]:
    """Returns the candidates side by side per request, [R, Q, W], and the place of each row among all R Q of them.

    Requests with fewer than Q candidates are filled with zeros.
    """
    index_B, num_requests = sequence.request_index_B, len(sequence.is_real_RL)
    count_R = torch.bincount(index_B, minlength=num_requests)
    most = int(count_R.max()) if num_requests else 0  # on a GPU this waits for it, once per forward
    order_B = torch.argsort(index_B, stable=True)
    first_R = count_R.cumsum(0) - count_R
    place_B = torch.empty_like(index_B)
    place_B[order_B] = torch.arange(len(index_B), device=index_B.device) - first_R[index_B[order_B]]
    slot_B = index_B * most + place_B
    width = sequence.candidate_BW.shape[1]
    queries = sequence.candidate_BW.new_zeros(num_requests * most, width)
    return queries.index_copy(0, slot_B, sequence.candidate_BW).view(num_requests, most, width), slot_B


def check_has_history(shape: NetworkShape) -> None:
    """Refuses a model without what a sequence is made of.

    Raises:
        ValueError: the model has no history or no item id.
    """
    if not {"history_item", "history_action", "item_id"} <= set(shape.blocks):
        raise ValueError(
            "encoding: history_length: 0 or item_id: false is not allowed with a network that reads sequences;"
            " a history_length of at least 1 and item_id: true"
        )
