"""A bank of experts of any depth on the same input.

Letters: B rows, P input width, K experts, e width of an expert's layer.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.seeding import Drawn, draw_uniform


class ExpertMlps(Drawn):
    """K multi-layer experts, relu and dropout after each layer, [B, P] -> [B, K, e]."""

    def __init__(self, width: int, hidden: Sequence[int], *, num_experts: int, dropout: float) -> None:
        super().__init__()
        self._dropout = dropout
        widths = [width, *hidden]
        shapes = [(num_experts, fan_in, out) for fan_in, out in zip(widths, widths[1:], strict=False)]
        self.weights = nn.ParameterList(torch.empty(shape) for shape in shapes)
        self.biases = nn.ParameterList(torch.empty(num_experts, 1, out) for _, _, out in shapes)

    def forward(self, x_BP: Tensor, noise: torch.Generator | None) -> Tensor:
        """Returns every expert's output; with `noise` the dropout of a training forward is drawn from it."""
        features_KBe = x_BP.expand(len(self.weights[0]), -1, -1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            features_KBe = F.relu(torch.baddbmm(bias, features_KBe, weight))
            if noise is not None and self._dropout:
                kept_KBe = torch.rand(features_KBe.shape, generator=noise) >= self._dropout
                features_KBe = features_KBe * kept_KBe.to(features_KBe.device) / (1.0 - self._dropout)
        return features_KBe.transpose(0, 1)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws layers as `nn.Linear` does."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            draw_uniform(weight, weight.shape[1], generator_of(f"weights.{layer}"))
            draw_uniform(bias, weight.shape[1], generator_of(f"biases.{layer}"))
