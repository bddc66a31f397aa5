"""Closeup ranker: a user's last actions, a mixer of feature groups, and MMoE (Pinterest engineering, 2023-06-13).

    summarise  one MLP per group of like features -> a token of width d; the sequence's read-out is one of the groups
    mixer      one transformer layer over the group tokens -> side by side = m
    MMoE       e_k = MLP_k(m), dropout after each hidden layer;   g_ij = softmax(W_ij m + b_ij)
    heads      u_ij = [sum_k g_ij,k e_k; m];   z_ij = a_ij . u_ij + c_ij          of scenario i and task j

Letters: B rows, T tasks, G groups, d token width, P = G d width of m, K experts, e expert width, C = K e + P, D width
of x, N flat gate logits.

Unpublished, ours: the number of experts, the widths of the mixer, gates and heads per scenario. Groups are the sides of
the schema: user, context, item, history. m is concatenated once, after mixing: per expert it would be the same, since
the gate's weights sum to 1. Gates have a zero-initialised bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.expert_mlps import ExpertMlps
from model.gate_usage import GateUsage, usage_of_tasks
from model.inputs import RowInputs
from model.linear_gates import LinearGate
from model.network import Network, NetworkInputs, NetworkShape, scenario_slices
from model.network_config import check_counts
from model.scenario_towers import ScenarioTowers
from model.seeding import initialise
from model.sequence_encoder import SequenceConfig, SequenceEncoder, check_has_history
from model.transformer import Dense, TransformerLayer

_GROUP_OF = {
    "user_id": "user",
    "item_id": "item",
    "scenario": "context",
    "history_item": "history",
    "history_action": "history",
    "history_item*item_id": "history",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseupConfig:
    """Widths, counts and ablations. The default has 0.65 M dense parameters at D = 320, M = 3, T = 2."""

    sequence: SequenceConfig = SequenceConfig()
    """The encoder of the user's last actions; it reads `encoding.history_length` of them (published: 100)."""
    group_hidden: int = 128
    """Hidden width of a group's MLP; at least 1."""
    token_width: int = 64
    """Width of a group's token; at least 1."""
    mixer_heads: int = 2
    """Attention heads of the mixer; a divisor of `token_width`."""
    mixer_hidden: int = 128
    """Hidden width of the mixer's feed-forward layers; at least 1."""
    num_experts: int = 8
    """Experts; at least 1."""
    expert: tuple[int, ...] = (128, 128)
    """Hidden widths of an expert, the last one its output (published: 256, 256)."""
    dropout: float = 0.0
    """Share of each expert layer's outputs that a training forward drops, at least 0 and below 1; published: 0.2, for
    models that see an example more than once."""
    residual: bool = True
    """Whether the heads see m beside the mixed experts."""

    def __post_init__(self) -> None:
        check_counts(self)
        if not self.expert:
            raise ValueError("expert: () is not allowed; at least one width")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not allowed; at least 0 and below 1")
        if self.token_width % self.mixer_heads:
            raise ValueError(f"mixer_heads: {self.mixer_heads} is not allowed; a divisor of {self.token_width}")


