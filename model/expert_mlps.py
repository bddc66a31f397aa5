"""A bank of experts of any depth on the same input.

Letters: B rows, P input width, K experts, e width of an expert's layer, N first layers' outputs side by side.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.dropout import dropped_out
from model.seeding import Drawn, draw_layers, draw_uniform


class ExpertMlps(Drawn):
    """K multi-layer experts, relu and dropout after each layer, [B, P] -> [B, K, e].

    The first layers of all experts are one product: rows `[k e, (k + 1) e)` of `in_weight` are expert k's. Later layers
    are one batched product each.
    """

    def __init__(self, width: int, hidden: Sequence[int], *, num_experts: int, dropout: float) -> None:
        super().__init__()
        self._dropout = dropout
        self._num_experts = num_experts
        self.in_weight = nn.Parameter(torch.empty(num_experts * hidden[0], width))
        self.in_bias = nn.Parameter(torch.empty(num_experts * hidden[0]))
        shapes = [(num_experts, fan_in, out) for fan_in, out in zip(hidden, hidden[1:], strict=False)]
        self.weights = nn.ParameterList(torch.empty(shape) for shape in shapes)
        self.biases = nn.ParameterList(torch.empty(num_experts, 1, out) for _, _, out in shapes)

    def forward(self, x_BP: Tensor, noise: torch.Generator | None) -> Tensor:
        """Returns every expert's output; with `noise` the dropout of a training forward is drawn from it."""
        first_BN = F.linear(x_BP, self.in_weight, self.in_bias)
        num_rows, num_columns = first_BN.shape
        first_BKe = first_BN.view(num_rows, self._num_experts, num_columns // self._num_experts)
        features_KBe = dropped_out(F.relu(first_BKe), self._dropout, noise).transpose(0, 1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            features_KBe = dropped_out(F.relu(torch.baddbmm(bias, features_KBe, weight)), self._dropout, noise)
        return features_KBe.transpose(0, 1)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the layers."""
        for name in ("in_weight", "in_bias"):
            draw_uniform(getattr(self, name), self.in_weight.shape[1], generator_of(name))
        draw_layers(self.weights, self.biases, generator_of)
