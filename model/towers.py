"""Task towers of one scenario as batched products.

Letters: B rows, T tasks, d feature width.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.seeding import Drawn, draw_layers


class TowerLayers(Drawn):
    """The layers of T towers, the last one of width 1; how they are run is the subclass's."""

    def __init__(self, num_tasks: int, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [width, *hidden, 1]
        shapes = [(num_tasks, fan_in, out) for fan_in, out in zip(widths, widths[1:], strict=False)]
        self.weights = nn.ParameterList(torch.empty(shape) for shape in shapes)
        self.biases = nn.ParameterList(torch.empty(num_tasks, 1, out) for _, _, out in shapes)

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability."""
        with torch.no_grad():
            self.biases[-1][task] = math.log(prior / (1 - prior))

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the layers."""
        draw_layers(self.weights, self.biases, generator_of)


class Towers(TowerLayers):
    """T towers, [T, B, d] -> logits [B, T]; ReLU between layers, the last one linear."""

    def forward(self, features_TBd: Tensor) -> Tensor:
        """Returns the logits, [B, T]."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                features_TBd = F.relu(features_TBd)
            features_TBd = torch.baddbmm(bias, features_TBd, weight)
        return features_TBd.squeeze(2).t()
