"""HiNet's sub-expert integration (SEI): K sub-experts mixed by a softmax gate on the same input.

    SEI(x) = sum_k g^k(x) Q^k(x),   g = softmax(W_g x + b_g),   Q^k(x) = relu(W2_k relu(W1_k x + b1_k) + b2_k)

Letters: B rows, D input width, K sub-experts, h hidden width, d output width, N columns of first layers and gates.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.dropout import dropped_out
from model.experts import GatedExperts
from model.inputs import RowInputs
from model.weighted_sum import weighted_sum

GateActivation = Literal["none", "relu"]


def activated(logit: Tensor, activation: GateActivation) -> Tensor:
    """Returns gate logits as they go into the softmax; `relu` is the released code's."""
    return F.relu(logit) if activation == "relu" else logit


class SubExpertIntegration(nn.Module):
    """One SEI, x -> [B, d]."""

    def __init__(
        self,
        width: int,
        *,
        num_experts: int,
        hidden: int,
        out: int,
        gate_activation: GateActivation = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.experts = GatedExperts(width, num_experts=num_experts, num_gates=num_experts, hidden=hidden, out=out)
        self._gate_activation: GateActivation = gate_activation
        self._dropout = dropout

    def forward(self, x: RowInputs, noise: torch.Generator | None = None) -> Tensor:
        """Returns the mixed features, [B, d]; with `noise` the dropout of a training forward is drawn from it."""
        if noise is not None and self._dropout:
            experts_KBd, gate_BK = self._dropped_out(x, noise)
        else:
            experts_KBd, gate_BK = self.experts(x)
        weight_BK = activated(gate_BK, self._gate_activation).softmax(dim=1)
        return weighted_sum(weight_BK, experts_KBd)

    def gate_weights(self, x: RowInputs) -> Tensor:
        """Returns g, [B, K]."""
        first = self.experts.out_weight.shape[0] * self.experts.out_weight.shape[1]
        gate_BK = x.linear(self.experts.in_weight[first:], self.experts.in_bias[first:])
        return activated(gate_BK, self._gate_activation).softmax(dim=1)

    def _dropped_out(self, x: RowInputs, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns experts and gate logits with dropout after both layers: first the hidden masks, then the others."""
        bank = self.experts
        num_experts, hidden, _ = bank.out_weight.shape
        z_BN = x.linear(bank.in_weight, bank.in_bias)
        hidden_BKh = F.relu(z_BN[:, : num_experts * hidden]).view(-1, num_experts, hidden)
        hidden_KBh = dropped_out(hidden_BKh.transpose(0, 1), self._dropout, noise)
        experts_KBd = F.relu(torch.baddbmm(bank.out_bias, hidden_KBh, bank.out_weight))
        return dropped_out(experts_KBd, self._dropout, noise), z_BN[:, num_experts * hidden :]
