"""HiNet: a hierarchical network for several scenarios and tasks (Zhou et al., ICDE 2023, arXiv 2303.06095).

    SEI    SEI(x) = sum_k g^k(x) Q^k(x),   g = softmax(W_g x + b_g),   Q^k(x) = relu(W2_k relu(W1_k x + b1_k) + b2_k)
    layer  G = SEI_shared(x),   S_m = SEI_m(x) for every scenario m
    SAN    a_i = softmax over m != i of (W_a Emb(i) + b_a)_m,   A_i = sum_m a_im S_m,   C_i = [G, S_i, A_i]
    CGC_i  g_ij = softmax(W_ij C_i + b_ij),   T_ij = g_ij . [experts of task j, shared experts](C_i)
    tower  z_ij = Tower_ij(T_ij)

Letters: B rows, D input width, M scenarios, T tasks, K sub-experts of an SEI, E experts of a bank, h hidden width,
d output width, C width of C_i, n experts a task sees.

Departures: gates have a zero-initialised bias; the SAN weights carry admission factors rho (all 1 unless a scenario is
being opened), which leaves the softmax over the other M-1 scenarios as published. A row runs its own scenario's heads
only. Experts are stored and computed per group (one SEI, one CGC), so that their shapes do not depend on M.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.experts import GatedExperts
from model.inputs import RowInputs
from model.network import Network, NetworkInputs, NetworkShape, scenario_slices
from model.seeding import Drawn, draw_uniform, initialise
from model.towers import Towers

SanMode = Literal["on", "none", "detach"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HiNetConfig:
    """Widths and counts. Published size: `HiNetConfig.published()`; the default is the preset `small`."""

    num_shared_experts: int = 2
    """Sub-experts of the shared SEI; at least 1."""
    num_scenario_experts: int = 2
    """Sub-experts of each scenario's SEI; at least 1."""
    expert_hidden: int = 128
    """Hidden width of a sub-expert; at least 1."""
    expert_width: int = 64
    """Output width of a sub-expert; at least 1."""
    scenario_embedding: int = 16
    """Width of the scenario embedding that the scenario-aware attention sees; at least 1."""
    num_task_experts: int = 1
    """Experts of each task in a scenario's CGC; at least 1."""
    num_shared_task_experts: int = 1
    """Experts shared by the tasks in a scenario's CGC; at least 1."""
    task_hidden: int = 128
    """Hidden width of a CGC expert; at least 1."""
    task_width: int = 64
    """Output width of a CGC expert; at least 1."""
    tower: tuple[int, ...] = (32,)
    """Hidden widths of a tower."""
    san: SanMode = "on"
    """Scenario-aware attention: `on`, `none` (C is [G, S_i]) or `detach` (no gradient to the other scenarios)."""
    growable: bool = True
    """With one scenario keep the attention's place in C (as zeros), so that a second one can be added."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{name}: {value} is not allowed; at least 1")
        if any(width < 1 for width in self.tower):
            raise ValueError(f"tower: {self.tower} is not allowed; each width at least 1")

    @classmethod
    def published(cls) -> "HiNetConfig":
        """Returns the published size: 5 sub-experts 128-64, embedding 64, CGC (2, 2) 128-64, towers 128-64."""
        return cls(
            num_shared_experts=5,
            num_scenario_experts=5,
            scenario_embedding=64,
            num_task_experts=2,
            num_shared_task_experts=2,
            tower=(128, 64),
        )


class SubExpertIntegration(nn.Module):
    """One SEI: K sub-experts mixed by a softmax gate on the same input, x -> [B, d]."""

    def __init__(self, num_experts: int, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.experts = GatedExperts(width, num_experts=num_experts, num_gates=num_experts, hidden=hidden, out=out)

    def forward(self, x: RowInputs) -> Tensor:
        """Returns the mixed features, [B, d]."""
        experts_KBd, gate_BK = self.experts(x)
        mixed_Bd: Tensor = (gate_BK.softmax(dim=1).t()[:, :, None] * experts_KBd).sum(dim=0)
        return mixed_Bd


class ScenarioAttention(Drawn):
    """SAN's weights of the other scenarios, by the row's scenario only.

    n_im = rho_im exp(z_im),   a_im = r_i n_im / sum_m n_im (0 where the sum is 0),   r_i = max_m rho_im

    With rho = 1 off the diagonal this is the published softmax over the M-1 others; M = 1 gives 0, M = 2 gives 1.
    """

    rho_MM: Tensor

    def __init__(self, num_scenarios: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num_scenarios, width))
        self.weight = nn.Parameter(torch.empty(num_scenarios, width))
        self.bias = nn.Parameter(torch.empty(num_scenarios))
        self.register_buffer("rho_MM", 1.0 - torch.eye(num_scenarios))

    def forward(self) -> Tensor:
        """Returns a_MM: row i holds scenario i's weights of the scenarios m; its diagonal is zero."""
        z_MM = F.linear(self.embedding, self.weight, self.bias)
        is_open_MM = self.rho_MM > 0
        top_M1 = torch.where(is_open_MM, z_MM, -torch.inf).amax(dim=1, keepdim=True).detach().nan_to_num(neginf=0.0)
        n_MM = self.rho_MM * torch.where(is_open_MM, z_MM - top_M1, 0.0).exp()
        sum_M1 = n_MM.sum(dim=1, keepdim=True)
        return self.rho_MM.amax(dim=1, keepdim=True) * n_MM / torch.where(sum_M1 > 0, sum_M1, 1.0)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws embedding and weights; the gate's bias is zero."""
        draw_uniform(self.embedding, 1, generator_of("embedding"))
        draw_uniform(self.weight, self.weight.shape[1], generator_of("weight"))
        self.bias.zero_()


