"""HMoE: scenarios answer together, each learning from its own rows (Li et al., CIKM 2020, Eq. 4-7).

    S_i  = sigmoid(s_i),   s_i = tower_i(sum_k g_i,k E_k(x)),   g_i = softmax over k of a gate with one hidden layer
    w    = softmax over the M scenarios of v(x), one hidden layer
    H_t  = w_t S_t + sum_{j != t} w_j stopgrad(S_j)                       for a row of scenario t

with gates, towers and w of their own per task. The output is the exact logit of H_t, in value and gradient:

    logit = logsumexp_j(v_j + log sigmoid(s_j)) - logsumexp_j(v_j + log sigmoid(-s_j)),   s_j detached for j != t

(the normaliser of w is the same in both and drops out).

All towers run on all rows; the foreign ones without gradient. The representation holds what the own tower still needs,
its experts and gates, and what the foreign scenarios answered, so that its width does not depend on M.

Letters: B rows, D input width, M scenarios, T tasks, K experts, h hidden width of a gate, d expert width, C width of
the representation, N flat gate logits.

Departures: gates have a zero-initialised output bias. Another scenario's answer enters by w_j times an admission factor
rho_tj: 1 as published, and 0 for one that was added, until it is opened (`foreign_admission`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.expert_mixture import ExpertMixture
from model.experts import GatedExperts
from model.gate_usage import GateUsage, usage_of_tasks
from model.inputs import RowInputs
from model.network import Network, NetworkInputs, NetworkShape, of_each_row, scenario_slices
from model.network_config import check_counts
from model.scenario_admission import foreign_admission
from model.scenario_towers import ScenarioTowers
from model.seeding import Drawn, draw_uniform, initialise


@dataclass(frozen=True, slots=True, kw_only=True)
class HMoEConfig:
    """Widths and counts. The default has 0.70 M parameters at D = 320, 3 scenarios, 2 tasks."""

    num_experts: int = 8
    """Experts, shared by all scenarios and tasks; at least 1."""
    expert_hidden: int = 192
    """Hidden width of an expert; at least 1."""
    expert_width: int = 64
    """Output width of an expert; at least 1."""
    gate_hidden: int = 32
    """Hidden width of a task's gate over the experts, and of its gate over the scenarios; at least 1."""
    tower: tuple[int, ...] = (64,)
    """Hidden widths of a tower."""

    def __post_init__(self) -> None:
        check_counts(self)


