"""Experts that all rows share, mixed by the gates of the row's own scenario: what the networks of the MMoE family are.

Letters: B rows, K experts, G gates, d expert width, C = K d + G K, N flat gate logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ExpertMixture:
    """The representation of such a network: every expert's output, then the logits of the row's own gates, flat.

    What a task's part of the network sees of the shared part is all in it, before anything is mixed.
    """

    num_experts: int
    num_gates: int
    expert_width: int

    @property
    def width(self) -> int:
        """C."""
        return self.num_experts * (self.expert_width + self.num_gates)

    def join(self, experts_KBd: Tensor, gate_BN: Tensor) -> Tensor:
        """Returns the representation, [B, C], of experts and gate logits [B, G K]."""
        return torch.cat([experts_KBd.transpose(0, 1).flatten(1), gate_BN], dim=1)

    def gate_weights(self, c_BC: Tensor) -> Tensor:
        """Returns what each gate gives to each expert, [B, G, K]."""
        gate_BN = c_BC[:, self.num_experts * self.expert_width : self.width]
        return gate_BN.view(len(c_BC), self.num_gates, self.num_experts).softmax(dim=2)

    def mix(self, c_BC: Tensor) -> Tensor:
        """Returns the features of each gate, [G, B, d]."""
        experts_BN = c_BC[:, : self.num_experts * self.expert_width]
        experts_BKd = experts_BN.view(len(c_BC), self.num_experts, self.expert_width)
        return torch.bmm(self.gate_weights(c_BC), experts_BKd).transpose(0, 1)
