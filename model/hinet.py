"""HiNet: a hierarchical network for several scenarios and tasks (Zhou et al., ICDE 2023, arXiv 2303.06095).

    layer  G = SEI_shared(x),   S_m = SEI_m(x) for every scenario m                      model.sei
    SAN    a_i = softmax over m != i of (W_a Emb(i) + b_a)_m,   A_i = sum_m a_im S_m     model.scenario_attention
           C_i = [G, S_i, A_i]
    CGC_i  T_ij = gate of task j on C_i . [experts of task j, shared experts](C_i)       model.cgc
    tower  z_ij = Tower_ij(T_ij)

Letters: B rows, D input width, M scenarios, T tasks, C width of C_i, K experts of a gate.

Departures: gates have a zero-initialised bias. A row runs its own scenario's heads only. Experts are stored and
computed per group (one SEI, one CGC), so that their shapes do not depend on M. Every other form of the network, the
released code's among them, is a switch of the configuration (`docs/hinet.md`).
"""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from model.cgc import CustomizedGateControl
from model.experts import GatedExperts
from model.gate_usage import GateUsage
from model.hinet_config import HiNetConfig
from model.inputs import RowInputs
from model.network import Network, NetworkInputs, NetworkShape, of_each_row, scenario_slices
from model.scenario_attention import ScenarioAttention
from model.scenario_towers import ScenarioTowers
from model.seeding import Drawn, initialise
from model.sei import SubExpertIntegration


class InputAffine(Drawn):
    """x -> scale * x + shift, column by column."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))
        self.shift = nn.Parameter(torch.empty(width))

    def forward(self, x: RowInputs) -> RowInputs:
        """Returns whole rows."""
        return RowInputs(torch.addcmul(self.shift, self.scale, x.whole()))

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws nothing: it starts as the identity."""
        self.scale.fill_(1.0)
        self.shift.zero_()


