"""Experts selected per row for one of several alternatives: a layer of AESM2 (Zou et al., SIGIR 2022).

n experts and a gate per alternative m (all scenarios, or all tasks), of which i is the query's own:

    H_mk      = gate_m([x, context])_k, linear;   in a training forward with noise added
    p_k       = softmax over m of H_mk            how much expert k is each alternative's
    specific  = the experts with the smallest KL(one-hot(i) || p_k) = -log p_ik
    shared    = the experts with the smallest KL(uniform || p_k)
    out       = sum_k g_k e_k(x),   g = softmax over the specific and shared k of H_ik
    divergence  = mean KL of the specific + mean KL of the shared, for the loss

Departures: experts that are not selected are masked; the released code multiplies their gate logits by -1e9, which
selects those with a negative one, and doubles those selected twice. Its gates have batch norm and ReLU, these are
linear. Equal divergences go to the expert of lower index.

Letters: B rows, Q queries per row, M alternatives, n experts, k selected experts, d output width, e context width, G
gate logits (M n).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.experts import GatedExperts
from model.inputs import RowInputs
from model.seeding import Drawn, draw_uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """How many experts there are, and how many are selected."""

    num_experts: int
    num_specific: int
    num_shared: int
    noise: float
    """Standard deviation of the noise on gate logits in training."""


@dataclass(frozen=True, slots=True)
class Selected:
    """What a layer made of its rows."""

    out_QBd: Tensor
    weight_BQn: Tensor
    """Weight of each expert for each query; zero where it is not selected."""
    divergence: Tensor


def select_experts(h_BQMn: Tensor, own_BQ: Tensor, num_specific: int, num_shared: int) -> tuple[Tensor, Tensor]:
    """Returns the weights of all experts, [B, Q, n], zero where not selected, and the selected ones' divergence."""
    log_p_BQMn = h_BQMn.log_softmax(dim=2)
    own_BQ1n = own_BQ[:, :, None, None].expand(-1, -1, 1, h_BQMn.shape[3])
    specific_BQn = -log_p_BQMn.gather(2, own_BQ1n).squeeze(2)
    shared_BQn = -log_p_BQMn.mean(dim=2) - math.log(h_BQMn.shape[2])
    is_selected_BQn = torch.zeros_like(specific_BQn, dtype=torch.bool)
    divergence = specific_BQn.new_zeros(())
    for divergence_BQn, count in ((specific_BQn, num_specific), (shared_BQn, num_shared)):
        nearest_BQk = divergence_BQn.detach().argsort(dim=2, stable=True)[:, :, :count]
        is_selected_BQn = is_selected_BQn.scatter(2, nearest_BQk, True)
        divergence = divergence + divergence_BQn.gather(2, nearest_BQk).mean()
    own_h_BQn = h_BQMn.gather(2, own_BQ1n).squeeze(2)
    return own_h_BQn.masked_fill(~is_selected_BQn, -torch.inf).softmax(dim=2), divergence


class SelectionLayer(Drawn):
    """x, [B, width], and each query's context, [B, Q, e] -> the mix of the experts selected for it, [Q, B, d]."""

    def __init__(
        self, selection: Selection, width: int, *, num_alternatives: int, context: int, hidden: int, out: int
    ) -> None:
        super().__init__()
        self._selection, self._num_alternatives = selection, num_alternatives
        num_gates = num_alternatives * selection.num_experts
        self.experts = GatedExperts(
            width, num_experts=selection.num_experts, num_gates=num_gates, hidden=hidden, out=out
        )
        self.context_weight = nn.Parameter(torch.empty(num_gates, context))

    def forward(self, x: RowInputs, context_BQe: Tensor, own_BQ: Tensor, noise: torch.Generator | None) -> Selected:
        """Selects for each query the experts of its own alternative, `own_BQ`, and the shared ones."""
        selection = self._selection
        experts_nBd, gate_BG = self.experts(x)
        h_BQG = gate_BG[:, None] + F.linear(context_BQe, self.context_weight)
        if noise is not None and selection.noise:
            drawn = torch.randn(h_BQG.shape, generator=noise, dtype=h_BQG.dtype, device=noise.device)
            h_BQG = h_BQG + selection.noise * drawn.to(h_BQG.device)
        h_BQMn = h_BQG.view(*h_BQG.shape[:2], self._num_alternatives, selection.num_experts)
        weight_BQn, divergence = select_experts(h_BQMn, own_BQ, selection.num_specific, selection.num_shared)
        out_QBd = (weight_BQn.permute(2, 1, 0)[..., None] * experts_nBd[:, None]).sum(dim=0)
        return Selected(out_QBd, weight_BQn, divergence)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the context's part of the gates."""
        draw_uniform(self.context_weight, self.context_weight.shape[1], generator_of("context_weight"))
