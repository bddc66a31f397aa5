"""A bank of two-layer experts with their gates, as few and as large products as there can be.

Letters: B rows, D input width, E experts, G gate logits, h hidden width, d output width, N = E h + G, H = E h.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.inputs import RowInputs
from model.seeding import Drawn, draw_uniform


class GatedExperts(Drawn):
    """E two-layer experts and G gate logits on the same input.

    The first layers of all experts and the gates are one product: rows `[e h, (e + 1) h)` of `in_weight` are W1_e, its
    last G rows are the gates. Second layers are one batched product.
    """

    def __init__(self, width: int, *, num_experts: int, num_gates: int, hidden: int, out: int) -> None:
        super().__init__()
        num_in = num_experts * hidden + num_gates
        self.in_weight = nn.Parameter(torch.empty(num_in, width))
        self.in_bias = nn.Parameter(torch.empty(num_in))
        self.out_weight = nn.Parameter(torch.empty(num_experts, hidden, out))
        self.out_bias = nn.Parameter(torch.empty(num_experts, 1, out))

    def forward(self, x: RowInputs) -> tuple[Tensor, Tensor]:
        """Returns every expert's output, [E, B, d], and the gate logits, [B, G]."""
        if torch.is_inference_mode_enabled():
            return self._evaluated(x)
        experts_EBd, gate_BG = _SecondLayers.apply(
            x.linear(self.in_weight, self.in_bias), self.out_weight, self.out_bias
        )  # type: ignore[no-untyped-call] # torch leaves Function.apply untyped
        return experts_EBd, gate_BG

    def _evaluated(self, x: RowInputs) -> tuple[Tensor, Tensor]:
        """Returns the same, of which nobody asks the gradient.

        Every layer is written over. Gates are a product of their own, so that hidden rows start at whole cache lines.
        """
        num_experts, hidden, _ = self.out_weight.shape
        first = num_experts * hidden
        hidden_BH = x.linear(self.in_weight[:first], self.in_bias[:first]).relu_()
        hidden_EBh = hidden_BH.view(-1, num_experts, hidden).transpose(0, 1)
        weight, bias = self.out_weight.to(hidden_BH.dtype), self.out_bias.to(hidden_BH.dtype)
        gate_BG = x.linear(self.in_weight[first:], self.in_bias[first:])
        return torch.baddbmm(bias, hidden_EBh, weight).relu_(), gate_BG

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the layers; gate biases are zero."""
        num_experts, hidden, _ = self.out_weight.shape
        width = self.in_weight.shape[1]
        for name, fan_in in (("in_weight", width), ("in_bias", width), ("out_weight", hidden), ("out_bias", hidden)):
            draw_uniform(getattr(self, name), fan_in, generator_of(name))
        self.in_bias[num_experts * hidden :] = 0.0


class _SecondLayers(torch.autograd.Function):
    """relu(relu(z) W2 + b2) per expert, and the gate logits passed through.

    What autograd would record of it, with a backward that writes the gradient of z in place once, instead of in three
    copies (transpose, relu, concatenation of hidden and gate columns).
    """

    @staticmethod
    def forward(ctx: Any, z_BN: Tensor, out_weight: Tensor, out_bias: Tensor) -> tuple[Tensor, Tensor]:
        num_experts, hidden, _ = out_weight.shape
        ctx.parameter_type = out_weight.dtype
        # Under autocast z is narrower than the parameters, and so is all that follows.
        out_weight, out_bias = out_weight.to(z_BN.dtype), out_bias.to(z_BN.dtype)
        hidden_BEh = z_BN[:, : num_experts * hidden].clamp_min(0.0).view(-1, num_experts, hidden)
        experts_EBd = torch.baddbmm(out_bias, hidden_BEh.transpose(0, 1), out_weight).clamp_min_(0.0)
        ctx.save_for_backward(hidden_BEh, experts_EBd, out_weight)
        return experts_EBd, z_BN[:, num_experts * hidden :].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_EBd: Tensor, grad_gate_BG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_BEh, experts_EBd, out_weight = ctx.saved_tensors
        num_rows, num_experts, hidden = hidden_BEh.shape
        grad_EBd = torch.ops.aten.threshold_backward(grad_EBd, experts_EBd, 0)
        grad_BN = grad_EBd.new_empty(num_rows, num_experts * hidden + grad_gate_BG.shape[1])
        for e in range(num_experts):
            torch.mm(grad_EBd[e], out_weight[e].t(), out=grad_BN[:, e * hidden : (e + 1) * hidden])
        grad_hidden_BH = grad_BN[:, : num_experts * hidden]
        torch.ops.aten.threshold_backward.grad_input(
            grad_hidden_BH, hidden_BEh.flatten(1), 0, grad_input=grad_hidden_BH
        )
        grad_BN[:, num_experts * hidden :] = grad_gate_BG
        grad_weight = torch.bmm(hidden_BEh.permute(1, 2, 0), grad_EBd)
        grad_bias = grad_EBd.sum(dim=1, keepdim=True)
        return grad_BN, grad_weight.to(ctx.parameter_type), grad_bias.to(ctx.parameter_type)