class HiNet(Network):
    """The whole network.

    >>> shape = NetworkShape(blocks=("user_id", "item_id"), block_width=4, num_scenarios=2, tasks=("click", "order"))
    >>> net = HiNet(HiNetConfig(), shape, seed=0)
    >>> net(NetworkInputs(x=RowInputs(torch.ones(5, 8)), row_offsets=[0, 4, 5])).shape
    torch.Size([5, 2])
    """

    def __init__(self, config: HiNetConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        has_attention = config.san != "none" and (shape.num_scenarios > 1 or config.growable)
        c_width = (3 if has_attention else 2) * config.expert_width if config.hierarchy else shape.width
        super().__init__(shape, representation_width=c_width)
        self.config = config
        self.scores_as_it_learns = config.sei_dropout == 0.0
        self.learns_foreign_heads = config.loss_rows == "all"
        self._seed = seed
        each = range(shape.num_scenarios)
        self.affine = InputAffine(shape.width) if config.input_affine else None
        self.shared = self._sei(config.num_shared_experts) if config.hierarchy else None
        self.scenarios = nn.ModuleList(self._sei(config.num_scenario_experts) for _ in each if config.hierarchy)
        self.attention = self._attention() if has_attention else None
        self.gates = nn.ModuleList(self._cgc() for _ in each)
        self.shared_task_experts = self._shared_task_experts() if config.task_layer == "global" else None
        self.towers = ScenarioTowers(shape.num_scenarios, shape.num_tasks, config.task_width, config.tower)
        if config.san_softmax != "others":
            self.cannot_grow = f"san_softmax: {config.san_softmax} is not allowed where scenarios are added; others"
        elif self.attention is None and config.san != "none":
            self.cannot_grow = "growable: False is not allowed where scenarios are added to one; True"
        if seed is not None:
            initialise(self, seed)

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns C of each row's own scenario, [B, C]: shared, own, and the attention's mix of the others."""
        x, row_offsets = self.features(inputs), inputs.row_offsets
        if self.shared is None:
            return x.whole()
        features = [scenario(x, inputs.noise) for scenario in self.scenarios]
        bounds = pairwise(row_offsets)
        own_Bd = torch.cat(
            [features_Bd[start:stop] for features_Bd, (start, stop) in zip(features, bounds, strict=True)]
        )
        parts = [self.shared(x, inputs.noise), own_Bd]
        if self.attention is not None:
            parts.append(self._mix_of_others(features, row_offsets))
        return torch.cat(parts if self.config.concat_order == "gsa" else parts[::-1], dim=1)

    def features(self, inputs: NetworkInputs) -> RowInputs:
        """Returns x as the SEIs see it."""
        return inputs.x if self.affine is None else self.affine(inputs.x)

    def _mix_of_others(self, features: list[Tensor], row_offsets: Sequence[int]) -> Tensor:
        assert self.attention is not None
        if self.config.san == "detach":
            features = [features_Bd.detach() for features_Bd in features]
        a_BM = of_each_row(self.attention(), row_offsets)
        mixed_Bd = torch.zeros_like(features[0])
        for m, features_Bd in enumerate(features):  # in order of m: a scenario added later adds its exact zeros last
            mixed_Bd = torch.addcmul(mixed_Bd, a_BM[:, m, None], features_Bd)
        return mixed_Bd

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T], from what `representation` returned."""
        logits = [torch.empty(0, self.shape.num_tasks, dtype=c_BC.dtype, device=c_BC.device)]
        logits += [self._heads(i, c_BC[start:stop]) for i, start, stop in scenario_slices(row_offsets)]
        return torch.cat(logits)

    def all_head_logits(self, c_BC: Tensor) -> Tensor:
        """Returns what every scenario's heads make of the rows' own C, [B, M, T]."""
        return torch.stack([self._heads(m, c_BC) for m in range(self.num_scenarios)], dim=1)

    def _heads(self, scenario: int, c_BC: Tensor) -> Tensor:
        logits_BT: Tensor = self.towers[scenario](self.gates[scenario](c_BC, self.shared_task_experts))
        return logits_BT

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        self.towers.start_at(task, prior)

    def gate_usage(self, inputs: NetworkInputs) -> list[GateUsage]:
        """Returns the weights of the SEIs (`sei.shared`, `sei.own`), the attention (`san`) and the CGCs (`cgc`)."""
        x, c_BC = self.features(inputs), self.representation(inputs)
        a_MM = None if self.attention is None else self.attention()
        usage = []
        for i, start, stop in scenario_slices(inputs.row_offsets):
            if self.shared is not None:
                weight_BK, own = self.shared.gate_weights(x)[start:stop], self.scenarios[i]
                usage.append(GateUsage(gate="sei.shared", scenario=i, task=None, weight_BK=weight_BK))
                assert isinstance(own, SubExpertIntegration)
                weight_BK = own.gate_weights(x)[start:stop]
                usage.append(GateUsage(gate="sei.own", scenario=i, task=None, weight_BK=weight_BK, bank=i))
            if a_MM is not None and a_MM[i].sum() > 0:
                weight_BM = (a_MM[i] / a_MM[i].sum()).expand(stop - start, -1)
                usage.append(GateUsage(gate="san", scenario=i, task=None, weight_BK=weight_BM))
            cgc = self.gates[i]
            assert isinstance(cgc, CustomizedGateControl)
            weight_BTn = cgc.gate_weights(c_BC[start:stop])
            for j, task in enumerate(self.shape.tasks):
                weight_Bn = weight_BTn[:, j] / weight_BTn[:, j].sum(dim=1, keepdim=True)
                usage.append(GateUsage(gate="cgc", scenario=i, task=j, weight_BK=weight_Bn, **self._bank(i, task)))
        return usage

    def _bank(self, scenario: int, task: str) -> Any:
        """Returns which experts a CGC's gate has."""
        own = [f"{task}.{k}" for k in range(self.config.num_task_experts)]
        shared = [f"shared.{k}" for k in range(self.config.num_shared_task_experts)]
        if self.shared_task_experts is None:
            return {"bank": scenario, "experts": (*own, *shared)}
        return {"experts": (*(f"{scenario}.{name}" for name in own), *shared)}

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns SEIs, CGCs and towers."""
        lists = [self.gates, self.towers]
        return lists if self.shared is None else [self.scenarios, *lists]

    def row_parameters(self) -> list[str]:
        """Returns the attention's parameters."""
        return [] if self.attention is None else [f"attention.{name}" for name in ("embedding", "weight", "bias")]

    def add_scenario(self, donor: int) -> int:
        """Adds a scenario, see `Network.add_scenario`; the rows of the others see nothing of it until it is opened."""
        index = super().add_scenario(donor)
        if self.attention is not None:
            self.attention.add_scenario(donor)
        if self.shared is not None and self.config.scenario_init == "shared":
            self.scenarios[index] = copy.deepcopy(self.shared)
        elif self.shared is not None and self.config.scenario_init == "random":
            initialise(self.scenarios[index], self._seed or 0, prefix=f"scenarios.{index}")
        return index

    def open_scenario(self, index: int, share: float) -> None:
        """Lets the attention admit a scenario to the rows of the others by `share`, from 0 to 1."""
        if self.attention is not None:
            self.attention.open_scenario(index, share)

    def _sei(self, num_experts: int) -> SubExpertIntegration:
        return SubExpertIntegration(
            self.shape.width,
            num_experts=num_experts,
            hidden=self.config.expert_hidden,
            out=self.config.expert_width,
            gate_activation=self.config.gate_activation,
            dropout=self.config.sei_dropout,
        )

    def _attention(self) -> ScenarioAttention:
        return ScenarioAttention(
            self.num_scenarios,
            self.config.scenario_embedding,
            capacity=self.config.san_capacity,
            softmax=self.config.san_softmax,
            gate=self.config.san_gate,
            gate_activation=self.config.gate_activation,
        )

    def _cgc(self) -> CustomizedGateControl:
        return CustomizedGateControl(
            self.representation_width,
            num_tasks=self.shape.num_tasks,
            num_own=self.config.num_task_experts,
            num_shared=self.config.num_shared_task_experts,
            hidden=self.config.task_hidden,
            out=self.config.task_width,
            gate=self.config.cgc_gate,
            gate_activation=self.config.gate_activation,
            has_shared=self.config.task_layer == "per_scenario",
        )

    def _shared_task_experts(self) -> GatedExperts:
        return GatedExperts(
            self.representation_width,
            num_experts=self.config.num_shared_task_experts,
            num_gates=0,
            hidden=self.config.task_hidden,
            out=self.config.task_width,
        )
