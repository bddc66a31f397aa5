"""The layers that several networks are made of, in plain float64: one row, one expert, one head at a time.

They only know how the modules lay out their parameters. Also how to move a bank's experts about.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from model.experts import GatedExperts

Parameters = Mapping[str, Tensor]
Layer = Callable[[Tensor], Tensor]


def relu(z: Tensor) -> Tensor:
    return torch.clamp(z, min=0)


def softmax(z: Sequence[Tensor], factors: Sequence[float | Tensor] | None = None) -> list[Tensor]:
    """Returns the softmax; with factors of exp(z) weighed by them."""
    top = max(z).detach()
    powers = [torch.exp(one - top) * factor for one, factor in zip(z, factors or [1.0] * len(z), strict=True)]
    return [power / sum(powers) for power in powers]


def mixed(weights: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    return sum((w * f for w, f in zip(weights, features, strict=True)), torch.zeros_like(features[0]))


def bank(p: Parameters, name: str) -> tuple[list[Layer], list[Layer]]:
    """Returns the experts and the gate logits of a `GatedExperts`."""
    w_in, b_in, w_out, b_out = (p[f"{name}.{one}"] for one in ("in_weight", "in_bias", "out_weight", "out_bias"))
    num_experts, hidden, _ = w_out.shape

    def expert(k: int) -> Layer:
        rows = slice(k * hidden, (k + 1) * hidden)
        return lambda x: relu(w_out[k].T @ relu(w_in[rows] @ x + b_in[rows]) + b_out[k, 0])

    def gate(row: int) -> Layer:
        return lambda x: w_in[row] @ x + b_in[row]

    return [expert(k) for k in range(num_experts)], [gate(row) for row in range(num_experts * hidden, len(w_in))]


def linear_rows(p: Parameters, name: str) -> list[Layer]:
    """Returns each output of a `LinearGate`."""
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]

    def row(n: int) -> Layer:
        return lambda x: weight[n] @ x + bias[n]

    return [row(n) for n in range(len(weight))]


def tower(p: Parameters, name: str, task: int, features: Tensor) -> Tensor:
    """Returns one task's logit."""
    z, layer = features, 0
    while f"{name}.weights.{layer}" in p:
        z = relu(z) if layer else z
        z = p[f"{name}.weights.{layer}"][task].T @ z + p[f"{name}.biases.{layer}"][task, 0]
        layer += 1
    return z[0]


def per_row(row_logits: Callable[[Tensor, int], list[Tensor]], x_BD: Tensor, scenario_B: Sequence[int]) -> Tensor:
    """Returns [B, T] of a function of one row and its scenario."""
    return torch.stack([torch.stack(row_logits(x_D, i)) for x_D, i in zip(x_BD, scenario_B, strict=True)])


def permute_experts(experts: GatedExperts, order: Sequence[int]) -> None:
    """Puts the experts of a bank in another order; gate logits stay where they are."""
    hidden = experts.out_weight.shape[1]
    rows = torch.cat([torch.arange(k * hidden, (k + 1) * hidden) for k in order])
    with torch.no_grad():
        experts.in_weight[: len(rows)] = experts.in_weight[rows]
        experts.in_bias[: len(rows)] = experts.in_bias[rows]
        experts.out_weight.copy_(experts.out_weight[list(order)])
        experts.out_bias.copy_(experts.out_bias[list(order)])
