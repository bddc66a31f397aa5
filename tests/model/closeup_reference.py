"""The closeup ranker in float64, one row, one head and one expert at a time, written from its equations.

It only knows how the modules name their parameters; every product is a plain matrix times vector.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.closeup import CloseupConfig
from model.sequence_encoder import SequenceConfig

Parameters = Mapping[str, Tensor]


def under(prefix: str, p: Parameters) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in p.items() if name.startswith(prefix)}


def softmax(z: Sequence[Tensor]) -> list[Tensor]:
    powers = [torch.exp(one - max(z).detach()) for one in z]
    return [power / sum(powers) for power in powers]


def linear(p: Parameters, x: Tensor, name: str = "") -> Tensor:
    return p[f"{name}weight"] @ x + p[f"{name}bias"]


def norm(p: Parameters, x: Tensor) -> Tensor:
    centred = x - sum(x) / len(x)
    return p["weight"] * centred / torch.sqrt(sum(centred**2) / len(x) + 1e-5) + p["bias"]


def attend(p: Parameters, query: Tensor, rows: Sequence[Tensor], num_heads: int) -> Tensor:
    width = len(rows[0])
    q = linear(p, query, "query_")
    keys_values = [linear(p, row, "row_") for row in rows]
    mixed = []
    for head in range(num_heads):
        part = slice(head * width // num_heads, (head + 1) * width // num_heads)
        k, v = [kv[:width][part] for kv in keys_values], [kv[width:][part] for kv in keys_values]
        weights = softmax([q[part] @ one / math.sqrt(width // num_heads) for one in k])
        mixed.append(sum(a * one for a, one in zip(weights, v, strict=True)))
    return linear(p, torch.cat(mixed), "out_")


def transform(p: Parameters, rows: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    result = []
    for row in rows:
        y = norm(under("attention_norm.", p), row + attend(under("attention.", p), row, rows, num_heads))
        feed = linear(under("out.", p), torch.clamp(linear(under("hidden.", p), y), min=0))
        result.append(norm(under("out_norm.", p), y + feed))
    return result


def readout(
    p: Parameters,
    config: SequenceConfig,
    actions: Sequence[tuple[Tensor, Tensor]],
    user: Tensor,
    candidate: Tensor,
) -> Tensor:
    """`actions` are the (action, item) embeddings of the visible actions, newest first."""
    seen = [candidate] if config.fusion == "early" else []
    rows = [torch.cat([action, item, *seen]) for action, item in [(p["context"], user), *actions]]
    for layer in range(config.num_layers):
        rows = transform(under(f"layers.{layer}.", p), rows, config.num_heads)
    newest = [*rows[1:], *[torch.zeros_like(rows[0])] * config.newest][: config.newest]
    highest = torch.stack([max(column) for column in torch.stack(rows).T])
    pooled = linear(under("pooled.", p), highest)
    if config.fusion == "early":
        return torch.cat([*newest, pooled])
    return torch.cat([*newest, pooled, attend(under("candidate.", p), candidate, rows, config.num_heads)])


def row_logits(
    p: Parameters, config: CloseupConfig, groups: Sequence[Tensor], i: int, num_tasks: int, *, concat_each: bool = False
) -> list[Tensor]:
    """`groups` are the inputs of the groups, the read-out last; `concat_each` puts m beside each expert's output."""
    tokens = [
        linear(under(f"group_out.{g}.", p), torch.clamp(linear(under(f"group_hidden.{g}.", p), group), min=0))
        for g, group in enumerate(groups)
    ]
    m = torch.cat(transform(under("mixer.", p), tokens, config.mixer_heads))
    experts = []
    for k in range(config.num_experts):
        rows = slice(k * config.expert[0], (k + 1) * config.expert[0])
        e = torch.clamp(p["experts.in_weight"][rows] @ m + p["experts.in_bias"][rows], min=0)
        for layer in range(len(config.expert) - 1):
            weight, bias = p[f"experts.weights.{layer}"][k], p[f"experts.biases.{layer}"][k, 0]
            e = torch.clamp(weight.T @ e + bias, min=0)
        experts.append(torch.cat([e, m]) if concat_each else e)
    gate, logits = linear(under(f"gates.{i}.", p), m), []
    for j in range(num_tasks):
        weights = softmax(list(gate[j * config.num_experts : (j + 1) * config.num_experts]))
        u = sum(g * e for g, e in zip(weights, experts, strict=True))
        u = torch.cat([u, m]) if config.residual and not concat_each else u
        logits.append(p[f"heads.{i}.weights.0"][j, :, 0] @ u + p[f"heads.{i}.biases.0"][j, 0, 0])
    return logits
