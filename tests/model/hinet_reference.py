"""HiNet in float64, one row and one expert at a time, written from the equations and apart from `model.hinet`.

It only knows how that module lays out its parameters (`weights_of`); every product is a plain matrix times vector.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.hinet_config import HiNetConfig

Kept = dict[str, tuple[Tensor, Tensor]] | None
"""For one row and each SEI, what dropout makes of hidden units [K, h] and outputs [K, d]: the factor of each."""


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


def activated(config: HiNetConfig, z: list[Tensor]) -> list[Tensor]:
    return [torch.clamp(one, min=0) for one in z] if config.gate_activation == "relu" else z


def experts_of(p: dict[str, Tensor], name: str) -> tuple[list[Expert], list[tuple[Tensor, Tensor]]]:
    """Returns the experts and the (weight, bias) of each gate logit of one bank."""
    w_in, b_in, w_out, b_out = (p[f"{name}.{one}"] for one in ("in_weight", "in_bias", "out_weight", "out_bias"))
    num_experts, hidden = w_out.shape[0], w_out.shape[1]
    experts = [
        Expert(w_in[k * hidden : (k + 1) * hidden], b_in[k * hidden : (k + 1) * hidden], w_out[k].T, b_out[k, 0])
        for k in range(num_experts)
    ]
    return experts, [(w_in[n], b_in[n]) for n in range(num_experts * hidden, len(w_in))]


def sei(p: dict[str, Tensor], config: HiNetConfig, name: str, x: Tensor, kept: Kept) -> Tensor:
    experts, gates = experts_of(p, f"{name}.experts")
    weights = softmax(activated(config, [w @ x + b for w, b in gates]))
    outputs = []
    for k, expert in enumerate(experts):
        hidden = torch.clamp(expert.w1 @ x + expert.b1, min=0)
        if kept:
            hidden = hidden * kept[name][0][k]
        out = torch.clamp(expert.w2 @ hidden + expert.b2, min=0)
        outputs.append(out * kept[name][1][k] if kept else out)
    return sum((g * out for g, out in zip(weights, outputs, strict=True)), torch.zeros(()))


def attention(p: dict[str, Tensor], config: HiNetConfig, i: int, num_scenarios: int) -> dict[int, Tensor]:
    """Returns scenario i's weight of each other one."""
    unit = p["attention.embedding"][i]
    if config.san_gate == "relu_bottleneck":
        for layer in range(3):
            w, b = p[f"attention.bottleneck.weights.{layer}"], p[f"attention.bottleneck.biases.{layer}"]
            unit = torch.clamp(w @ unit + b, min=0)
    over = [m for m in range(num_scenarios) if m != i or config.san_softmax == "all_then_zero"]
    z = [p["attention.weight"][m] @ unit + p["attention.bias"][m] for m in over]
    return {m: a for m, a in zip(over, softmax(activated(config, z)), strict=True) if m != i} if over else {}


def row_c(
    p: dict[str, Tensor], config: HiNetConfig, x: Tensor, i: int, num_scenarios: int, kept: Kept = None
) -> Tensor:
    """Returns C of a row of scenario i."""
    if config.input_affine:
        x = p["affine.scale"] * x + p["affine.shift"]
    if not config.hierarchy:
        return x
    own = [sei(p, config, f"scenarios.{m}", x, kept) for m in range(num_scenarios)]
    parts = [sei(p, config, "shared", x, kept), own[i]]
    if config.san != "none" and (num_scenarios > 1 or config.growable):
        mix = torch.zeros_like(own[0])
        for m, a in attention(p, config, i, num_scenarios).items():
            mix = mix + a * (own[m].detach() if config.san == "detach" else own[m])
        parts.append(mix)
    return torch.cat(parts if config.concat_order == "gsa" else parts[::-1])


def heads(p: dict[str, Tensor], config: HiNetConfig, c: Tensor, i: int) -> Tensor:
    """Returns the logits of scenario i's heads, [T]."""
    num_tasks = len(p[f"towers.{i}.weights.0"])
    experts, gates = experts_of(p, f"gates.{i}.experts")
    if config.task_layer == "global":
        experts = experts + experts_of(p, "shared_task_experts")[0]
    mine, common = config.num_task_experts, config.num_shared_task_experts
    logits = []
    for j in range(num_tasks):
        seen = experts[j * mine : (j + 1) * mine] + experts[num_tasks * mine :]
        z_n = [w @ c + b for w, b in gates[j * (mine + common) : (j + 1) * (mine + common)]]
        gate = [torch.ones(())] * len(seen) if config.cgc_gate == "sum" else softmax(activated(config, z_n))
        z = sum((g * expert(c) for g, expert in zip(gate, seen, strict=True)), torch.zeros(()))
        for layer in range(len(config.tower) + 1):
            z = torch.clamp(z, min=0) if layer else z
            z = p[f"towers.{i}.weights.{layer}"][j].T @ z + p[f"towers.{i}.biases.{layer}"][j, 0]
        logits.append(z[0])
    return torch.stack(logits)


def logits(
    p: dict[str, Tensor],
    config: HiNetConfig,
    x_BD: Tensor,
    scenario_B: Any,
    num_scenarios: int,
    kept_B: list[Kept] | None = None,
) -> Tensor:
    """Returns [B, T] for parameters by name (float64)."""
    rows = []
    for b, (x_D, i) in enumerate(zip(x_BD, np.asarray(scenario_B).tolist(), strict=True)):
        c = row_c(p, config, x_D, i, num_scenarios, kept_B[b] if kept_B else None)
        rows.append(heads(p, config, c, i))
    return torch.stack(rows)