class Closeup(Network):
    """The whole network.

    Raises:
        ValueError: the model has no history or no item id.
    """

    uses_sequence = True

    def __init__(self, config: CloseupConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        groups = _groups(shape)
        mixed_width = config.token_width * (len(groups) + 1)
        expert_width = config.expert[-1]
        super().__init__(shape, representation_width=config.num_experts * expert_width + mixed_width)
        self._config = config
        self._columns = [[shape.columns(block) for block in blocks] for blocks in groups.values()]
        self.scores_as_it_learns = config.dropout == 0 and config.sequence.time_mask_ms == 0
        self.sequence = SequenceEncoder(config.sequence, shape.block_width)
        widths = [shape.block_width * len(blocks) for blocks in groups.values()] + [self.sequence.width]
        self.group_hidden = nn.ModuleList(Dense(width, config.group_hidden) for width in widths)
        self.group_out = nn.ModuleList(Dense(config.group_hidden, config.token_width) for _ in widths)
        self.mixer = TransformerLayer(config.token_width, num_heads=config.mixer_heads, hidden=config.mixer_hidden)
        self.experts = ExpertMlps(mixed_width, config.expert, num_experts=config.num_experts, dropout=config.dropout)
        head_width = expert_width + (mixed_width if config.residual else 0)
        self.gates = nn.ModuleList(
            LinearGate(mixed_width, shape.num_tasks * config.num_experts) for _ in range(shape.num_scenarios)
        )
        self.heads = ScenarioTowers(shape.num_scenarios, shape.num_tasks, head_width, ())
        if seed is not None:
            initialise(self, seed)

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns gates and heads."""
        return [self.gates, self.heads]

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        self.heads.start_at(task, prior)

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns all experts' outputs and m, side by side, [B, C]."""
        assert inputs.sequence is not None
        x_BD = inputs.x.whole()
        readout = self.sequence(inputs.sequence, inputs.noise)
        hidden = [
            layer(torch.cat([x_BD[:, columns] for columns in blocks], dim=1))
            for layer, blocks in zip(self.group_hidden, self._columns, strict=False)
        ]
        hidden.append(readout.linear(self.group_hidden[-1].weight, self.group_hidden[-1].bias))
        tokens = [layer(F.relu(hidden_Bh)) for layer, hidden_Bh in zip(self.group_out, hidden, strict=True)]
        m_BP = self.mixer(torch.stack(tokens, dim=1)).flatten(1)
        return torch.cat([self.experts(m_BP, inputs.noise).flatten(1), m_BP], dim=1)

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T], from what `representation` returned."""
        logits = [torch.empty(0, self.shape.num_tasks, dtype=c_BC.dtype, device=c_BC.device)]
        # Splitting at once instead of slicing: the gradient of each slice would be as large as all of C.
        parts = torch.split(c_BC, [stop - start for start, stop in pairwise(row_offsets)])
        for scenario, _, _ in scenario_slices(row_offsets):
            experts_BKe, m_BP = self._split(parts[scenario])
            u_TBe = (self._gate_weights(scenario, m_BP) @ experts_BKe).transpose(0, 1)
            if self._config.residual:
                u_TBe = torch.cat([u_TBe, m_BP.expand(len(u_TBe), -1, -1)], dim=2)
            logits.append(self.heads[scenario](u_TBe))
        return torch.cat(logits)

    def gate_usage(self, inputs: NetworkInputs) -> list[GateUsage]:
        """Returns the weights of each scenario's and task's gate."""
        c_BC = self.representation(inputs)
        return [
            usage
            for scenario, start, stop in scenario_slices(inputs.row_offsets)
            for usage in usage_of_tasks(
                "mmoe", scenario, self._gate_weights(scenario, self._split(c_BC[start:stop])[1])
            )
        ]

    def _gate_weights(self, scenario: int, m_BP: Tensor) -> Tensor:
        """Returns what a scenario's gates give to the experts, [B, T, K]."""
        gate_BN: Tensor = self.gates[scenario](RowInputs(m_BP))
        return gate_BN.view(len(m_BP), self.shape.num_tasks, self._config.num_experts).softmax(dim=2)

    def _split(self, c_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the experts' outputs, [B, K, e], and m, [B, P]."""
        num_experts, expert_width = self._config.num_experts, self._config.expert[-1]
        experts_width = num_experts * expert_width
        experts_BN, m_BP = torch.split(c_BC, [experts_width, c_BC.shape[1] - experts_width], dim=1)
        return experts_BN.view(len(c_BC), num_experts, expert_width), m_BP


def _groups(shape: NetworkShape) -> dict[str, list[str]]:
    """Returns the blocks of each group of like features."""
    check_has_history(shape)
    groups: dict[str, list[str]] = {}
    for block in shape.blocks:
        groups.setdefault(_GROUP_OF.get(block, block.partition(".")[0]), []).append(block)
    return groups