class CustomizedGateControl(nn.Module):
    """One scenario's CGC: each task mixes its own and the shared experts by a gate on C_i, [B, C] -> [T, B, d]."""

    expert_index_Tn: Tensor

    def __init__(self, config: HiNetConfig, num_tasks: int, width: int) -> None:
        super().__init__()
        own, shared = config.num_task_experts, config.num_shared_task_experts
        self._num_seen = own + shared
        self.experts = GatedExperts(
            width,
            num_experts=num_tasks * own + shared,
            num_gates=num_tasks * self._num_seen,
            hidden=config.task_hidden,
            out=config.task_width,
        )
        own_index_Tn = torch.arange(num_tasks * own).view(num_tasks, own)
        shared_index_n = num_tasks * own + torch.arange(shared)
        index_Tn = torch.cat([own_index_Tn, shared_index_n.expand(num_tasks, shared)], dim=1)
        self.register_buffer("expert_index_Tn", index_Tn, persistent=False)

    def forward(self, c_BC: Tensor) -> Tensor:
        """Returns each task's mixed features, [T, B, d]."""
        experts_EBd, gate_BG = self.experts(RowInputs(c_BC))
        gate_BTn = gate_BG.view(len(c_BC), -1, self._num_seen).softmax(dim=2)
        seen_EBd = experts_EBd.index_select(0, self.expert_index_Tn.flatten())
        seen_TnBd = seen_EBd.view(-1, self._num_seen, *experts_EBd.shape[1:])
        mixed_TBd: Tensor = (gate_BTn.permute(1, 2, 0)[..., None] * seen_TnBd).sum(dim=1)
        return mixed_TBd


class HiNet(Network):
    """The whole network.

    >>> shape = NetworkShape(blocks=("user_id", "item_id"), block_width=4, num_scenarios=2, tasks=("click", "order"))
    >>> net = HiNet(HiNetConfig(), shape, seed=0)
    >>> net(NetworkInputs(x=RowInputs(torch.ones(5, 8)), row_offsets=[0, 4, 5])).shape
    torch.Size([5, 2])
    """

    def __init__(self, config: HiNetConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        hidden, out, num_scenarios = config.expert_hidden, config.expert_width, shape.num_scenarios
        has_attention = config.san != "none" and (num_scenarios > 1 or config.growable)
        c_width = (3 if has_attention else 2) * out
        super().__init__(shape, representation_width=c_width)
        self._config = config
        self.shared = SubExpertIntegration(config.num_shared_experts, shape.width, hidden, out)
        self.scenarios = nn.ModuleList(
            SubExpertIntegration(config.num_scenario_experts, shape.width, hidden, out) for _ in range(num_scenarios)
        )
        self.attention = ScenarioAttention(num_scenarios, config.scenario_embedding) if has_attention else None
        self.gates = nn.ModuleList(
            CustomizedGateControl(config, shape.num_tasks, c_width) for _ in range(num_scenarios)
        )
        self.towers = nn.ModuleList(
            Towers(shape.num_tasks, config.task_width, config.tower) for _ in range(num_scenarios)
        )
        if seed is not None:
            initialise(self, seed)

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns SEIs, CGCs and towers."""
        return [self.scenarios, self.gates, self.towers]

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        for tower in self.towers:
            assert isinstance(tower, Towers)
            tower.start_at(task, prior)

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T], from what `representation` returned."""
        logits = [torch.empty(0, self.shape.num_tasks, dtype=c_BC.dtype, device=c_BC.device)]
        for scenario, start, stop in scenario_slices(row_offsets):
            logits.append(self.towers[scenario](self.gates[scenario](c_BC[start:stop])))
        return torch.cat(logits)

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns C of each row's own scenario, [B, C]: shared, own, and the attention's mix of the others."""
        x, row_offsets = inputs.x, inputs.row_offsets
        features = [scenario(x) for scenario in self.scenarios]
        bounds = list(zip(row_offsets, row_offsets[1:], strict=False))
        own_Bd = torch.cat(
            [features_Bd[start:stop] for features_Bd, (start, stop) in zip(features, bounds, strict=True)]
        )
        parts = [self.shared(x), own_Bd]
        if self.attention is not None:
            parts.append(self._mix_of_others(features, bounds))
        return torch.cat(parts, dim=1)

    def _mix_of_others(self, features: list[Tensor], bounds: list[tuple[int, int]]) -> Tensor:
        assert self.attention is not None
        if self._config.san == "detach":
            features = [features_Bd.detach() for features_Bd in features]
        rows_M = torch.tensor([stop - start for start, stop in bounds], device=features[0].device)
        a_BM = self.attention().repeat_interleave(rows_M, dim=0)
        mixed_Bd = torch.zeros_like(features[0])
        for m, features_Bd in enumerate(features):
            mixed_Bd = torch.addcmul(mixed_Bd, a_BM[:, m, None], features_Bd)
        return mixed_Bd
