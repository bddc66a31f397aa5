"""CGC and PLE: experts of each head's own beside shared ones, in levels (Tang et al., RecSys 2020, Eq. 2-10).

A head k is a (scenario, task). With u^{k,0} = u^{s,0} = x and at level l = 1..L

    u^{k,l} = softmax(W^{k,l} u^{k,l-1}) . [E_k^{l,1..m_k}(u^{k,l-1}), E_s^{l,1..m_s}(u^{s,l-1})]
    u^{s,l} = softmax(W^{s,l} u^{s,l-1}) . [E_s^{l,1..m_s}(u^{s,l-1}), all heads' experts of level l, each on its own u]
    z_k     = tower_k(u^{k,L})

where the last level has no u^{s,L}. One level is CGC.

Below the last level a row runs the experts of all scenarios, which the shared gate mixes; of gates only those whose
output reaches the row's own heads, and of the last level and the towers its own scenario's only.

Letters: B rows, D input width, M scenarios, T tasks, m_k experts of a head, m_s shared experts, n = m_k + m_s experts a
head sees, E = T m_k + m_s experts a scenario sees, e expert width, K experts of a gate, N flat gate logits.

Departures: gates have a zero-initialised bias. In the shared gate the experts of scenario m weigh by an admission
factor rho_m: 1 as published, and 0 for a scenario that was added, until it is opened.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.gate_usage import GateUsage
from model.inputs import RowInputs
from model.network import Network, NetworkInputs, NetworkShape, scenario_slices
from model.ple_levels import Level, PLEConfig
from model.scenario_towers import ScenarioTowers
from model.seeding import initialise
from model.weighted_sum import weighted_sum


class PLE(Network):
    """The whole network. Its representation: the last level's experts and gate logits of the row's own scenario, flat.

    >>> shape = NetworkShape(blocks=("user_id", "item_id"), block_width=4, num_scenarios=2, tasks=("click", "order"))
    >>> net = PLE(PLEConfig(), shape, seed=0)
    >>> net(NetworkInputs(x=RowInputs(torch.ones(5, 8)), row_offsets=[0, 4, 5])).shape
    torch.Size([5, 2])
    """

    rho_M: Tensor

    def __init__(self, config: PLEConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        self._num_experts = shape.num_tasks * config.num_task_experts + config.num_shared_experts
        self._num_seen = config.num_task_experts + config.num_shared_experts
        num_out = self._num_experts * config.expert_width + shape.num_tasks * self._num_seen
        super().__init__(shape, representation_width=num_out)
        self._config = config
        self.levels = nn.ModuleList(Level(config, shape, index) for index in range(config.levels))
        self.towers = ScenarioTowers(shape.num_scenarios, shape.num_tasks, config.expert_width, config.tower)
        self.register_buffer("rho_M", torch.ones(shape.num_scenarios))
        if seed is not None:
            initialise(self, seed)

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns the last level's experts' outputs and gate logits of the row's own scenario, [B, C]."""
        return self._run(inputs)

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T]."""
        num_tasks, out = self.shape.num_tasks, self._config.expert_width
        experts_BEe = c_BC[:, : self._num_experts * out].view(len(c_BC), self._num_experts, out)
        weight_BTn = self._own_weights(c_BC[:, self._num_experts * out :])
        num_own = num_tasks * self._config.num_task_experts
        mixed_BTe = _mix(weight_BTn, experts_BEe[:, :num_own], experts_BEe[:, num_own:])
        logits_BT: Tensor = self.towers(mixed_BTe.transpose(0, 1), row_offsets)
        return logits_BT

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        self.towers.start_at(task, prior)

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns each level's experts and gates, what the shared gates have for them, and the towers."""
        levels = self._levels()
        gated = [level.shared.gates for level in levels[:-1]]
        return [*(level.scenarios for level in levels), *gated, self.towers]

    def add_scenario(self, donor: int) -> int:
        """Adds a scenario that starts as a copy of `donor`. Shared gates give its experts nothing before it is opened.

        Its heads see their own experts from the start.
        """
        self.rho_M = torch.cat([self.rho_M, self.rho_M.new_zeros(1)])
        return super().add_scenario(donor)

    def open_scenario(self, index: int, share: float) -> None:
        """Admits a scenario's experts to the shared gates by `share`, from 0 to 1."""
        self.rho_M[index] = share

    def gate_usage(self, inputs: NetworkInputs) -> list[GateUsage]:
        """Returns the weights of `level<l>` per task (own experts, then shared) and of `level<l>.shared` (task None).

        The shared gate's experts are the shared ones, then every head's, scenario by scenario and task by task.
        """
        usage: list[GateUsage] = []
        c_BC = self._run(inputs, usage)
        gate_BN = c_BC[:, self._num_experts * self._config.expert_width :]
        for scenario, start, stop in scenario_slices(inputs.row_offsets):
            usage += self._usage(len(self.levels), scenario, gate_BN[start:stop])
        return usage

    def _usage(self, level: int, scenario: int, gate_BN: Tensor) -> list[GateUsage]:
        weight_BTn = self._own_weights(gate_BN)
        num_shared = self._config.num_shared_experts
        shared = [f"shared.{k}" for k in range(num_shared)]
        usage = []
        for index, task in enumerate(self.shape.tasks):
            experts = (*(f"{scenario}.{task}.{k}" for k in range(self._num_seen - num_shared)), *shared)
            weight_Bn = weight_BTn[:, index]
            usage.append(
                GateUsage(gate=f"level{level}", scenario=scenario, task=index, weight_BK=weight_Bn, experts=experts)
            )
        return usage

    def _levels(self) -> list[Level]:
        return [level for level in self.levels if isinstance(level, Level)]

    def _own_weights(self, gate_BN: Tensor) -> Tensor:
        return gate_BN.view(len(gate_BN), self.shape.num_tasks, self._num_seen).softmax(dim=2)

    def _run(self, inputs: NetworkInputs, usage: list[GateUsage] | None = None) -> Tensor:
        """Returns the representation; appends to `usage` what the gates below the last level gave."""
        x, row_offsets = inputs.x, inputs.row_offsets
        all_M = [[x]] * self.num_scenarios  # what each scenario's banks see: of all rows, and of its own
        own_M = [[rows] for rows in x.split(row_offsets)]
        shared = x
        *below, last = self._levels()
        for index, level in enumerate(below, start=1):
            experts_M = [scenario.run_experts(banks) for scenario, banks in zip(level.heads(), all_M, strict=True)]
            shared_sBe, shared_gate_Bs = level.shared.experts(shared)
            weights = level.shared.weights(shared, shared_gate_Bs, self.rho_M)
            is_routed = index == len(below)
            heads_M: list[list[RowInputs]] = [[]] * self.num_scenarios
            for m, scenario in enumerate(level.heads()):
                own = slice(row_offsets[m], row_offsets[m + 1])
                if is_routed and own.start == own.stop:
                    continue
                rows = own if is_routed else slice(None)
                gate_BN = scenario.run_gates(own_M[m] if is_routed else all_M[m])
                experts_BEe, shared_Bse = (one[:, rows].transpose(0, 1) for one in (experts_M[m], shared_sBe))
                mixed_BTe = _mix(self._own_weights(gate_BN), experts_BEe, shared_Bse)
                heads_M[m] = [RowInputs(u_Be) for u_Be in mixed_BTe.unbind(1)]
                if usage is not None and own.start < own.stop:
                    usage += self._usage(index, m, gate_BN if is_routed else gate_BN[own])
                    weight_BK = torch.cat([weight_Bk[own] for weight_Bk in weights], dim=1)
                    usage.append(GateUsage(gate=f"level{index}.shared", scenario=m, task=None, weight_BK=weight_BK))
            if is_routed:
                own_M = heads_M
            else:
                all_M, own_M = heads_M, [[u.split(row_offsets)[m] for u in banks] for m, banks in enumerate(heads_M)]
            shared = RowInputs(sum(map(weighted_sum, weights[1:], experts_M), weighted_sum(weights[0], shared_sBe)))
        heads, (shared_sBe, _) = last.heads(), last.shared.experts(shared)
        parts = [shared_sBe.new_empty(0, self.representation_width)]
        for m, start, stop in scenario_slices(row_offsets):
            experts_EBe = torch.cat([heads[m].run_experts(own_M[m]), shared_sBe[:, start:stop]])
            gate_BN = heads[m].run_gates(own_M[m])
            parts.append(torch.cat([experts_EBe.transpose(0, 1).flatten(1), gate_BN], dim=1))
        return torch.cat(parts)


def _mix(weight_BTn: Tensor, own_BEe: Tensor, shared_Bse: Tensor) -> Tensor:
    """Returns each task's mix of its own and the shared experts, [B, T, e]."""
    num_rows, num_tasks, _ = weight_BTn.shape
    num_own = own_BEe.shape[1] // num_tasks
    own_BTke = own_BEe.view(num_rows, num_tasks, num_own, own_BEe.shape[2])
    own_BTe = (weight_BTn[:, :, :num_own, None] * own_BTke).sum(dim=2)
    return own_BTe + torch.bmm(weight_BTn[:, :, num_own:], shared_Bse)
