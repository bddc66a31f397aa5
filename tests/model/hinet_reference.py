"""HiNet in float64, one row and one expert at a time, written from the equations and apart from `model.hinet`.

It only knows how that module lays out its parameters (`weights_of`); every product is a plain matrix times vector.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.hinet_config import HiNetConfig


@dataclass
class Expert:
    """W1, b1, W2, b2 of relu(W2 relu(W1 x + b1) + b2); weights as [out, in]."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        hidden = torch.clamp(self.w1 @ x + self.b1, min=0)
        return torch.clamp(self.w2 @ hidden + self.b2, min=0)


def softmax(z: list[Tensor]) -> list[Tensor]:
    powers = [torch.exp(one - max(z).detach()) for one in z]
    return [power / sum(powers) for power in powers]


def experts_of(p: dict[str, Tensor], name: str) -> tuple[list[Expert], list[tuple[Tensor, Tensor]]]:
    """Returns the experts and the (weight, bias) of each gate logit of one bank."""
    w_in, b_in, w_out, b_out = (p[f"{name}.{one}"] for one in ("in_weight", "in_bias", "out_weight", "out_bias"))
    num_experts, hidden = w_out.shape[0], w_out.shape[1]
    experts = [
        Expert(w_in[k * hidden : (k + 1) * hidden], b_in[k * hidden : (k + 1) * hidden], w_out[k].T, b_out[k, 0])
        for k in range(num_experts)
    ]
    return experts, [(w_in[n], b_in[n]) for n in range(num_experts * hidden, len(w_in))]


def sei(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    experts, gates = experts_of(p, f"{name}.experts")
    weights = softmax([w @ x + b for w, b in gates])
    return sum((g * expert(x) for g, expert in zip(weights, experts, strict=True)), torch.zeros(()))


def row_logits(p: dict[str, Tensor], config: HiNetConfig, x: Tensor, i: int, num_scenarios: int) -> list[Tensor]:
    num_tasks = len(p["towers.0.weights.0"])
    shared = sei(p, "shared", x)
    own = [sei(p, f"scenarios.{m}", x) for m in range(num_scenarios)]
    parts = [shared, own[i]]
    others = [m for m in range(num_scenarios) if m != i]
    if config.san != "none" and (others or config.growable):
        mix = torch.zeros_like(own[0])
        if others:
            w, b, emb = p["attention.weight"], p["attention.bias"], p["attention.embedding"][i]
            for a, m in zip(softmax([w[m] @ emb + b[m] for m in others]), others, strict=True):
                mix = mix + a * (own[m].detach() if config.san == "detach" else own[m])
        parts.append(mix)
    c = torch.cat(parts)
    experts, gates = experts_of(p, f"gates.{i}.experts")
    mine, common = config.num_task_experts, config.num_shared_task_experts
    logits = []
    for j in range(num_tasks):
        seen = experts[j * mine : (j + 1) * mine] + experts[num_tasks * mine :]
        gate = softmax([w @ c + b for w, b in gates[j * (mine + common) : (j + 1) * (mine + common)]])
        z = sum((g * expert(c) for g, expert in zip(gate, seen, strict=True)), torch.zeros(()))
        for layer in range(len(config.tower) + 1):
            z = torch.clamp(z, min=0) if layer else z
            z = p[f"towers.{i}.weights.{layer}"][j].T @ z + p[f"towers.{i}.biases.{layer}"][j, 0]
        logits.append(z[0])
    return logits


def logits(p: dict[str, Tensor], config: HiNetConfig, x_BD: Tensor, scenario_B: Any, num_scenarios: int) -> Tensor:
    """Returns [B, T] for parameters by name (float64)."""
    return torch.stack(
        [
            torch.stack(row_logits(p, config, x_D, int(i), num_scenarios))
            for x_D, i in zip(x_BD, np.asarray(scenario_B), strict=True)
        ]
    )
