"""What gates give to their experts: the weights, and what a report makes of them.

Letters: B rows of one scenario, K experts of a gate. A head is one gate for one scenario and task; g_h its mean weight
of each expert. Experts of one network are exchangeable: match them (Hungarian) before comparing two runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

import torch
from torch import Tensor

DEAD_SHARE = 0.1
"""An expert is dead if no head gives it this share of an even weight: max_h g_hk < 0.1 / K."""
SHARP_GAP = 0.1
"""Normalised entropy that single rows must lack of their mean's, for the gate to be called `routed` (ours)."""
EVEN_ENTROPY = 0.9
"""Normalised entropy of a mean from which it is called `even` (ours)."""

Routing = Literal["single", "routed", "even", "fixed"]
"""`single`: one expert, no choice. `routed`: rows differ in their experts, whether or not the mean is flat. Otherwise
every row has about the mean's weights: `even` ones, or unequal ones (`fixed`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateUsage:
    """The weights of one gate on the rows of one scenario."""

    gate: str
    """Which gate of the network: `sei.shared`, `cgc`, ..."""
    scenario: int
    task: int | None
    """None: the gate is not a task's."""
    weight_BK: Tensor
    """Weight of each of its K experts, row by row; rows sum to 1."""
    experts: tuple[str, ...] | None = None
    """Names of the K experts; None: their numbers. Gates of one name and bank that name an expert alike share it."""
    bank: int | None = None
    """The scenario that these experts belong to; None: all scenarios."""


def usage_of_tasks(gate: str, scenario: int, weight_BTK: Tensor) -> list[GateUsage]:
    """Returns one entry per task of weights on the rows of one scenario, [B, T, K]."""
    return [
        GateUsage(gate=gate, scenario=scenario, task=task, weight_BK=weight_BK)
        for task, weight_BK in enumerate(weight_BTK.unbind(dim=1))
    ]


class Expert(NamedTuple):
    """One expert of the gates of one name."""

    bank: int | None
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadUsage:
    """What one head makes of its experts."""

    scenario: int
    task: int | None
    bank: int | None
    num_rows: int
    mean: dict[str, float]
    """g_h: mean weight of each expert, by name."""
    entropy_of_mean: float | None
    """Of g_h, over log K: 1 is even. None where K is 1."""
    mean_entropy: float | None
    """Mean of the rows' entropies, over log K. Never above the entropy of the mean: what lacks is how rows differ."""
    max_share: float
    """Largest mean weight."""
    routing: Routing


class TaskDistance(NamedTuple):
    """Jensen-Shannon distance (square root of the divergence in bits, from 0 to 1) of two tasks' mean weights."""

    scenario: int
    tasks: tuple[int, int]
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """All heads of the gates of one name."""

    gate: str
    experts: tuple[str, ...]
    """Every name of an expert, in order of first use."""
    heads: tuple[HeadUsage, ...]
    """By scenario, then task."""
    dead: tuple[Expert, ...]
    """Experts that no head uses."""
    distances: tuple[TaskDistance, ...]
    """Of each two tasks of a scenario."""


def gate_reports(usages: Sequence[GateUsage]) -> list[GateReport]:
    """Returns a report per gate, in order of first use. Usages of the same head are taken together, row by row.

    Usages without rows say nothing and are left out.

    Raises:
        ValueError: weights do not fit the names of their experts.
    """
    parts: dict[str, dict[tuple[int, int], list[GateUsage]]] = {}
    for usage in usages:
        if len(usage.weight_BK):
            key = (usage.scenario, -1 if usage.task is None else usage.task)
            parts.setdefault(usage.gate, {}).setdefault(key, []).append(usage)
    return [_report(gate, [_head(heads[key]) for key in sorted(heads)]) for gate, heads in parts.items()]


def _head(parts: list[GateUsage]) -> HeadUsage:
    first = parts[0]
    names = first.experts or tuple(str(k) for k in range(first.weight_BK.shape[1]))
    if any(part.weight_BK.shape[1] != len(names) for part in parts):
        widths = sorted({part.weight_BK.shape[1] for part in parts})
        raise ValueError(f"weight_BK: {widths} experts are not allowed in gate {first.gate}; {len(names)}, as named")
    weight_BK = torch.cat([part.weight_BK.detach() for part in parts]).double().cpu()
    mean_K = weight_BK.mean(dim=0)
    entropy_of_mean = mean_entropy = None
    if len(names) > 1:
        scale = 1.0 / math.log(len(names))
        entropy_of_mean, mean_entropy = float(_nats(mean_K)) * scale, float(_nats(weight_BK).mean()) * scale
    return HeadUsage(
        scenario=first.scenario,
        task=first.task,
        bank=first.bank,
        num_rows=len(weight_BK),
        mean=dict(zip(names, mean_K.tolist(), strict=True)),
        entropy_of_mean=entropy_of_mean,
        mean_entropy=mean_entropy,
        max_share=float(mean_K.max()),
        routing=_routing(entropy_of_mean, mean_entropy),
    )


def _nats(weight: Tensor) -> Tensor:
    """Returns the entropy over the last dimension."""
    return -torch.xlogy(weight, weight).sum(dim=-1) + 0.0  # not -0.0


def _routing(entropy_of_mean: float | None, mean_entropy: float | None) -> Routing:
    if entropy_of_mean is None or mean_entropy is None:
        return "single"
    if entropy_of_mean - mean_entropy >= SHARP_GAP:
        return "routed"
    return "even" if entropy_of_mean >= EVEN_ENTROPY else "fixed"


def _report(gate: str, heads: list[HeadUsage]) -> GateReport:
    use: dict[Expert, float] = {}
    for head in heads:
        for name, mean in head.mean.items():
            expert = Expert(head.bank, name)
            use[expert] = max(use.get(expert, 0.0), mean * len(head.mean))
    distances = [
        TaskDistance(a.scenario, (a.task, b.task), jensen_shannon(a.mean, b.mean))
        for a, b in combinations(heads, 2)
        if a.scenario == b.scenario and a.task is not None and b.task is not None
    ]
    return GateReport(
        gate=gate,
        experts=tuple(dict.fromkeys(name for head in heads for name in head.mean)),
        heads=tuple(heads),
        dead=tuple(expert for expert, most in use.items() if most < DEAD_SHARE),
        distances=tuple(distances),
    )


def jensen_shannon(p: dict[str, float], q: dict[str, float]) -> float:
    """Returns the distance of two distributions over names; a name that one lacks has weight 0 there.

    >>> jensen_shannon({"a": 1.0}, {"b": 1.0}), jensen_shannon({"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5})
    (1.0, 0.0)
    """
    bits = 0.0
    for name in p.keys() | q.keys():
        middle = (p.get(name, 0.0) + q.get(name, 0.0)) / 2
        bits += sum(one * math.log2(one / middle) / 2 for one in (p.get(name, 0.0), q.get(name, 0.0)) if one > 0)
    return math.sqrt(max(bits, 0.0))
