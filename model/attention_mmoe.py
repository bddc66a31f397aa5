"""Attention-based MMoE: each task weighs the shared experts by attention, its query a learnt vector of its own.

    u_k = tanh(W_key E_k(x) + b_key),   a_ij,k = softmax over k of u_k . c_ij / sqrt(d_a),   f_ij = sum_k a_ij,k E_k(x)

The query c_ij (a randomly initialised, trainable context vector) does not depend on x; the weights do, through the
keys. At the start they vary much less from row to row than those of a linear gate: flat weights are no collapse.

Only a verbal description of the model was published (context vectors as queries); these equations are our reading of
it. W_key is shared by all heads, c_ij starts as N(0, 1/d_a). A row runs its own scenario's heads only.

Letters: B rows, D input width, T tasks, K experts, d expert width, a = d_a key width, C width of the representation, N
flat gate logits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.expert_mixture import ExpertMixture
from model.experts import GatedExperts
from model.gate_usage import GateUsage, usage_of_tasks
from model.network import Network, NetworkInputs, NetworkShape, scenario_slices
from model.network_config import check_counts
from model.scenario_towers import ScenarioTowers
from model.seeding import Drawn, draw_uniform, initialise


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMMoEConfig:
    """Widths and counts. The default has 0.69 M parameters at D = 320, 3 scenarios, 2 tasks."""

    num_experts: int = 8
    """Experts, shared by all scenarios and tasks; at least 1."""
    expert_hidden: int = 192
    """Hidden width of an expert; at least 1."""
    expert_width: int = 64
    """Output width of an expert; at least 1."""
    key_width: int = 32
    """d_a, width of keys and queries; at least 1."""
    tower: tuple[int, ...] = (128, 64)
    """Hidden widths of a tower."""

    def __post_init__(self) -> None:
        check_counts(self)


class ExpertKeys(Drawn):
    """One key per expert's output, [K, B, d] -> [B, K, a]."""

    def __init__(self, width: int, key_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(key_width, width))
        self.bias = nn.Parameter(torch.empty(key_width))

    def forward(self, experts_KBd: Tensor) -> Tensor:
        """Returns the keys, [B, K, a]."""
        return F.linear(experts_KBd, self.weight, self.bias).tanh().transpose(0, 1)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the layer."""
        for name in ("weight", "bias"):
            draw_uniform(getattr(self, name), self.weight.shape[1], generator_of(name))


class TaskQueries(Drawn):
    """One scenario's queries: keys [B, K, a] -> gate logits [B, T K]."""

    def __init__(self, num_tasks: int, key_width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(num_tasks, key_width))

    def forward(self, keys_BKa: Tensor) -> Tensor:
        """Returns the gate logits, [B, T K]."""
        return F.linear(keys_BKa, self.query / math.sqrt(self.query.shape[1])).transpose(1, 2).flatten(1)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the queries, N(0, 1/d_a)."""
        self.query.normal_(0.0, self.query.shape[1] ** -0.5, generator=generator_of("query"))


class AttentionMMoE(Network):
    """The whole network; its representation is `ExpertMixture`'s.

    >>> from model.inputs import RowInputs
    >>> shape = NetworkShape(blocks=("user_id", "item_id"), block_width=4, num_scenarios=2, tasks=("click", "order"))
    >>> net = AttentionMMoE(AttentionMMoEConfig(), shape, seed=0)
    >>> net(NetworkInputs(x=RowInputs(torch.ones(5, 8)), row_offsets=[0, 4, 5])).shape
    torch.Size([5, 2])
    """

    def __init__(self, config: AttentionMMoEConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        mixture = ExpertMixture(config.num_experts, shape.num_tasks, config.expert_width)
        super().__init__(shape, representation_width=mixture.width)
        self._mixture = mixture
        self.experts = GatedExperts(
            shape.width,
            num_experts=config.num_experts,
            num_gates=0,
            hidden=config.expert_hidden,
            out=config.expert_width,
        )
        self.keys = ExpertKeys(config.expert_width, config.key_width)
        self.queries = nn.ModuleList(TaskQueries(shape.num_tasks, config.key_width) for _ in range(shape.num_scenarios))
        self.towers = ScenarioTowers(shape.num_scenarios, shape.num_tasks, config.expert_width, config.tower)
        if seed is not None:
            initialise(self, seed)

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns every expert's output and the row's own attention logits, [B, C]."""
        experts_KBd, no_gates_BN = self.experts(inputs.x)
        keys_BKa = self.keys(experts_KBd)
        gates = [no_gates_BN.new_empty(0, self._mixture.num_gates * self._mixture.num_experts)]
        for scenario, start, stop in scenario_slices(inputs.row_offsets):
            gates.append(self.queries[scenario](keys_BKa[start:stop]))
        return self._mixture.join(experts_KBd, torch.cat(gates))

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T]."""
        logits_BT: Tensor = self.towers(self._mixture.mix(c_BC), row_offsets)
        return logits_BT

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        self.towers.start_at(task, prior)

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns queries and towers."""
        return [self.queries, self.towers]

    def gate_usage(self, inputs: NetworkInputs) -> list[GateUsage]:
        """Returns the weights of `experts`, per task."""
        weight_BTK = self._mixture.gate_weights(self.representation(inputs))
        return [
            usage
            for scenario, start, stop in scenario_slices(inputs.row_offsets)
            for usage in usage_of_tasks("experts", scenario, weight_BTK[start:stop])
        ]
