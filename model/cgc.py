"""HiNet's customized gate control (CGC): each task of a scenario mixes its own and the shared experts.

    g_ij = softmax(W_ij C_i + b_ij),   T_ij = g_ij . [experts of task j, shared experts](C_i)

Letters: B rows, T tasks, C width of the input, E experts of the bank, G = T n gate logits, n experts a task sees,
d output width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from model.experts import GatedExperts
from model.inputs import RowInputs
from model.sei import GateActivation, activated
from model.weighted_sum import weighted_sum

CgcGate = Literal["softmax", "sum"]


class CustomizedGateControl(nn.Module):
    """One scenario's CGC, [B, C] -> [T, B, d]. Its shared experts are its own, or one bank for all scenarios."""

    expert_index_Tn: Tensor

    def __init__(
        self,
        width: int,
        *,
        num_tasks: int,
        num_own: int,
        num_shared: int,
        hidden: int,
        out: int,
        gate: CgcGate = "softmax",
        gate_activation: GateActivation = "none",
        has_shared: bool = True,
    ) -> None:
        """Without `has_shared` the `num_shared` experts come with each call."""
        super().__init__()
        self._num_seen = num_own + num_shared
        self._gate, self._gate_activation = gate, gate_activation
        self.experts = GatedExperts(
            width,
            num_experts=num_tasks * num_own + (num_shared if has_shared else 0),
            num_gates=num_tasks * self._num_seen,
            hidden=hidden,
            out=out,
        )
        own_index_Tn = torch.arange(num_tasks * num_own).view(num_tasks, num_own)
        shared_index_n = num_tasks * num_own + torch.arange(num_shared)
        index_Tn = torch.cat([own_index_Tn, shared_index_n.expand(num_tasks, num_shared)], dim=1)
        self.register_buffer("expert_index_Tn", index_Tn, persistent=False)
        self._seen_Tn: list[list[int]] = index_Tn.tolist()

    def forward(self, c_BC: Tensor, shared: GatedExperts | None = None) -> Tensor:
        """Returns each task's mixed features, [T, B, d]; `shared` is the bank of a CGC built without shared experts."""
        experts_EBd, gate_BG = self.experts(RowInputs(c_BC))
        if shared is not None:
            experts_EBd = torch.cat([experts_EBd, shared(RowInputs(c_BC))[0]])
        weight_BTn = self._weights(gate_BG)
        if torch.is_inference_mode_enabled():
            seen_T = ([experts_EBd[e] for e in seen] for seen in self._seen_Tn)
            return torch.stack([weighted_sum(*one) for one in zip(weight_BTn.unbind(1), seen_T, strict=True)])
        seen_EBd = experts_EBd.index_select(0, self.expert_index_Tn.flatten())
        seen_TnBd = seen_EBd.view(-1, self._num_seen, *experts_EBd.shape[1:])
        mixed_TBd: Tensor = (weight_BTn.permute(1, 2, 0)[..., None] * seen_TnBd).sum(dim=1)
        return mixed_TBd

    def gate_weights(self, c_BC: Tensor) -> Tensor:
        """Returns what each task's gate gives its experts, own ones first, [B, T, n]."""
        return self._weights(self.experts(RowInputs(c_BC))[1])

    def _weights(self, gate_BG: Tensor) -> Tensor:
        gate_BTn = gate_BG.view(len(gate_BG), -1, self._num_seen)
        if self._gate == "sum":
            return torch.ones_like(gate_BTn)
        return activated(gate_BTn, self._gate_activation).softmax(dim=2)