class TaskHidden(Drawn):
    """The hidden layer of each task's gate, x -> [T, B, h]."""

    def __init__(self, num_tasks: int, width: int, hidden: int) -> None:
        super().__init__()
        self._num_tasks, self._hidden = num_tasks, hidden
        self.weight = nn.Parameter(torch.empty(num_tasks * hidden, width))
        self.bias = nn.Parameter(torch.empty(num_tasks * hidden))

    def forward(self, x: RowInputs) -> Tensor:
        """Returns the hidden units, [T, B, h]."""
        hidden_BN = F.relu(x.linear(self.weight, self.bias))
        return hidden_BN.view(x.num_rows, self._num_tasks, self._hidden).transpose(0, 1)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the layers."""
        for name in ("weight", "bias"):
            draw_uniform(getattr(self, name), self.weight.shape[1], generator_of(name))


class TaskLogits(Drawn):
    """The output layer of each task's gate, [T, B, h] -> [B, T, K]."""

    def __init__(self, num_tasks: int, hidden: int, num_logits: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tasks, hidden, num_logits))
        self.bias = nn.Parameter(torch.empty(num_tasks, 1, num_logits))

    def forward(self, hidden_TBh: Tensor) -> Tensor:
        """Returns the gate logits, [B, T, K]."""
        return torch.baddbmm(self.bias, hidden_TBh, self.weight).transpose(0, 1)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the weight; the bias is zero."""
        draw_uniform(self.weight, self.weight.shape[1], generator_of("weight"))
        self.bias.zero_()


class HMoE(Network):
    """The whole network.

    Its representation is `ExpertMixture`'s with the own gate's logits, then per task v of the own scenario and the
    foreign answers: log of sum_{j != t} exp(v_j) S_j and the same of 1 - S_j, both 0 where no foreign scenario is open.

    >>> shape = NetworkShape(blocks=("user_id", "item_id"), block_width=4, num_scenarios=2, tasks=("click", "order"))
    >>> net = HMoE(HMoEConfig(), shape, seed=0)
    >>> net(NetworkInputs(x=RowInputs(torch.ones(5, 8)), row_offsets=[0, 4, 5])).shape
    torch.Size([5, 2])
    """

    share_M: Tensor
    donor_M: Tensor
    rho_MM: Tensor

    def __init__(self, config: HMoEConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        num_scenarios, num_tasks, hidden = shape.num_scenarios, shape.num_tasks, config.gate_hidden
        mixture = ExpertMixture(config.num_experts, num_tasks, config.expert_width)
        super().__init__(shape, representation_width=mixture.width + 3 * num_tasks)
        self._mixture = mixture
        self.experts = GatedExperts(
            shape.width,
            num_experts=config.num_experts,
            num_gates=0,
            hidden=config.expert_hidden,
            out=config.expert_width,
        )
        self.gates = nn.ModuleList(
            nn.Sequential(TaskHidden(num_tasks, shape.width, hidden), TaskLogits(num_tasks, hidden, config.num_experts))
            for _ in range(num_scenarios)
        )
        self.towers = ScenarioTowers(num_scenarios, num_tasks, config.expert_width, config.tower)
        self.scenario_hidden = TaskHidden(num_tasks, shape.width, hidden)
        self.scenario_logits = nn.ModuleList(TaskLogits(num_tasks, hidden, 1) for _ in range(num_scenarios))
        self.register_buffer("share_M", torch.ones(num_scenarios))
        self.register_buffer("donor_M", torch.full((num_scenarios,), -1))
        self.register_buffer("rho_MM", foreign_admission(self.share_M, self.donor_M))
        if seed is not None:
            initialise(self, seed)

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns experts, own gate logits, own v and the foreign scenarios' answers, [B, C]."""
        x, row_offsets = inputs.x, inputs.row_offsets
        experts_KBd, no_gates_BN = self.experts(x)
        gates = [no_gates_BN.new_empty(0, self._mixture.num_gates * self._mixture.num_experts)]
        rows_M = x.split(row_offsets)
        for scenario, _, _ in scenario_slices(row_offsets):
            gates.append(self.gates[scenario](rows_M[scenario]).flatten(1))
        v = self._scenario_logits(x)
        own_v = [v_BT[start:stop] for v_BT, (start, stop) in zip(v, pairwise(row_offsets), strict=True)]
        foreign_BM = of_each_row(self.rho_MM, row_offsets)
        scores = self._foreign_scores(x, experts_KBd)
        is_BT, is_not_BT = (
            _log_mass([v_BT + F.logsigmoid(sign * s_BT) for v_BT, s_BT in zip(v, scores, strict=True)], foreign_BM)
            for sign in (1, -1)
        )
        c_BC = self._mixture.join(experts_KBd, torch.cat(gates))
        return torch.cat([c_BC, torch.cat(own_v), is_BT, is_not_BT], dim=1)

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T]."""
        s_BT: Tensor = self.towers(self._mixture.mix(c_BC), row_offsets)
        v_BT, is_BT, is_not_BT = torch.split(c_BC[:, self._mixture.width :], self.shape.num_tasks, dim=1)
        with_foreign_BT = torch.logaddexp(v_BT + F.logsigmoid(s_BT), is_BT) - torch.logaddexp(
            v_BT + F.logsigmoid(-s_BT), is_not_BT
        )
        is_open_B1 = (of_each_row(self.rho_MM, row_offsets) > 0).any(dim=1, keepdim=True)
        return torch.where(is_open_B1, with_foreign_BT, s_BT)

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        self.towers.start_at(task, prior)

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns gates, towers and the columns of v."""
        return [self.gates, self.towers, self.scenario_logits]

    def add_scenario(self, donor: int) -> int:
        """Adds a scenario that starts as a copy of `donor`. Others do not ask it before it is opened.

        Its own rows ask whom the donor's ask, itself in the donor's place.
        """
        self.share_M = torch.cat([self.share_M, self.share_M.new_zeros(1)])
        self.donor_M = torch.cat([self.donor_M, self.donor_M.new_tensor([donor])])
        self.rho_MM = foreign_admission(self.share_M, self.donor_M)
        return super().add_scenario(donor)

    def open_scenario(self, index: int, share: float) -> None:
        """Lets the others ask a scenario, and it ask its donor, by `share`, from 0 to 1."""
        self.share_M[index] = share
        self.rho_MM = foreign_admission(self.share_M, self.donor_M)

    def gate_usage(self, inputs: NetworkInputs) -> list[GateUsage]:
        """Returns the weights of `experts` and, as w, of `scenarios`, each per task."""
        expert_BTK = self._mixture.gate_weights(self.representation(inputs))
        v_BTM = torch.stack(self._scenario_logits(inputs.x), dim=2)
        asked_MM = self.rho_MM + torch.eye(self.num_scenarios).to(self.rho_MM)
        usage: list[GateUsage] = []
        for scenario, start, stop in scenario_slices(inputs.row_offsets):
            scenario_BTM = (v_BTM[start:stop] + asked_MM[scenario].log()).softmax(dim=2)
            usage += usage_of_tasks("experts", scenario, expert_BTK[start:stop])
            usage += usage_of_tasks("scenarios", scenario, scenario_BTM)
        return usage

    def _scenario_logits(self, x: RowInputs) -> list[Tensor]:
        """Returns v of each scenario, M x [B, T]."""
        hidden_TBh = self.scenario_hidden(x)
        return [column(hidden_TBh).squeeze(2) for column in self.scenario_logits]

    @torch.no_grad()
    def _foreign_scores(self, x: RowInputs, experts_KBd: Tensor) -> list[Tensor]:
        """Returns s of each scenario on all rows, M x [B, T], without gradient."""
        scores = []
        for gate, towers in zip(self.gates, self.towers, strict=True):
            mixed_BTd = torch.bmm(gate(x).softmax(dim=2), experts_KBd.transpose(0, 1))
            scores.append(towers(mixed_BTd.transpose(0, 1)))
        return scores


def _log_mass(terms: list[Tensor], rho_BM: Tensor) -> Tensor:
    """Returns log sum_m rho_m exp(term_m), [B, T], and 0 for rows without an open m.

    Scenarios enter one after another, so that one more with rho 0 changes no bit.
    """
    is_open_BM = rho_BM > 0
    with torch.no_grad():
        open_terms = [torch.where(is_open_BM[:, m, None], term_BT, -torch.inf) for m, term_BT in enumerate(terms)]
        top_BT = torch.stack(open_terms).amax(dim=0).nan_to_num(neginf=0.0)
    mass_BT = torch.zeros_like(top_BT)
    for m, term_BT in enumerate(terms):
        power_BT = torch.where(is_open_BM[:, m, None], term_BT - top_BT, 0.0).exp()
        mass_BT = torch.addcmul(mass_BT, rho_BM[:, m, None], power_BT)
    is_any_B1 = is_open_BM.any(dim=1, keepdim=True)
    return torch.where(is_any_B1, top_BT + torch.where(is_any_B1, mass_BT, 1.0).log(), 0.0)
