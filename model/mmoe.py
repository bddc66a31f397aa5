"""MMoE: shared experts, a gate per scenario and task (Ma, Zhao et al., KDD 2018, Eq. 6-8).

    g_ij = softmax(W_ij x + b_ij),   f_ij = sum_k g_ij,k E_k(x),   z_ij = tower_ij(f_ij)

OMoE, the paper's one-gate form, has a single g for all scenarios and tasks.

Letters: B rows, D input width, T tasks, K experts, G gates of a row (T, or 1 for OMoE), d expert width, C width of the
representation, N flat gate logits.

Departures: a head is a (scenario, task), and a row runs its own scenario's gates and towers only; gates have a
zero-initialised bias; experts have two layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from model.expert_mixture import ExpertMixture
from model.experts import GatedExperts
from model.gate_usage import GateUsage
from model.linear_gates import ScenarioGates
from model.network import Network, NetworkInputs, NetworkShape, scenario_slices
from model.network_config import check_counts
from model.scenario_towers import ScenarioTowers
from model.seeding import initialise


@dataclass(frozen=True, slots=True, kw_only=True)
class MMoEConfig:
    """Widths and counts. The default has 0.71 M parameters at D = 320, 3 scenarios, 2 tasks."""

    num_experts: int = 8
    """Experts, shared by all scenarios and tasks; at least 1."""
    expert_hidden: int = 192
    """Hidden width of an expert; at least 1."""
    expert_width: int = 64
    """Output width of an expert; at least 1."""
    tower: tuple[int, ...] = (128, 64)
    """Hidden widths of a tower."""
    one_gate: bool = False
    """OMoE: one gate for all scenarios and tasks."""

    def __post_init__(self) -> None:
        check_counts(self)


class MMoE(Network):
    """The whole network; its representation is `ExpertMixture`'s.

    >>> import torch
    >>> from model.inputs import RowInputs
    >>> shape = NetworkShape(blocks=("user_id", "item_id"), block_width=4, num_scenarios=2, tasks=("click", "order"))
    >>> net = MMoE(MMoEConfig(), shape, seed=0)
    >>> net(NetworkInputs(x=RowInputs(torch.ones(5, 8)), row_offsets=[0, 4, 5])).shape
    torch.Size([5, 2])
    """

    def __init__(self, config: MMoEConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        num_experts, num_tasks = config.num_experts, shape.num_tasks
        mixture = ExpertMixture(num_experts, 1 if config.one_gate else num_tasks, config.expert_width)
        super().__init__(shape, representation_width=mixture.width)
        self._mixture = mixture
        self.experts = GatedExperts(
            shape.width,
            num_experts=num_experts,
            num_gates=num_experts if config.one_gate else 0,
            hidden=config.expert_hidden,
            out=config.expert_width,
        )
        self.gates = (
            None if config.one_gate else ScenarioGates(shape.num_scenarios, shape.width, num_tasks * num_experts)
        )
        self.towers = ScenarioTowers(shape.num_scenarios, num_tasks, config.expert_width, config.tower)
        if seed is not None:
            initialise(self, seed)

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns every expert's output and the row's own gate logits, [B, C]."""
        experts_KBd, gate_BN = self.experts(inputs.x)
        if self.gates is not None:
            gate_BN = self.gates(inputs.x, inputs.row_offsets)
        return self._mixture.join(experts_KBd, gate_BN)

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T]."""
        features_TBd = self._mixture.mix(c_BC).expand(self.shape.num_tasks, -1, -1)
        logits_BT: Tensor = self.towers(features_TBd, row_offsets)
        return logits_BT

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        self.towers.start_at(task, prior)

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns gates (OMoE has none of a scenario's own) and towers."""
        return [self.towers] if self.gates is None else [self.gates, self.towers]

    def gate_usage(self, inputs: NetworkInputs) -> list[GateUsage]:
        """Returns the weights of `experts`: per task, or OMoE's one gate with task None."""
        weight_BGK = self._mixture.gate_weights(self.representation(inputs))
        return [
            GateUsage(
                gate="experts",
                scenario=scenario,
                task=None if self.gates is None else gate,
                weight_BK=weight_BGK[start:stop, gate],
            )
            for scenario, start, stop in scenario_slices(inputs.row_offsets)
            for gate in range(weight_BGK.shape[1])
        ]
